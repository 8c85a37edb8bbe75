/** Where the nodes of a step's tree go: depth to the right, siblings below each other. Pure. */

import { readable } from "./sources.js";

export const ROW = 23; // from one row to the next
export const PILL = 19; // height of a node
const GAP = 24; // between the columns: room for the trunks and the boundaries
const TRUNK = 8; // from a column's right end to where its edges turn down
const FENCE = 16; // and to where a boundary stands
const TOP = 42; // room for the boundaries' words
const MARGIN = 10;
const LETTER = 7.3; // one monospace letter of 12 pixels
const LONGEST = 12; // letters of a label

/** Nodes with places, edges between them, and where boundaries stand, for one step. */
export function layOut(record) {
  const nodes = nodesOf(record);
  sortChildren(nodes);
  const columns = columnsOf(nodes);
  const rows = placeRows(nodes);
  for (const node of nodes) {
    node.x = columns[node.depth].left;
    node.y = TOP + node.row * ROW + ROW / 2;
  }
  const edges = nodes.filter(({ parent }) => parent !== null).map((node) => ({
    accepted: node.accepted || node.bonus,
    path: edgePath(node.parent, node, columns[node.parent.depth].right + TRUNK),
  }));
  return {
    nodes,
    edges,
    boundaryX: (value) => boundaryX(columns, value),
    width: columns.at(-1).right + GAP + MARGIN,
    height: TOP + rows * ROW + MARGIN,
    top: TOP,
  };
}

/** The tree's nodes and the bonus, linked; the accepted child comes first. */
function nodesOf({ tree, path, bonus }) {
  const accepted = new Set(path);
  const nodes = tree.tokens.map((text, index) => ({
    text,
    label: shortened(readable(text)),
    source: tree.sources[index],
    accepted: accepted.has(index),
    bonus: false,
  }));
  if (bonus !== null && bonus !== undefined) {
    const label = shortened(readable(bonus));
    nodes.push({ text: bonus, label, source: "target", accepted: false, bonus: true });
  }
  const parents = [...tree.parents.slice(0, tree.tokens.length), path.at(-1) ?? 0];
  nodes.forEach((node, index) => {
    node.children = [];
    node.parent = nodes[parents[index]] ?? null;
    node.depth = node.parent ? node.parent.depth + 1 : 0;
    node.width = Math.max(columnsOfText(node.label), 1) * LETTER + 14;
    const leads = node.accepted || node.bonus;
    node.parent?.children[leads ? "unshift" : "push"](node);
  });
  return nodes;
}

/** Rejected siblings: short branches first, so that they fit beside what the accepted one holds. */
function sortChildren(nodes) {
  for (const node of [...nodes].reverse()) {
    node.reach = 1 + Math.max(0, ...node.children.map(({ reach }) => reach));
    const leads = (child) => (child.accepted || child.bonus ? 0 : child.reach);
    node.children.sort((one, other) => leads(one) - leads(other));
  }
}

/**
 * Gives every node a row, and its first child the same; how many rows there are. A branch takes the
 * highest rows that are free below it in all its columns, so that branches of different depths
 * stand side by side and no edge crosses another.
 */
function placeRows(nodes) {
  const free = []; // depth -> its first free row
  const place = (node, least) => {
    let row = least;
    for (let on = node; on; on = on.children[0]) row = Math.max(row, free[on.depth] ?? 0);
    node.row = row;
    free[node.depth] = row + 1;
    node.children.forEach((child, at) => place(child, at ? row + 1 : row));
  };
  place(nodes[0], 0);
  return Math.max(...free);
}

/** Left and right end of every depth's column: as wide as its widest node. */
function columnsOf(nodes) {
  const widths = [];
  for (const { depth, width } of nodes) widths[depth] = Math.max(widths[depth] ?? 0, width);
  let left = MARGIN;
  return widths.map((width) => {
    const column = { left, right: left + width };
    left = column.right + GAP;
    return column;
  });
}

/** Where a boundary after so many drafted tokens stands; between two columns for a fraction. */
function boundaryX(columns, value) {
  const last = columns.length - 1;
  const kept = Math.min(Math.max(value, 0), last);
  const before = Math.floor(kept);
  const fence = (depth) => columns[depth].right + FENCE;
  const after = Math.min(before + 1, last);
  return fence(before) + (kept - before) * (fence(after) - fence(before));
}

/** Right from the parent, down its trunk, right to the child. */
function edgePath(parent, child, trunk) {
  const start = `M${parent.x + parent.width} ${parent.y}`;
  if (child.y === parent.y) return `${start}H${child.x}`;
  const bend = 6;
  return (
    `${start}H${trunk - bend}Q${trunk} ${parent.y} ${trunk} ${parent.y + bend}` +
    `V${child.y - bend}Q${trunk} ${child.y} ${trunk + bend} ${child.y}H${child.x}`
  );
}

/** The width of a text in letters; wide characters count twice. */
function columnsOfText(text) {
  return [...text].reduce((sum, letter) => sum + widthOf(letter), 0);
}

const WIDE = /[\u1100-\u115f\u2e80-\uffdc\u{1f000}-\u{3ffff}]/u;
const widthOf = (letter) => (WIDE.test(letter) ? 2 : 1);

/** As much of a text as a label holds, with … for the rest. */
export function shortened(text) {
  if (columnsOfText(text) <= LONGEST) return text;
  let kept = "";
  for (const letter of text) {
    if (columnsOfText(kept + letter) > LONGEST - 1) break;
    kept += letter;
  }
  return `${kept}…`;
}
