/* What every page does with JavaScript, and works without. */

"use strict";

/* Boxes that may be wider than their column: code, tables, pictures, formulas. One that is says so
   below it, fades where it goes on, and can be scrolled by the keyboard. */
(() => {
  const NAMES = {
    pre: "Code",
    ".table-box, .pst-scrollable-table-container": "Table",
    ".picture": "Figure",
    "div.math": "Formula",
  };

  const hints = new WeakMap();

  const hint = (box) => {
    if (!hints.has(box)) {
      const words = document.createElement("div");
      words.className = "scroll-hint";
      words.setAttribute("aria-hidden", "true"); // of no use without sight: the box has a name
      words.textContent = "scroll for more →";
      box.after(words);
      hints.set(box, words);
    }
    return hints.get(box);
  };

  const mark = (box) => {
    const wide = box.scrollWidth > box.clientWidth + 1;
    if (!wide && !hints.has(box)) return;
    const rest = box.scrollWidth - box.clientWidth - box.scrollLeft;
    box.classList.toggle("wider", wide);
    box.classList.toggle("at-end", wide && rest < 2);
    hint(box).hidden = !wide;
    const name = Object.entries(NAMES).find(([selector]) => box.matches(selector))[1];
    const stop = { tabindex: 0, role: "group", "aria-label": `${name}, wider than the page` };
    for (const [key, value] of Object.entries(stop)) {
      if (wide) box.setAttribute(key, value);
      else box.removeAttribute(key);
    }
  };

  const start = () => {
    const sizes = new ResizeObserver((entries) => entries.forEach((entry) => mark(entry.target)));
    for (const box of document.querySelectorAll(Object.keys(NAMES).join())) {
      sizes.observe(box);
      box.addEventListener("scroll", () => mark(box), { passive: true });
    }
  };

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();

/* Paper is white: a page in dark mode is printed in the colors of light mode. */
(() => {
  const data = document.documentElement.dataset;
  let mode;
  matchMedia("print").addEventListener("change", ({ matches }) => {
    if (matches) mode = data.theme;
    data.theme = matches ? "light" : mode;
  });
})();
