"use strict";
// The arithmetic of the widgets: largebatch.diagnostics.closed_forms.NoisyQuadratic, and a model of time.
// A test holds every function to its Python namesake.

const textbook = {};
window.textbook = textbook;

// L(theta) = 1/2 sum h theta^2; the gradient of a sample is h theta + e, Var e = c. Momentum as in torch.
textbook.quadratic = (curvature, noiseVariance) => {
  const h = curvature, c = noiseVariance, highest = Math.max(...curvature);
  const total = (values) => values.reduce((sum, value) => sum + value, 0);
  const loss = (theta) => 0.5 * total(h.map((value, i) => value * theta[i] ** 2));
  const meanLoss = (moments) => 0.5 * total(h.map((value, i) => value * moments[i]));
  const gradient = (theta) => h.map((value, i) => value * theta[i]);
  const maxStableLr = (momentum = 0) => 2 * (1 + momentum) / highest;

  // Weights after 0, 1, ..., numSteps steps; `noise(step, coordinate)` is a standard normal draw.
  function path(start, { lr, numSteps, momentum = 0, batch = Infinity, noise = () => 0 }) {
    const points = [start];
    let velocity = start.map(() => 0);
    for (let step = 0; step < numSteps; step += 1) {
      const now = points[step];
      velocity = velocity.map((v, i) => momentum * v + h[i] * now[i] + Math.sqrt(c[i] / batch) * noise(step, i));
      points.push(now.map((value, i) => value - lr * velocity[i]));
    }
    return points;
  }

  // lr c / (B h (2 - lr h)) without momentum.
  function stationaryVariance({ lr, batch, momentum = 0 }) {
    const gain = (1 + momentum) / (1 - momentum);
    return h.map((value, i) => gain * lr * c[i] / (batch * value * (2 * (1 + momentum) - lr * value)));
  }

  // E[theta^2] after 0, 1, ... epochs without replacement; the batch divides the number of samples.
  function epochSecondMoments(start, { lr, numEpochs, batch, numSamples }) {
    const updates = numSamples / batch;
    const added = h.map((value, i) => {
      let squares = 0, sum = 0;
      for (let k = 0; k < updates; k += 1) {
        const power = (1 - lr * value) ** k;
        squares += power ** 2;
        sum += power;
      }
      return lr ** 2 * c[i] * (updates * squares - sum ** 2) / (numSamples - 1);
    });
    const kept = h.map((value) => (1 - lr * value) ** (2 * updates));
    const moments = [start.map((value) => value ** 2)];
    for (let epoch = 0; epoch < numEpochs; epoch += 1) {
      moments.push(moments[epoch].map((value, i) => kept[i] * value + added[i]));
    }
    return moments;
  }

  // From the eigenvalues r of a step, r^2 - (1 + m - lr h) r + m = 0.
  function kind(lr, momentum = 0) {
    if (lr > maxStableLr(momentum) * (1 + 1e-12)) return "diverges";
    const turns = (value) => value ** 2 < 4 * momentum || value < 0;
    return h.some((value) => turns(1 + momentum - lr * value)) ? "oscillates" : "converges";
  }

  // The largest |r|: what a step does to the error in the long run.
  function errorFactor(lr, momentum = 0) {
    return Math.max(...h.map((value) => {
      const middle = Math.abs(1 + momentum - lr * value), under = middle ** 2 - 4 * momentum;
      return under < 0 ? Math.sqrt(momentum) : (middle + Math.sqrt(under)) / 2;
    }));
  }

  return { loss, meanLoss, gradient, maxStableLr, path, stationaryVariance, epochSecondMoments, kind, errorFactor };
};

// Fewest steps S_min (1 + B_crit/B) to a target; a step of B samples takes 1 + B/P times as long as its fixed part.
textbook.tradeOff = ({ fewestSteps, noiseScale, parallel }) => {
  const steps = (batch) => fewestSteps * (1 + noiseScale / batch);
  const stepTime = (batch) => 1 + batch / parallel;
  const time = (batch) => steps(batch) * stepTime(batch);
  return {
    steps,
    stepTime,
    time,
    samples: (batch) => batch * steps(batch),
    fastest: Math.sqrt(noiseScale * parallel), // where the derivative of the time is 0
    leastTime: fewestSteps * (1 + Math.sqrt(noiseScale / parallel)) ** 2,
    leastSamples: fewestSteps * noiseScale,
    noise: (batch) => Math.sqrt(noiseScale / batch), // standard deviation over the gradient's norm
    throughput: (batch) => batch / (batch + parallel), // share of the largest samples per second
    usefulShare: (batch) => 1 / (1 + batch / noiseScale), // fewest samples over those that the batch takes
  };
};

textbook.scaleLr = (lr, { batch, base, rule }) => lr * ({ linear: batch / base, sqrt: Math.sqrt(batch / base) })[rule];

// Standard normal draws that depend on seed, step and coordinate alone: a replay has the same noise.
textbook.noiseOf = (seed) => {
  const uniform = (key) => { // the mixing function of MurmurHash3, twice
    let value = (key ^ Math.imul(seed + 1, 0x9e3779b9)) >>> 0;
    for (let round = 0; round < 2; round += 1) {
      value = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
      value = Math.imul(value ^ (value >>> 13), 0xc2b2ae35);
      value = (value ^ (value >>> 16)) + 0x9e3779b9;
    }
    return ((value >>> 0) + 0.5) / 2 ** 32;
  };
  return (step, coordinate) => {
    const key = 2 * (step * 64 + coordinate);
    return Math.sqrt(-2 * Math.log(uniform(key))) * Math.cos(2 * Math.PI * uniform(key + 1));
  };
};
