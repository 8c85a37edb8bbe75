/** The conversation: questions, and answers whose every token tells who proposed it. */

import { make } from "./dom.js";
import { describe, groupOf } from "./sources.js";

const NEAR_END = 48; // pixels: who has scrolled further up is reading and is left there

/** All exchanges. `listener` hears of the tokens that the reader points at or chooses. */
export class Conversation {
  #list;
  #listener;
  #exchanges = [];
  #atEnd = true;
  #scrolling = false;

  constructor(list, listener) {
    this.#list = list;
    this.#listener = listener;
    new ResizeObserver(() => this.keepInSight()).observe(list);
    list.addEventListener("scroll", () => {
      this.#atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < NEAR_END;
    });
  }

  /** A new question with an empty answer. */
  begin(question) {
    const exchange = new Exchange(question, this.#listener);
    this.#exchanges.push(exchange);
    this.#list.append(exchange.element);
    this.#atEnd = true;
    this.keepInSight();
    return exchange;
  }

  /** What the target is to read: all answered questions, then the newest one. */
  messages() {
    return this.#exchanges.flatMap(({ question, text }, at) => {
      const isNewest = at === this.#exchanges.length - 1;
      if (!text && !isNewest) return []; // it failed: a question without an answer
      const asked = { role: "user", content: question };
      return isNewest ? [asked] : [asked, { role: "assistant", content: text }];
    });
  }

  remove(exchange) {
    exchange.element.remove();
    this.#exchanges = this.#exchanges.filter((other) => other !== exchange);
  }

  clear() {
    for (const exchange of [...this.#exchanges]) this.remove(exchange);
  }

  /** Scrolls along with the answer, unless the reader has scrolled up. */
  keepInSight() {
    if (!this.#atEnd || this.#scrolling) return;
    this.#scrolling = true;
    requestAnimationFrame(() => {
      this.#scrolling = false;
      this.#list.scrollTop = this.#list.scrollHeight;
    });
  }
}

/** A question and its answer: the text, and the record of every step. */
export class Exchange {
  request = null; // the body that was sent for it
  steps = [];
  text = "";
  usage = null;
  finishReason = null;
  #words = make("div", {
    class: "text",
    role: "group",
    "aria-label": "Answer. The arrow keys walk through its tokens.",
  });
  #answer = make("article", { class: "answer open", "aria-busy": "true" });
  #spans = []; // step -> its tokens on the page
  #listener;
  #lit = [];
  #tabStop = null;

  constructor(question, listener) {
    this.question = question;
    this.#listener = listener;
    this.#answer.append(make("h3", { class: "unseen" }, "Answer"), this.#words);
    this.element = make(
      "div",
      { class: "exchange" },
      make("article", { class: "question" }, make("h3", { class: "unseen" }, "You"), question),
      this.#answer,
    );
    this.#listen();
  }

  /** Adds a chunk of the stream; the tokens that are new with it. */
  append(chunk) {
    const choice = chunk.choices?.[0];
    const content = choice?.delta?.content ?? "";
    const tokens = this.#record(chunk.d2sd, content);
    for (const token of fitted(tokens, content)) this.#write(token);
    this.text += content;
    this.usage = chunk.usage ?? this.usage;
    this.finishReason = choice?.finish_reason ?? this.finishReason;
    return tokens;
  }

  /** Ends the answer with a line of small print. */
  close(words) {
    this.#answer.classList.remove("open");
    this.#answer.removeAttribute("aria-busy");
    if (words) this.#answer.append(make("p", { class: "print" }, words));
  }

  /** Ends the answer with what went wrong and a way to ask again. */
  fail(message, again) {
    this.close("");
    const button = make("button", { type: "button" }, "Try again");
    button.addEventListener("click", again);
    this.#answer.append(make("div", { class: "notice", role: "alert" }, message, button));
  }

  /** Marks the tokens of one step, and no others; null for none. */
  light(index) {
    const spans = this.#spans[index] ?? [];
    for (const span of this.#lit) span.classList.remove("lit");
    for (const span of spans) span.classList.add("lit");
    this.#lit = [...spans];
  }

  #record(record, content) {
    if (!Array.isArray(record?.tokens)) return [];
    const last = this.steps.at(-1);
    if (last && last.step === record.step) {
      if (!content) return []; // a closing chunk that tells of the last step once more
      last.tokens = [...last.tokens, ...record.tokens];
    } else {
      this.steps.push(record);
    }
    return record.tokens;
  }

  #write({ text, source }) {
    const step = this.steps.length - 1;
    const span = make("span", { class: `token src-${groupOf(source)}` }, text);
    if (step >= 0) {
      span.dataset.step = step;
      span.tabIndex = -1;
      span.title = `${describe(source)}, step ${step + 1}`;
      (this.#spans[step] ??= []).push(span);
      if (!this.#tabStop) this.#stopAt(span);
    }
    this.#words.append(span);
  }

  #listen() {
    const words = this.#words;
    const stepAt = (event) => event.target.closest?.("[data-step]")?.dataset.step;
    const told = (tell) => (event) => {
      const step = stepAt(event);
      if (step !== undefined) tell(Number(step), event);
    };
    const peek = (step) => this.#listener.peek(this, step);
    words.addEventListener("pointerover", told((step, event) => {
      if (event.pointerType !== "touch") peek(step);
    }));
    words.addEventListener("pointerleave", () => this.#listener.unpeek());
    words.addEventListener("focusin", told((step, event) => {
      this.#stopAt(event.target);
      peek(step);
    }));
    words.addEventListener("focusout", () => this.#listener.unpeek());
    words.addEventListener("click", told((step) => this.#listener.pin(this, step)));
    words.addEventListener("keydown", told((step, event) => this.#press(event, step)));
  }

  #press(event, step) {
    const spans = this.#spans.flat();
    const at = spans.indexOf(event.target);
    const targets = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 };
    if (event.altKey || event.ctrlKey || event.metaKey || at < 0) return;
    if (event.key === "Enter" || event.key === " ") this.#listener.pin(this, step);
    else if (event.key in targets) spans[targets[event.key]]?.focus();
    else return;
    event.preventDefault();
  }

  #stopAt(span) {
    if (this.#tabStop) this.#tabStop.tabIndex = -1;
    this.#tabStop = span;
    span.tabIndex = 0;
  }
}

/** The tokens as far as they are in `content`, which is what counts; empty ones are left out. */
export function fitted(tokens, content) {
  const fit = [];
  let rest = content;
  for (const { text, source } of tokens) {
    const kept = rest.startsWith(text) ? text : text.startsWith(rest) ? rest : "";
    if (kept) fit.push({ text: kept, source });
    rest = rest.slice(kept.length);
  }
  if (rest) fit.push({ text: rest, source: "unknown" });
  return fit;
}
