"use strict";
// A figure with trails: a slider, and a button that moves it, walk points along them.
function addWalk(element, figure) {
  const controls = element.appendChild(document.createElement("div"));
  const play = controls.appendChild(document.createElement("button"));
  const slider = controls.appendChild(document.createElement("input"));
  const last = Math.max(...figure.trails.map((trail) => trail.x.length)) - 1;
  controls.className = "walk";
  play.type = "button";
  play.textContent = "Play";
  Object.assign(slider, { type: "range", min: 0, max: last, value: last });
  slider.setAttribute("aria-label", "Point of each path");
  play.hidden = matchMedia("(prefers-reduced-motion: reduce)").matches; // the slider does the same, without motion
  let timer = 0;

  function show() {
    const places = figure.trails.map((trail) => Math.min(Number(slider.value), trail.x.length - 1));
    figure.trails.forEach((trail, number) => {
      figure.data[trail.trace].x = [trail.x[places[number]]];
      figure.data[trail.trace].y = [trail.y[places[number]]];
    });
    slider.setAttribute("aria-valuetext", `point ${slider.value} of ${last}`);
    draw(element.querySelector(".plot"), figure);
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  }

  play.addEventListener("click", () => {
    if (timer) return stop();
    if (Number(slider.value) === last) slider.value = 0;
    play.textContent = "Pause";
    timer = setInterval(() => {
      slider.value = Math.min(Number(slider.value) + Math.max(1, Math.round(last / 120)), last);
      show();
      if (Number(slider.value) === last) stop();
    }, 60);
  });
  slider.addEventListener("input", () => { stop(); show(); });
}
