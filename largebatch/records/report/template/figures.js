"use strict";
// Draws figures when they come into view, in the colours of the theme.

const DATA = JSON.parse(document.getElementById("data").textContent);
const drawn = new Map(); // element -> figure as it was given
let paper = null; // size of a figure while the page is printed, where nothing can adapt to the width of the sheet

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Plotly reads tags in texts.
function escaped(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function themed(layout) {
  const axis = { gridcolor: style("--line"), zerolinecolor: style("--line"), linecolor: style("--line"), automargin: true };
  const legend = { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, bgcolor: "rgba(0,0,0,0)" };
  return {
    ...layout,
    title: undefined, // stands above the figure, where it wraps
    autosize: true,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: style("--text"), family: "system-ui, sans-serif", size: 13 },
    margin: { l: 56, r: 12, t: 12, b: 48 },
    legend: legend,
    ...(paper ? { autosize: false, ...paper } : {}),
    hoverlabel: { namelength: -1 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: style("--soft"), activecolor: style("--mark") },
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
  };
}

// Plotly is most of the page: it is run once the texts are there, or a figure is needed.
function needPlotly() {
  if (window.Plotly) return;
  const script = document.createElement("script");
  script.textContent = document.getElementById("plotly").textContent;
  document.head.append(script);
}
addEventListener("load", () => setTimeout(needPlotly, 300));

function draw(place, figure) {
  needPlotly();
  drawn.set(place, figure);
  // Where nothing can hover, as on a phone, the buttons would lie on the data for good.
  const buttons = matchMedia("(hover: hover)").matches ? "hover" : false;
  // Without showSendToCloud: false, plotly.js 4 offers to upload the chart to its makers.
  const config = { responsive: true, displaylogo: false, displayModeBar: buttons, scrollZoom: false,
    showSendToCloud: false, plotlyServerURL: "", modeBarButtonsToRemove: ["lasso2d", "select2d"] };
  return Plotly.react(place, figure.data, themed(figure.layout), config);
}

function isShown(element) {
  return element.offsetParent !== null;
}

function drawNamed(element) {
  const figure = DATA.figures[element.dataset.figure];
  draw(element.querySelector(".plot"), figure);
  if (figure.trails) addWalk(element, figure);
}

const inView = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      inView.unobserve(entry.target);
      drawNamed(entry.target);
    }
  }
}, { rootMargin: "300px" });
const waiting = [...document.querySelectorAll("figure[data-figure]")];
waiting.forEach((element) => inView.observe(element));

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "Light" : "Dark";
  drawn.forEach((figure, place) => draw(place, figure));
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
prefersDark.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () => {
  setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
});
setTheme(prefersDark.matches ? "dark" : "light");

for (const select of document.querySelectorAll("select[data-choice]")) {
  const parts = select.parentElement.nextElementSibling.children;
  select.addEventListener("change", () => {
    for (const [number, part] of [...parts].entries()) part.hidden = number !== Number(select.value);
  });
}
