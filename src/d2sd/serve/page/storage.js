/** What the browser keeps. Where storage is switched off, nothing is kept and nothing fails. */

/** Keeps `value` under `name`: until the tab is closed, or for good. */
export function keep(name, value, forGood = false) {
  try {
    storage(forGood).setItem(name, value);
  } catch {
    // it holds until the page is left
  }
}

/** What was kept under `name`, or null. */
export function kept(name, forGood = false) {
  try {
    return storage(forGood).getItem(name);
  } catch {
    return null;
  }
}

const storage = (forGood) => (forGood ? localStorage : sessionStorage);
