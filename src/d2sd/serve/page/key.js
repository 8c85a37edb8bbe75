/** Asks for an API key when the server wants one, and tries again with it. */

import { ApiError, saveKey } from "./api.js";
import { byId } from "./dom.js";

/** What `task` gives; after a 401 the reader is asked for a key and the task is run again. */
export async function withKey(task) {
  for (;;) {
    try {
      return await task();
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 401) throw error;
      const key = await askForKey(error.message);
      if (key === null) throw error;
      saveKey(key);
    }
  }
}

/** Whether the dialog is open, so that Esc belongs to it. */
export const isAsking = () => byId("key-dialog").open;

/** Makes the dialog's form and button close it. */
export function wireKeyDialog() {
  const dialog = byId("key-dialog");
  dialog.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close("key");
  });
  byId("key-cancel").addEventListener("click", () => dialog.close(""));
}

function askForKey(reason) {
  const dialog = byId("key-dialog");
  const field = byId("key");
  byId("key-words").textContent = reason;
  field.value = "";
  dialog.returnValue = "";
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const key = field.value.trim();
        field.value = "";
        resolve(dialog.returnValue === "key" && key ? key : null);
      },
      { once: true },
    );
    dialog.showModal();
    field.focus();
  });
}
