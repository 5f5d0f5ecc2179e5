"use strict";
// What the reader wants to see: optimizers, batch sizes and an experiment, by the bar above or by a legend.

const hidden = { optimizer: new Set(), batch: new Set() };
const experiments = document.getElementById("experiment");
const FACETS = ["optimizer", "batch"];

function isWanted(meta) {
  return FACETS.every((facet) => meta[facet] === undefined || meta[facet] === null || !hidden[facet].has(String(meta[facet])));
}

// Traces that the reader hides by a legend of their own keep that.
function filterFigure(figure) {
  for (const trace of figure.data) {
    if (trace.meta || trace.off !== undefined) trace.visible = !trace.off && (!trace.meta || isWanted(trace.meta));
  }
}

// Of a list the first option that fits is chosen where the chosen one does not.
function filterChoice(select) {
  const fits = (option) => isWanted(option.dataset)
    && (!experiments?.value || !option.dataset.experiment || option.dataset.experiment === experiments.value);
  for (const option of select.options) option.hidden = option.disabled = !fits(option);
  if (fits(select.selectedOptions[0])) return;
  const first = [...select.options].find(fits);
  if (!first) return;
  select.value = first.value;
  select.dispatchEvent(new Event("change"));
}

function filterAll() {
  Object.values(DATA.figures).forEach(filterFigure);
  document.querySelectorAll("select[data-choice]").forEach(filterChoice);
  for (const row of document.querySelectorAll("tbody tr[data-experiment]")) {
    row.hidden = !isWanted(row.dataset) || Boolean(experiments?.value && row.dataset.experiment !== experiments.value);
  }
  for (const facet of FACETS) {
    for (const button of document.querySelectorAll(`button[data-${facet}]`)) {
      button.setAttribute("aria-pressed", !hidden[facet].has(button.dataset[facet]));
    }
  }
  drawn.forEach((figure, place) => { if (place.offsetParent) draw(place, figure); });
}

for (const facet of FACETS) {
  for (const button of document.querySelectorAll(`button[data-${facet}]`)) {
    button.addEventListener("click", () => {
      const value = button.dataset[facet];
      if (!hidden[facet].delete(value)) hidden[facet].add(value);
      filterAll();
    });
  }
}
experiments?.addEventListener("change", filterAll);

// Where there is room, the filters stay open.
const isWide = matchMedia("(min-width: 52rem)");
function openFilters() {
  document.querySelector(".filters").open = isWide.matches;
}
isWide.addEventListener("change", openFilters);
openFilters();

// A legend of several figures: its buttons hide a series in all of them.
for (const button of document.querySelectorAll("button[data-series]")) {
  button.addEventListener("click", () => {
    const shows = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shows);
    for (const element of button.closest(".legend").nextElementSibling.querySelectorAll("figure[data-figure]")) {
      const figure = DATA.figures[element.dataset.figure];
      for (const trace of figure.data) if (trace.legendgroup === button.dataset.series) trace.off = !shows;
      filterFigure(figure);
      const place = element.querySelector(".plot");
      if (drawn.has(place)) draw(place, figure);
    }
  });
}

// The section that is being read is marked in the navigation.
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const reading = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    links.forEach((link) => link.removeAttribute("aria-current"));
    links.get(entry.target.id)?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-15% 0px -75%" });
document.querySelectorAll("section[id]").forEach((section) => reading.observe(section));
