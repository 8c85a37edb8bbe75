/** Who proposes tokens: their names, and the words for a token. Nothing here touches the page. */

/** All proposers, in the order they are listed. `usual` ones are in the legend from the start. */
export const GROUPS = [
  { id: "first", name: "first drafter", usual: true },
  { id: "second", name: "second drafter", usual: true },
  { id: "ngram", name: "n-gram copy", usual: true },
  { id: "target", name: "target", usual: true },
  { id: "third", name: "third pass", usual: false },
  { id: "sample", name: "sample", usual: false },
];

const NAMES = new Map([...GROUPS.map(({ id, name }) => [id, name]), ["anchor", "anchor"]]);

/** The proposer of a source: `second@3` is `second`; what is not known is `unknown`. */
export function groupOf(source) {
  const name = String(source ?? "").split("@", 1)[0];
  if (name === "bonus") return "target";
  return NAMES.has(name) ? name : "unknown";
}

/** A source in words: `second@2+1` is the second drafter after two kept tokens, and so on. */
export function describe(source) {
  const name = NAMES.get(groupOf(source)) ?? String(source);
  const kept = /@(\d+)(\+1)?$/.exec(source);
  if (!kept) return name;
  const tokens = `${kept[1]} kept ${kept[1] === "1" ? "token" : "tokens"}`;
  return `${name} after ${tokens}${kept[2] ? " and an alternative" : ""}`;
}

/** Tokens of each proposer in these steps, and how many in all. */
export function countTokens(steps) {
  const counts = new Map();
  let all = 0;
  for (const step of steps) {
    for (const token of step.tokens) {
      const group = groupOf(token.source);
      counts.set(group, (counts.get(group) ?? 0) + 1);
      all += 1;
    }
  }
  return { counts, all };
}

/** A token on one line with every character to be seen, as `d2sd trace` prints it. */
export function readable(text) {
  return text
    .replace(/ /g, "·")
    .replace(/\n/g, "↵")
    .replace(/\t/g, "⇥")
    .replace(/\p{C}/gu, (c) => `\\x${c.codePointAt(0).toString(16).padStart(2, "0")}`);
}
