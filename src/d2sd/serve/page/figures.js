/** An answer in figures: acceptance length, speed beside plain, who proposed, tokens a step. */

import { byId, make, makeSvg } from "./dom.js";
import { GROUPS, countTokens } from "./sources.js";

const BARS = 120; // steps in the small chart
const FEWEST = 40; // and how many it has room for at least, so that bars stay slim
const WIDTH = 240; // of the chart's own units, as in index.html
const HEIGHT = 48;

/** Puts the figures of the answer that is shown on the page. */
export class Figures {
  #exchange = null;
  #index = null;
  #plainRate = null;

  /** `choose` is told the step whose bar was clicked. */
  constructor(choose) {
    byId("sparkline").addEventListener("click", (event) => {
      const index = this.#stepAt(event);
      if (index !== null) choose(index);
    });
  }

  /** Measured tokens per second of plain decoding, or null where nobody has measured. */
  setPlainRate(rate) {
    this.#plainRate = rate;
    this.show(this.#exchange, this.#index);
  }

  show(exchange, index) {
    this.#exchange = exchange;
    this.#index = index;
    const steps = exchange?.steps ?? [];
    const rate = steps.at(-1)?.tokens_per_second ?? null;
    byId("acceptance").textContent = fixed(steps.at(-1)?.acceptance_length, 2);
    byId("rate").textContent = fixed(rate, 1);
    byId("plain").textContent = fixed(this.#plainRate, 1);
    byId("plain-words").textContent = this.#plainRate ? "tokens per second" : "not measured: ask once with policy none";
    const gain = rate && this.#plainRate ? `${(rate / this.#plainRate).toFixed(2)} × plain` : "";
    byId("gain").textContent = gain;
    showShares(steps);
    showSparkline(steps, index);
  }

  #stepAt(event) {
    const steps = this.#exchange?.steps.length ?? 0;
    if (!steps) return null;
    const box = byId("sparkline").getBoundingClientRect();
    const { first, slots } = windowOf(steps, this.#index);
    const index = first + Math.floor(((event.clientX - box.left) / box.width) * slots);
    return index < steps ? Math.max(index, 0) : null;
  }
}

const fixed = (value, digits) => (Number.isFinite(value) ? value.toFixed(digits) : "–");

function showShares(steps) {
  const { counts, all } = countTokens(steps);
  const groups = GROUPS.filter(({ id }) => counts.has(id));
  const percent = (id) => (100 * counts.get(id)) / all;
  byId("share-bar").replaceChildren(
    ...groups.map(({ id }) => {
      const part = make("span", { class: `src-${id}` });
      part.style.width = `${percent(id)}%`;
      return part;
    }),
  );
  byId("shares").replaceChildren(
    ...groups.map(({ id, name }) => {
      const swatch = make("span", { class: `swatch src-${id}` }, name);
      const share = percent(id) < 1 ? "< 1" : Math.round(percent(id));
      return make("li", {}, swatch, ` ${share} %`);
    }),
  );
}

/** The steps that the chart shows: the newest ones, or those around the step that is shown. */
export function windowOf(steps, index) {
  const newest = Math.max(0, steps - BARS);
  const first = index !== null && index < newest ? Math.max(0, index - BARS / 2) : newest;
  const slots = Math.max(Math.min(steps, BARS), FEWEST);
  return { first, last: Math.min(steps, first + BARS), slots };
}

function showSparkline(steps, index) {
  const chart = byId("sparkline");
  const lengths = steps.map(({ tokens }) => tokens.length);
  const most = Math.max(0, ...lengths);
  const { first, last, slots } = windowOf(lengths.length, index);
  const scale = Math.max(most, 4);
  const slot = WIDTH / slots;
  const bars = lengths.slice(first, last).map((length, at) => {
    const height = (HEIGHT * length) / scale;
    const place = { x: at * slot + slot * 0.12, y: HEIGHT - height, width: slot * 0.76, height };
    return makeSvg("rect", { ...place, class: first + at === index ? "bar lit" : "bar" });
  });
  const plain = HEIGHT - HEIGHT / scale;
  const line = makeSvg("path", { class: "plain", d: `M0 ${plain}H${WIDTH}` });
  chart.replaceChildren(...bars, ...(bars.length ? [line] : []));
  const mean = lengths.reduce((sum, length) => sum + length, 0) / (lengths.length || 1);
  const words = `mean ${mean.toFixed(2)}, most ${most}`;
  chart.setAttribute("aria-label", bars.length ? `Tokens of each step: ${words}` : "No steps yet");
  byId("spark-words").textContent = bars.length ? `(${words})` : "";
}
