"use strict";
// Three ways down one valley: batch, mini-batch and stochastic descent with the same draws.

widget("descent", ({ get, tell, chosen, value }) => {
  const { curvature, noise_variance: noise, start, steps, seed } = DATA.lesson.descent;
  const task = textbook.quadratic(curvature, noise);
  const lr = value("lr"), batch = 2 ** value("batch"), place = value("place"), variant = chosen("variant");
  const batches = { batch: Infinity, mini: batch, stochastic: 1 };
  const paths = Object.fromEntries(Object.entries(batches).map(([name, size]) =>
    [name, task.path(start, { lr, numSteps: steps, batch: size, noise: textbook.noiseOf(seed) })]));
  const point = paths[variant][place];

  landscape(get("picture"), {
    curvature,
    levels: [2, 8, 24, 60, 120, 220, 400],
    x: { range: [-10, 10], title: `flat direction, curvature ${curvature[0]}` },
    y: { range: [-7, 7], title: `steep direction, curvature ${curvature[1]}` },
    paint: (at, group) => {
      for (const name of Object.keys(paths)) {
        if (name !== variant) polyline(group, at, paths[name].slice(0, place + 1), `${name} faint`);
      }
      polyline(group, at, paths[variant].slice(0, place + 1), variant);
      for (const [x, y] of paths[variant].slice(0, place)) {
        if (Math.abs(x) < 100 && Math.abs(y) < 100) shape(group, "circle", { class: `dot ${variant}`, cx: at.x(x), cy: at.y(y), r: 2.2 });
      }
      if (Math.abs(point[0]) < 1e6) shape(group, "circle", { class: `point ${variant}`, cx: at.x(point[0]), cy: at.y(point[1]), r: 6 });
    },
  });

  tell("lr-text", short(lr));
  tell("batch-text", `${batch} sample${batch === 1 ? "" : "s"}`);
  tell("place-text", `${place} of ${steps}`);
  tell("iteration", `${place}`);
  tell("loss", short(task.loss(point)));
  tell("distance", short(Math.hypot(...point)));
  tell("gradient", short(Math.hypot(...task.gradient(point))));
  tell("answer", sentence(task, { lr, batch: batches[variant], limit: task.maxStableLr() }));

  function sentence(quadratic, { lr: rate, batch: size, limit }) {
    if (rate > limit) return `It climbs the walls: rate ${short(rate)} is above 2 / curvature = ${short(limit)}, whatever the batch.`;
    const factor = 1 - rate * curvature[1];
    if (size === Infinity) {
      const crossed = paths.batch.slice(1, place + 1).filter((now, i) => now[1] * paths.batch[i][1] < 0).length;
      if (Math.abs(factor) < 1e-9) return "At this rate one step lands on the valley floor; the flat direction still needs many.";
      return factor < 0
        ? `Each step overshoots the steep direction by the factor ${short(-factor)}: ${crossed} crossings in ${place} steps. Without noise they die out.`
        : `No zig-zag: each step keeps ${short(factor)} of the steep coordinate, and ${short(1 - rate * curvature[0])} of the flat one.`;
    }
    const floor = rate === limit ? Infinity : quadratic.meanLoss(quadratic.stationaryVariance({ lr: rate, batch: size }));
    return `Batch ${size} stays at a loss of ${short(floor)} on average, however long it runs. Twice the batch halves that; half the rate lowers it further, and slows the flat direction.`;
  }
});
