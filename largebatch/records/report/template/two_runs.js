"use strict";
// Two runs beside each other, by the choice of the reader.

const comparison = document.getElementById("compare-figures");
if (comparison) {
  const all = DATA.comparison;
  const [first, second, against] = ["compare-first", "compare-second", "compare-against"].map((id) => document.getElementById(id));
  const table = document.querySelector("#two-runs tbody");
  const OTHER = "#7A7F85"; // of the second run, where both have one optimizer
  let seen = false;

  function chosen() {
    return [Number(first.value), Number(second.value)];
  }

  function showSettings() {
    table.replaceChildren();
    const [one, other] = chosen();
    for (const [key, setting] of Object.entries(all.settings)) {
      if (setting.of[one] === setting.of[other]) continue;
      const row = table.insertRow();
      for (const text of [key, ...[one, other].map((run) => setting.values[setting.of[run]] ?? "not set")]) {
        row.insertCell().textContent = text;
      }
    }
    if (!table.rows.length) table.insertRow().insertCell().textContent = "none: the runs have the same settings";
  }

  function drawAll() {
    const runs = chosen();
    const column = against.value === "1" ? 0 : 1;
    for (const element of comparison.querySelectorAll("figure")) {
      const key = element.dataset.key;
      const known = runs.filter((run) => all.series[run][key]);
      element.hidden = !known.length;
      if (!known.length) continue;
      const data = known.map((run) => {
        const line = all.series[run][key];
        return { type: "scatter", mode: line[0].length <= 40 ? "lines+markers" : "lines", x: line[column], y: line[2],
          name: `${run === runs[0] ? "first" : "second"}: ${escaped(all.names[run])}`, showlegend: true,
          line: { color: run !== runs[0] && all.colours[run] === all.colours[runs[0]] ? OTHER : all.colours[run], dash: run === runs[0] ? "solid" : "dash", width: 1.8 } };
      });
      const title = against.value === "1" ? "optimizer steps" : "samples seen";
      draw(element.querySelector(".plot"), { data: data, layout: {
        xaxis: { title: { text: title }, exponentformat: "SI" }, yaxis: all.axes[key] } });
    }
  }

  function change() {
    showSettings();
    if (seen) drawAll();
  }

  [first, second, against].forEach((select) => select.addEventListener("change", change));
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    seen = true;
    drawAll();
  }, { rootMargin: "300px" }).observe(comparison);
  document.addEventListener("print-all", () => { seen = true; drawAll(); });
  change();
}
