"use strict";
// A sheet of paper has no scrolling: everything that is not hidden is drawn, in light colours and of one width.
let before = null; // the theme before printing
let unfolded = []; // what the reader had left folded

function startPrinting() {
  if (paper) return;
  paper = { width: 660, height: 360 };
  before = document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "light";
  unfolded = [...document.querySelectorAll("main details:not([open])")];
  for (const details of unfolded) details.open = true;
  for (const element of waiting.filter(isShown)) {
    inView.unobserve(element);
    if (!drawn.has(element.querySelector(".plot"))) drawNamed(element);
  }
  document.dispatchEvent(new Event("print-all"));
  drawn.forEach((figure, place) => draw(place, figure));
}

function endPrinting() {
  if (!paper) return;
  paper = null;
  for (const details of unfolded) details.open = false;
  setTheme(before);
}

addEventListener("beforeprint", startPrinting);
addEventListener("afterprint", endPrinting);
matchMedia("print").addEventListener("change", (event) => (event.matches ? startPrinting() : endPrinting()));
