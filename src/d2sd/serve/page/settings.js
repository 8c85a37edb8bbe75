/** What the reader has chosen: model, policy with its budget, temperature and length. */

import { byId, make } from "./dom.js";
import { keep, kept } from "./storage.js";

const TAKES_BUDGET = new Set(["best-first", "merged", "planned"]);
const KEPT = "d2sd-settings";
const USUAL_BUDGET = "64";
const USUAL_LENGTH = 256;
const PLAIN = "none";

const HINTS = {
  planned: "before every step, whichever of all these pays",
  none: "plain decoding, one token a step",
  ngram: "copies of earlier text, no drafter",
  block: "one chain from one pass of the first drafter",
  "best-first": "the most probable paths of one pass",
  dual: "a chain, and redrafts of it where it will likely break",
  merged: "both passes in one tree under one budget",
};

/** A policy as its name and its options: `dual:branches=4`. */
export function parsePolicy(text) {
  const [name, rest = ""] = text.split(/:(.*)/s, 2);
  const options = new Map(rest.split(",").filter(Boolean).map((part) => part.split("=", 2)));
  return { name, options };
}

/** The inverse of `parsePolicy`. */
export function writePolicy({ name, options }) {
  const written = [...options].map(([option, value]) => `${option}=${value}`).join(",");
  return written ? `${name}:${written}` : name;
}

/** The policy that is sent: the server's own options, and the budget asked for. */
export function policyWith(name, options, budget) {
  const all = new Map(options);
  if (TAKES_BUDGET.has(name) && budget) all.set("budget", budget);
  return writePolicy({ name, options: all });
}

/** The policies that a reader looks for, then the arms of ablations as a group. */
function policyOptions(names) {
  const option = (name) => make("option", {}, name);
  const arms = names.filter((name) => !(name in HINTS)).map(option);
  const usual = names.filter((name) => name in HINTS).map(option);
  return arms.length ? [...usual, make("optgroup", { label: "Ablations" }, ...arms)] : usual;
}

export class Settings {
  #form = byId("settings");
  #fields = this.#form.elements;
  #models = [];
  #options = new Map(); // policy -> the options that the server gives it
  #plainRates = new Map(); // model -> what its last plain answer came to

  /** `changed` is called when another model has been chosen. */
  constructor(changed) {
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    this.#form.addEventListener("change", () => this.#keep());
    this.#fields.policy.addEventListener("change", () => this.#choosePolicy());
    this.#fields.model.addEventListener("change", () => {
      this.#chooseModel();
      changed();
    });
  }

  get loaded() {
    return this.#models.length > 0;
  }

  /** Offers these models; the first is chosen. */
  load(models) {
    this.#models = models;
    this.#fields.model.replaceChildren(...models.map(({ id }) => make("option", {}, id)));
    this.#fields.model.disabled = false;
    this.#chooseModel();
    this.#restore();
  }

  /** Measured tokens per second of plain decoding, or null. */
  get plainRate() {
    const measured = this.#plainRates.get(this.#fields.model.value);
    return measured ?? this.#model()?.d2sd?.plain_tokens_per_second ?? null;
  }

  /** Notes what an answer came to that was asked for with `request`, if that was plain decoding. */
  noteRate(request, rate) {
    if (request.policy === PLAIN && rate) this.#plainRates.set(request.model, rate);
  }

  /** Whether all fields can be sent; if not, the browser says which one cannot. */
  check() {
    return this.#form.reportValidity();
  }

  /** The body of a request for an answer to these messages. */
  request(messages) {
    const policy = this.#policy();
    return {
      model: this.#fields.model.value,
      messages,
      temperature: Number(this.#fields.temperature.value),
      max_tokens: Number(this.#fields.max_tokens.value),
      stream: true,
      stream_options: { include_usage: true },
      trace: true,
      ...(policy && { policy }),
    };
  }

  #model() {
    return this.#models.find(({ id }) => id === this.#fields.model.value);
  }

  #policy() {
    const { policy, budget } = this.#fields;
    return policyWith(policy.value, this.#options.get(policy.value) ?? new Map(), budget.value);
  }

  #chooseModel() {
    const offered = this.#model().d2sd ?? {};
    const { policies = [], policy = policies[0] ?? "" } = offered;
    const usual = parsePolicy(policy);
    const parsed = [...policies.map(parsePolicy), ...(policy ? [usual] : [])];
    this.#options = new Map(parsed.map(({ name, options }) => [name, options]));
    const names = [...this.#options.keys()];
    this.#fields.policy.replaceChildren(...policyOptions(names));
    this.#fields.policy.value = usual.name;
    this.#fields.policy.disabled = names.length === 0;
    this.#choosePolicy();
    this.#limit(offered.max_tokens);
  }

  #choosePolicy() {
    const name = this.#fields.policy.value;
    const takesBudget = TAKES_BUDGET.has(name);
    byId("budget-field").hidden = !takesBudget;
    this.#fields.budget.disabled = !takesBudget; // what is hidden is not checked either
    this.#fields.budget.value = this.#options.get(name)?.get("budget") ?? USUAL_BUDGET;
    byId("policy-hint").textContent = HINTS[name] ? `${name}: ${HINTS[name]}` : "";
  }

  #keep() {
    const values = this.#kept().map((field) => [field.name, field.value]);
    keep(KEPT, JSON.stringify(Object.fromEntries(values)), true);
  }

  /** Sets the fields to what was chosen last time, as far as this server offers it. */
  #restore() {
    const values = JSON.parse(kept(KEPT, true) ?? "{}");
    for (const field of this.#kept()) {
      const before = field.value;
      field.value = values[field.name] ?? before;
      if (!field.checkValidity() || !field.value) field.value = before;
      if (field.name === "policy") this.#choosePolicy();
    }
  }

  /** The fields whose values outlast the page; the policy first, because it sets the budget. */
  #kept() {
    const { policy, budget, temperature, max_tokens: length } = this.#fields;
    return [policy, budget, temperature, length];
  }

  #limit(most) {
    const field = this.#fields.max_tokens;
    if (most) field.max = most;
    else field.removeAttribute("max");
    field.value = Math.min(Number(field.value) || USUAL_LENGTH, most ?? Infinity);
  }
}
