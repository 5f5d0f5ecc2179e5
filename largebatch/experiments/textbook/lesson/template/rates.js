"use strict";
// How large a learning rate may be: the path, its loss and the word for it.

widget("rates", ({ get, tell, value }) => {
  const { curvature, start, steps } = DATA.lesson.rates;
  const task = textbook.quadratic(curvature, curvature.map(() => 0));
  const lr = value("lr"), momentum = value("momentum"), limit = task.maxStableLr(momentum);
  const kind = task.kind(lr, momentum);
  const path = task.path(start, { lr, momentum, numSteps: steps });
  const losses = path.map(task.loss);
  const reached = losses.findIndex((loss) => loss <= losses[0] / 100);

  landscape(get("path"), {
    curvature,
    levels: [0.05, 0.3, 1, 2, 3.5, 5],
    x: { range: [-1.5, 1.5], title: `flat direction, curvature ${curvature[0]}` },
    y: { range: [-1.5, 1.5], title: `steep direction, curvature ${curvature[1]}` },
    paint: (at, group) => {
      polyline(group, at, path, kind);
      for (const [x, y] of path) {
        if (Math.abs(x) < 5 && Math.abs(y) < 5) shape(group, "circle", { class: `dot ${kind}`, cx: at.x(x), cy: at.y(y), r: 2.6 });
      }
    },
  });
  picture(get("curve"), {
    ratio: 0.9,
    x: { range: [0, steps], title: "steps" },
    y: { range: [1e-6, 1e4], log: true, title: "loss over the first" },
    paint: (at, group) => {
      shape(group, "line", { class: "mark", x1: at.x(0), x2: at.x(steps), y1: at.y(1), y2: at.y(1) });
      polyline(group, at, losses.map((loss, step) => [step, Math.max(loss / losses[0], 1e-30)]), kind);
    },
  });

  tell("lr-text", short(lr));
  tell("momentum-text", short(momentum));
  get("state").dataset.state = kind;
  tell("state", kind);
  tell("limit", short(limit));
  tell("share", percent(lr / limit));
  tell("reached", reached < 0 ? `not in ${steps}` : `${reached}`);
  tell("answer", sentence());

  function sentence() {
    const rule = `2 (1 + momentum) / ${curvature[1]} = ${short(limit)}`;
    if (kind === "diverges") return `Too large: each step multiplies the error of the steep direction by ${short(task.errorFactor(lr, momentum))}. Rates converge below ${rule}.`;
    if (Math.abs(lr / limit - 1) < 1e-9) return `Exactly the limit, ${rule}: the steep direction neither shrinks nor grows.`;
    const pace = reached < 0 ? `1 % of the first loss is more than ${steps} steps away` : `1 % of the first loss takes ${reached} steps`;
    if (kind === "oscillates") return `It overshoots and comes back, since ${short(lr)} is below ${rule}; ${pace}.`;
    return `It walks straight in, at ${percent(lr / limit)} of the limit ${rule}; ${pace}.`;
  }
});
