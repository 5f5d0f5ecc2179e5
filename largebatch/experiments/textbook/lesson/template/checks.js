"use strict";
// Questions to click: the chosen answer is marked, and the reason appears. Paper shows all reasons.

for (const check of document.querySelectorAll(".check")) {
  const told = check.querySelector(".result");
  check.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    for (const one of check.querySelectorAll("button")) {
      one.setAttribute("aria-pressed", one === button);
      one.dataset.result = one === button ? (button.hasAttribute("data-right") ? "right" : "wrong") : "";
    }
    told.textContent = button.hasAttribute("data-right") ? "Right." : "Not so.";
    check.classList.add("answered");
  });
}
