/* Light or dark: the system's choice until the button says otherwise, which is remembered.
   A plain script in the head, so that the page is never painted in the wrong one first. */
(() => {
  "use strict";
  const NAME = "d2sd-theme";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");

  function remembered() {
    try {
      return localStorage.getItem(NAME);
    } catch {
      return null; // storage is switched off: the system decides
    }
  }

  function remember(theme) {
    try {
      localStorage.setItem(NAME, theme);
    } catch {
      // it holds until the page is closed
    }
  }

  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);

  function wire() {
    const button = document.getElementById("theme");
    const tell = () => button.setAttribute("aria-pressed", String(isDark()));
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      remember(root.dataset.theme);
      tell();
    });
    system.addEventListener("change", tell);
    tell();
  }

  const theme = remembered();
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  document.addEventListener("DOMContentLoaded", wire);
})();
