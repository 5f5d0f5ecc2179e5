"use strict";
// Pictures as SVG in the units of the screen, controls, and the player that all widgets share.

const SVG = "http://www.w3.org/2000/svg";

function shape(parent, name, attributes, text) {
  const made = parent.appendChild(document.createElementNS(SVG, name));
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// 3 digits; many zeros as a power of ten.
function short(value) {
  if (!Number.isFinite(value)) return "∞";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return String(Number(value.toPrecision(2)).toExponential()).replace("e+", "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(3)));
}

const percent = (share) => `${short(Number((100 * share).toPrecision(2)))} %`;

// Ticks of a linear or logarithmic axis, six or so.
function ticks([low, high], log) {
  if (log) {
    const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
    const step = Math.max(1, Math.ceil((last - first + 1) / 6));
    return Array.from({ length: Math.floor((last - first) / step) + 1 }, (_, i) => 10 ** (first + i * step));
  }
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}

function scale([low, high], log, from, to) {
  const place = log ? Math.log : (value) => value;
  return (value) => from + (to - from) * (place(value) - place(low)) / (place(high) - place(low));
}

// Redraws a picture of height/width `ratio` with axes; `paint` gets the places of x and y and a clipped group.
function picture(svg, { ratio, x, y, paint, lowest = 220 }) {
  const width = Math.max(svg.clientWidth, 260), height = Math.round(Math.max(width * ratio, lowest));
  const frame = { left: 60, right: width - 10, top: 10, bottom: height - 40 };
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const at = { x: scale(x.range, x.log, frame.left, frame.right), y: scale(y.range, y.log, frame.bottom, frame.top) };
  for (const tick of ticks(x.range, x.log)) {
    shape(svg, "line", { class: "grid", x1: at.x(tick), x2: at.x(tick), y1: frame.top, y2: frame.bottom });
    shape(svg, "text", { class: "tick", x: at.x(tick), y: frame.bottom + 16, "text-anchor": "middle" }, short(tick));
  }
  for (const tick of ticks(y.range, y.log)) {
    shape(svg, "line", { class: "grid", x1: frame.left, x2: frame.right, y1: at.y(tick), y2: at.y(tick) });
    shape(svg, "text", { class: "tick", x: frame.left - 6, y: at.y(tick) + 4, "text-anchor": "end" }, short(tick));
  }
  shape(svg, "text", { class: "axis", x: (frame.left + frame.right) / 2, y: height - 6, "text-anchor": "middle" }, x.title);
  const middle = (frame.top + frame.bottom) / 2;
  shape(svg, "text", { class: "axis", transform: `translate(13 ${middle}) rotate(-90)`, "text-anchor": "middle" }, y.title);
  const identity = `clip-${svg.closest("[data-widget]").dataset.widget}-${svg.dataset.part}`;
  const clip = shape(svg, "clipPath", { id: identity });
  shape(clip, "rect", { x: frame.left, y: frame.top, width: frame.right - frame.left, height: frame.bottom - frame.top });
  paint(at, shape(svg, "g", { "clip-path": `url(#${identity})` }), svg, frame);
}

// A line through points; what is not a number, or far outside, ends it.
function polyline(parent, at, points, name) {
  const inside = points.findIndex(([x, y]) => !(Math.abs(x) < 1e9 && Math.abs(y) < 1e9) || Number.isNaN(y));
  const kept = inside < 0 ? points : points.slice(0, inside);
  const way = kept.map(([x, y]) => `${at.x(x).toFixed(2)},${at.y(y).toFixed(2)}`).join(" ");
  return shape(parent, "polyline", { class: `line ${name}`, points: way });
}

// Ellipses of equal loss around the minimum, and a cross on it.
function contours(parent, at, curvature, levels) {
  for (const level of levels) {
    const [rx, ry] = curvature.map((value) => Math.sqrt(2 * level / value));
    shape(parent, "ellipse", { class: "contour", cx: at.x(0), cy: at.y(0), rx: at.x(rx) - at.x(0), ry: at.y(0) - at.y(ry) });
  }
  shape(parent, "path", { class: "minimum", d: `M${at.x(0) - 6} ${at.y(0)}h12M${at.x(0)} ${at.y(0) - 6}v12` });
}

// A landscape in equal units on both axes.
function landscape(svg, { curvature, levels, x, y, paint }) {
  const width = Math.max(svg.clientWidth, 260);
  const inner = (width - 70) * (y.range[1] - y.range[0]) / (x.range[1] - x.range[0]);
  picture(svg, { ratio: (inner + 50) / width, lowest: 0, x, y, paint: (at, group, ...rest) => {
    contours(group, at, curvature, levels);
    paint(at, group, ...rest);
  } });
}

// The parts of a widget: `get(name)` finds a control or a place for text; `show` runs at every change and size.
function widget(name, show) {
  const root = document.querySelector(`[data-widget="${name}"]`);
  if (!root) return;
  const get = (part) => root.querySelector(`[data-part="${part}"]`);
  const tell = (part, text) => {
    get(part).textContent = text.replaceAll(" %", "\u00a0%");
    const control = root.querySelector(`input[data-part="${part.replace(/-text$/, "")}"]`);
    control?.setAttribute("aria-valuetext", text);
  };
  const chosen = (group) => root.querySelector(`[data-group="${group}"] [aria-pressed="true"]`).value;
  const self = { root, get, tell, chosen, value: (part) => Number(get(part).value) };
  const again = () => show(self);
  for (const group of root.querySelectorAll("[data-group]")) {
    group.addEventListener("click", ({ target }) => {
      const button = target.closest("button");
      if (!button) return;
      for (const one of group.querySelectorAll("button")) one.setAttribute("aria-pressed", one === button);
      again();
    });
  }
  root.addEventListener("input", again);
  let width = root.clientWidth;
  new ResizeObserver(() => {
    if (width === root.clientWidth) return; // a sentence that wraps changes the height alone
    width = root.clientWidth;
    again();
  }).observe(root);
  if (get("play")) player(self, again);
  again();
}

// Play, step and scrubber. Without motion the play button is hidden: step and scrubber do the same.
function player({ root, get }, again) {
  const slider = get("place"), play = get("play"), told = get("answer");
  const last = Number(slider.max);
  let timer = 0;
  play.hidden = matchMedia("(prefers-reduced-motion: reduce)").matches;

  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
    told.setAttribute("aria-live", "polite");
  }
  function move(count) {
    slider.value = Math.min(Number(slider.value) + count, last);
    again();
    if (Number(slider.value) === last) stop();
  }
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (Number(slider.value) === last) slider.value = 0;
    play.textContent = "Pause";
    told.setAttribute("aria-live", "off"); // a reader of the screen would speak without end
    timer = setInterval(move, 110, 1);
  });
  get("step").addEventListener("click", () => {
    stop();
    move(Number(slider.value) === last ? -last : 1);
  });
  slider.addEventListener("input", stop);
  document.addEventListener("print-all", stop);
}
