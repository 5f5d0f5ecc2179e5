"use strict";
// The slider over batch sizes: looks up what was computed, and marks its place in the figures.

for (const block of document.querySelectorAll("[data-explorer]")) {
  const found = DATA.explorers[Number(block.dataset.explorer)];
  const slider = block.querySelector("input[type=range]");
  const told = block.querySelector("output");
  const rows = block.querySelectorAll("tbody tr");
  const places = [...block.querySelectorAll("figure[data-figure]")];
  let waiting = false;

  function mark() {
    waiting = false;
    const size = found.sizes[Number(slider.value)];
    for (const element of places) {
      const figure = DATA.figures[element.dataset.figure];
      figure.layout.shapes = [{ type: "line", x0: size, x1: size, yref: "paper", y0: 0, y1: 1,
        line: { color: style("--mark"), width: 2, dash: "dot" } }];
      const place = element.querySelector(".plot");
      if (drawn.has(place)) draw(place, figure);
    }
  }

  function show() {
    const at = Number(slider.value);
    const text = `${found.sizes[at].toLocaleString("en")} samples`;
    told.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    found.rows.forEach((row, number) => {
      const cells = rows[number].children;
      cells[1].textContent = row.value[at];
      cells[2].textContent = row.interval[at];
      cells[3].textContent = row.kind[at];
      rows[number].dataset.kind = row.kind[at];
    });
    if (!waiting) {
      waiting = true;
      requestAnimationFrame(mark);
    }
  }

  slider.addEventListener("input", show);
  show();
}
