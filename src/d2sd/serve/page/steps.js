/** Which step is shown: the newest one as it comes, or the one that the reader has chosen. */

const PAUSE = 80; // milliseconds between drawings while an answer streams: it runs beside the model

export class Steps {
  #show;
  #changed;
  #newest = null;
  #chosen = null;
  #peeked = null;
  #following = true;
  #timer = null;
  #drawnAt = 0;

  /** `show(exchange, index)` draws a step, or nothing for nulls; `changed` hears of following. */
  constructor(show, changed) {
    this.#show = show;
    this.#changed = changed;
  }

  /** An answer begins: it is followed. */
  begin(exchange) {
    this.#newest = { exchange, index: -1 };
    this.setFollowing(true);
  }

  /** The answer has got further. */
  advance(exchange) {
    this.#newest = { exchange, index: exchange.steps.length - 1 };
    if (this.#following) this.#chosen = this.#newest;
    this.#timer ??= setTimeout(
      () => this.#draw(),
      Math.max(0, this.#drawnAt + PAUSE - performance.now()),
    );
  }

  /** Shows a step for as long as the reader points at it. */
  peek(exchange, index) {
    if (this.#peeked?.exchange === exchange && this.#peeked.index === index) return;
    this.#peeked = { exchange, index };
    this.#draw();
  }

  unpeek() {
    if (!this.#peeked) return;
    this.#peeked = null;
    this.#draw();
  }

  /** Stays at a step. */
  pin(exchange, index) {
    this.#chosen = { exchange, index };
    this.setFollowing(false);
  }

  /** Goes this many steps on in the same answer, and stays there. */
  walk(by) {
    if (!this.#chosen) return;
    const { exchange, index } = this.#chosen;
    this.pinIndex(Math.min(Math.max(index + by, 0), exchange.steps.length - 1));
  }

  /** Stays at this step of the answer that is shown. */
  pinIndex(index) {
    this.#peeked = null;
    if (this.#chosen) this.pin(this.#chosen.exchange, index);
  }

  get following() {
    return this.#following;
  }

  setFollowing(following) {
    this.#following = following;
    if (following && this.#newest?.index >= 0) this.#chosen = this.#newest;
    this.#changed(following);
    this.#draw();
  }

  /** Forgets an answer that is no longer there; all of them without one. */
  forget(exchange = null) {
    const gone = (at) => at !== null && (exchange === null || at.exchange === exchange);
    if (gone(this.#newest)) this.#newest = null;
    if (gone(this.#chosen)) this.#chosen = null;
    if (gone(this.#peeked)) this.#peeked = null;
    this.#draw();
  }

  #draw() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#drawnAt = performance.now();
    const { exchange, index } = this.#peeked ?? this.#chosen ?? { exchange: null, index: null };
    this.#show(exchange, index);
  }
}
