/** Draws the tree of a step, and says in a sentence what became of it. */

import { make, makeSvg } from "./dom.js";
import { PILL, layOut } from "./layout.js";
import { describe, groupOf, readable } from "./sources.js";

const NOTHING_YET = "The tree of every step appears here.";
const SMALLEST = 0.85; // a wide tree shrinks to this before it scrolls

/** Shows a step in `box` and in `words`; without a record the box says why it is empty. */
export function showTree(box, words, record) {
  if (!record?.tree) {
    const reason = record ? "The server sent no tree." : NOTHING_YET;
    box.replaceChildren(make("p", { class: "empty" }, reason));
    words.textContent = "";
    return;
  }
  box.replaceChildren(drawn(record));
  words.textContent = inWords(record);
}

/** What a step drafted and what was accepted of it. */
export function inWords(record) {
  const drafted = record.tree.tokens.length - 1;
  const accepted = record.path.length - 1;
  const counts = `${drafted} drafted, ${accepted} accepted`;
  const bonus = record.bonus ? `, bonus “${readable(record.bonus)}”` : "";
  const time = record.seconds ? `, ${Math.round(record.seconds * 1000)} ms` : "";
  return `${counts}${bonus}${time}. ${boundaryWords(record)}`;
}

function boundaryWords({ tree, boundary, predicted_boundary: predicted }) {
  if (tree.tokens.length < 2) return "Nothing was drafted: plain decoding.";
  if (!isNumber(boundary)) return "The first drafter was not asked.";
  const held = `The first chain held for ${boundary} ${boundary === 1 ? "token" : "tokens"}`;
  return isNumber(predicted) ? `${held}, ${predicted} expected.` : `${held}.`;
}

function drawn(record) {
  const plan = layOut(record);
  const { width, height } = plan;
  const label = `Tree of this step: ${inWords(record)}`;
  const picture = makeSvg(
    "svg",
    { width, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    ...plan.edges.filter(({ accepted }) => !accepted).map(edge),
    ...plan.edges.filter(({ accepted }) => accepted).map(edge),
    ...boundaries(record, plan),
    ...plan.nodes.map(pill),
  );
  picture.style.minWidth = `${SMALLEST * width}px`;
  return picture;
}

function edge({ accepted, path }) {
  return makeSvg("path", { class: accepted ? "edge accepted" : "edge", d: path });
}

function pill(node) {
  const { x, y, width } = node;
  const group = groupOf(node.source);
  const kind = node.bonus ? "bonus" : node.accepted ? "accepted" : "rejected";
  const body = { x, y: y - PILL / 2, width, height: PILL, rx: node.bonus ? PILL / 2 : 5 };
  const tag = makeSvg("text", { class: "tag", x: x + 2, y: y - PILL / 2 - 3 }, "bonus");
  const says = group === "anchor" ? "the last token so far" : node.bonus ? "bonus" : kind;
  return makeSvg(
    "g",
    { class: `node ${kind} src-${group}` },
    makeSvg("title", {}, `${readable(node.text)} – ${describe(node.source)}, ${says}`),
    makeSvg("rect", body),
    ...marks(group, node),
    makeSvg("text", { x: x + width / 2, y: y - 1, "text-anchor": "middle" }, node.label),
    ...(node.bonus ? [tag] : []),
  );
}

/** The line under a label that tells proposers apart without colour, as under the answer's text. */
function marks(group, { x, y, width }) {
  if (group === "anchor" || group === "unknown") return [];
  const offsets = group === "second" ? [PILL / 2 - 5.5, PILL / 2 - 2.5] : [PILL / 2 - 3.5];
  return offsets.map((offset) =>
    makeSvg("path", { class: "mark", d: `M${x + 6} ${y + offset}H${x + width - 6}` }),
  );
}

function boundaries({ tree, boundary: real, predicted_boundary: predicted }, plan) {
  if (tree.tokens.length < 2 || !isNumber(real)) return [];
  const lines = isNumber(predicted) ? [boundary("predicted", predicted, 11, plan)] : [];
  return [...lines, boundary("real", real, 25, plan)];
}

/** A line across the tree with its word at the top, on the side where there is room. */
function boundary(kind, value, wordY, plan) {
  const x = plan.boundaryX(value) + (kind === "real" ? 0 : -3); // equal ones stay two lines
  const words = `${kind} ${value}`;
  const fits = x + 4 + words.length * 6.5 < plan.width;
  const place = { x: fits ? x + 4 : x - 4, y: wordY, "text-anchor": fits ? "start" : "end" };
  return makeSvg(
    "g",
    { class: `boundary ${kind}` },
    makeSvg("title", {}, `${kind} boundary: after ${value} drafted tokens`),
    makeSvg("path", { d: `M${x} ${wordY - 8}V${plan.height - 6}` }),
    makeSvg("text", place, words),
  );
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
