/** The legend over the conversation: which proposer looks how, each to be switched off. */

import { make } from "./dom.js";
import { GROUPS, groupOf } from "./sources.js";

export class Legend {
  #items = new Map();

  constructor(fieldset) {
    for (const group of GROUPS) {
      const item = this.#item(group);
      this.#items.set(group.id, item);
      fieldset.append(item);
    }
  }

  /** Lists the proposers of these tokens, also the unusual ones. */
  reveal(tokens) {
    for (const { source } of tokens) {
      const item = this.#items.get(groupOf(source));
      if (item?.hidden) item.hidden = false;
    }
  }

  #item({ id, name, usual }) {
    const box = make("input", { type: "checkbox", checked: true, name: `show-${id}` });
    box.addEventListener("change", () => {
      document.body.classList.toggle(`hide-${id}`, !box.checked);
    });
    const words = make("span", { class: `swatch src-${id}` }, name);
    return make("label", { hidden: !usual }, box, words);
  }
}
