"use strict";
// Batch sizes from 1 to 4096: steps, samples and time to a target, from the noise scale and the speed of the machine.

widget("sizes", ({ get, tell, chosen, value }) => {
  const { fewest_steps: fewestSteps, base_batch: base, sizes, tolerance } = DATA.lesson.sizes;
  const batch = sizes[value("batch")], noiseScale = 2 ** value("noise"), parallel = 2 ** value("parallel");
  const lr = value("lr"), rule = chosen("rule");
  const task = textbook.tradeOff({ fewestSteps, noiseScale, parallel });
  const slower = (size) => task.time(size) / task.leastTime;
  const good = sizes.filter((size) => slower(size) <= 1 + tolerance);
  const curves = [
    ["steps", (size) => task.steps(size) / fewestSteps],
    ["samples", (size) => task.samples(size) / task.leastSamples],
    ["time", slower],
  ];

  picture(get("picture"), {
    ratio: 0.56,
    x: { range: [1, sizes.at(-1)], log: true, title: "batch size" },
    y: { range: [0.8, 1000], log: true, title: "times the least possible" },
    paint: (at, group, svg, frame) => {
      if (good.length) {
        const from = at.x(good[0]), to = at.x(good.at(-1));
        shape(group, "rect", { class: "good", x: from - 2, width: to - from + 4, y: frame.top, height: frame.bottom - frame.top });
      }
      for (const [name, of] of curves) polyline(group, at, sizes.map((size) => [size, of(size)]), name);
      shape(group, "line", { class: "mark", x1: at.x(batch), x2: at.x(batch), y1: frame.top, y2: frame.bottom });
      for (const [name, of] of curves) shape(group, "circle", { class: `point ${name}`, cx: at.x(batch), cy: at.y(of(batch)), r: 5 });
    },
  });

  tell("batch-text", `${batch.toLocaleString("en")} samples`);
  tell("noise-text", `${noiseScale.toLocaleString("en")} samples`);
  tell("parallel-text", `${parallel.toLocaleString("en")} samples`);
  tell("lr-text", `${short(lr)} at batch ${base}`);
  tell("steps", short(task.steps(batch)));
  tell("samples", `${short(task.samples(batch))}, fewest + ${percent(1 / task.usefulShare(batch) - 1)}`);
  tell("step-time", `${short(task.stepTime(batch))} × its fixed part`);
  tell("time", `${short(slower(batch))} × the least`);
  tell("throughput", `${percent(task.throughput(batch))} of the most`);
  tell("noise-sd", `${short(task.noise(batch))} × the gradient`);
  tell("scaled", short(textbook.scaleLr(lr, { batch, base, rule })));
  tell("answer", advice());

  function advice() {
    const within = `Take ${good[0]?.toLocaleString("en")}: the smallest batch within ${percent(tolerance)} of the least time, which is at ${short(task.fastest)}.`;
    if (!good.length) return `The least time is at batch ${short(task.fastest)}, beyond this slider: take the largest that fits.`;
    if (batch < good[0]) return `Too small: batch ${batch} takes ${short(slower(batch))} times the least time, and the device idles. ${within}`;
    if (batch > good.at(-1)) return `Too large: ${percent(1 - task.usefulShare(batch))} of the samples of batch ${batch.toLocaleString("en")} bring nothing. ${within}`;
    if (batch === good[0]) return `A good choice: within ${percent(tolerance)} of the least time, with the fewest samples for it.`;
    return `Near the least time. A smaller batch saves samples: ${within}`;
  }
});
