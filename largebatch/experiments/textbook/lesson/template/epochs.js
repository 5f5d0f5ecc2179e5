"use strict";
// The three variants over the same epochs of one linear regression.

widget("epochs", ({ get, tell, chosen, value, root }) => {
  const { curvature, noise_variance: noise, start, num_samples: numSamples, epochs, rates, divisors } = DATA.lesson.epochs;
  const task = textbook.quadratic(curvature, noise);
  const place = value("place"), against = chosen("against"), parallel = 2 ** value("parallel");
  const size = divisors[value("batch")];
  const variants = [["batch", numSamples], ["mini", size], ["stochastic", 1]].map(([name, batch]) => {
    const moments = task.epochSecondMoments(start, { lr: rates[name], numEpochs: epochs, batch, numSamples });
    const updates = numSamples / batch, { stepTime } = textbook.tradeOff({ fewestSteps: 1, noiseScale: 1, parallel });
    return { name, batch, updates, time: updates * stepTime(batch), losses: moments.map(task.meanLoss) };
  });
  const unit = { epochs: () => 1, updates: (one) => one.updates, time: (one) => one.time }[against];
  const all = variants.flatMap((one) => one.losses);
  const ends = variants.map((one) => epochs * unit(one));
  const range = against === "epochs" ? [0, epochs * 1.02] : [Math.min(...variants.map(unit)) / 1.1, Math.max(...ends) * 1.1];

  picture(get("picture"), {
    ratio: 0.56,
    x: { range, log: against !== "epochs", title: { epochs: "epochs", updates: "updates", time: "time, in steps of an empty batch" }[against] },
    y: { range: [Math.min(...all) / 1.5, Math.max(...all) * 1.5], log: true, title: "loss above the minimum" },
    paint: (at, group) => {
      for (const one of variants) {
        const first = against === "epochs" ? 0 : 1;
        const points = one.losses.map((loss, epoch) => [epoch * unit(one), loss]).slice(first);
        polyline(group, at, points, `${one.name} faint`);
        polyline(group, at, points.slice(0, Math.max(place + 1 - first, 0)), one.name);
        if (place >= first) {
          shape(group, "circle", { class: `point ${one.name}`, cx: at.x(place * unit(one)), cy: at.y(one.losses[place]), r: 5 });
        }
      }
    },
  });

  tell("place-text", `${place} of ${epochs}`);
  tell("batch-text", `${size} sample${size === 1 ? "" : "s"}`);
  tell("parallel-text", `${parallel.toLocaleString("en")} samples`);
  const quickest = Math.min(...variants.map((one) => one.time));
  variants.forEach((one) => {
    const cells = root.querySelector(`[data-row="${one.name}"]`).children;
    cells[1].textContent = one.batch.toLocaleString("en");
    cells[2].textContent = (place * one.updates).toLocaleString("en");
    cells[3].textContent = `${short(one.time / quickest)} ×`;
    cells[4].textContent = short(one.losses[place]);
  });
  const names = { batch: "Batch descent", mini: "Mini-batch descent", stochastic: "Stochastic descent" };
  const best = variants.reduce((a, b) => (b.losses[place] < a.losses[place] ? b : a));
  tell("answer", place === 0
    ? "All three begin at the same weights."
    : `After ${place} epoch${place > 1 ? "s" : ""} ${names[best.name].toLowerCase()} is closest: ${short(best.losses[place])} above the minimum after ${(place * best.updates).toLocaleString("en")} updates. `
      + `Batch descent made ${place}, stochastic descent ${(place * numSamples).toLocaleString("en")}, at ${short(variants[2].time / quickest)} times the time of the quickest.`);
});
