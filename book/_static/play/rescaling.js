/* Rescaling a ReLU net by c: its function stays, the curvature of its loss does not. As in
   chapter 2, whose net and points the page has. */

"use strict";

flatnb.rescaling = (() => {
  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  const times = (rows, factor) => rows.map((row) => row.map((value) => value * factor));

  /* A net {W1, b1, W2, b2} whose first layer is multiplied by c, and W2 divided by it. */
  const rescaled = ({ W1, b1, W2, b2 }, c) => ({
    W1: times(W1, c),
    b1: b1.map((value) => value * c),
    W2: times(W2, 1 / c),
    b2,
  });

  const features = (net, x) => net.W1.map((row, i) => Math.max(0, dot(row, x) + net.b1[i]));
  const logits = (net, x) => {
    const phi = features(net, x);
    return net.W2.map((row, k) => dot(row, phi) + net.b2[k]);
  };

  /* The trace of the Hessian at c, from those of its blocks at c = 1. */
  const trace = ({ first, last, bias }, c) => first / c ** 2 + c ** 2 * last + bias;

  /* Relative flatness of the second layer, over the points. */
  const kappa = (net, points) => {
    const terms = points.map((x) => {
      const phi = features(net, x);
      const z = net.W2.map((row, k) => dot(row, phi) + net.b2[k]);
      const weights = z.map((value) => Math.exp(value - Math.max(...z)));
      const total = weights.reduce((sum, value) => sum + value);
      const p = weights.map((value) => value / total);
      const mean = phi.map((_, j) => dot(p, net.W2.map((row) => row[j])));
      const spread = net.W2.map((row) => row.reduce((sum, w, j) => sum + (w - mean[j]) ** 2, 0));
      return dot(phi, phi) * dot(p, spread);
    });
    return terms.reduce((sum, value) => sum + value) / points.length;
  };

  /* What a step raises the loss by, to second order: half the mean curvature of its layer times
     its squared length. The half axes of the ellipse of steps (in the first layer, in W2) that
     raise it by `rise`, averaged over the directions in each layer. */
  const axes = ([first, last], c, rise) => [
    c * Math.sqrt((2 * rise) / first),
    Math.sqrt((2 * rise) / last) / c,
  ];

  return { rescaled, logits, trace, kappa, axes };
})();

flatnb.play("rescaling", (fig) => {
  const { rescaled, logits, trace, kappa, axes } = flatnb.rescaling;
  const short = (value, digits = 2) => String(Number(value.toPrecision(digits)));
  const { net, points, labels, blocks, sizes, factors, eigenvalues } = fig.data;
  const MOST = factors[factors.length - 1];
  const one = (factors.length - 1) / 2; // where c = 1
  const curvatures = [blocks.first / sizes.first, blocks.last / sizes.last];
  const rise = Math.sqrt(curvatures[0] * curvatures[1]) / 2; // so that its area is that of the circle
  const before = points.map((x) => logits(net, x));
  const traces = factors.map((c) => trace(blocks, c));
  const flatness = factors.map((c) => kappa(rescaled(net, c), points));

  fig.about(
    "A net's function, the steps in its two layers that cost the same, and measures of flatness.",
    "Multiply the first layer by *c*, divide the second by *c*, and watch what changes.",
  );
  fig.beside(true);
  const extent = (i) => {
    const values = points.map((x) => x[i]);
    return [Math.min(...values) - 0.3, Math.max(...values) + 0.3];
  };
  const plane = fig.plot({
    x: extent(0),
    y: extent(1),
    xticks: [],
    yticks: [],
    title: "the function",
    xlabel: "*x*₁",
    ylabel: "*x*₂",
    share: 1.25,
    height: (width) => Math.min(268, width + 14),
  });
  const WINDOW = 3.4;
  const steps = fig.plot({
    x: [-WINDOW, WINDOW],
    y: [-WINDOW, WINDOW],
    xticks: [],
    yticks: [],
    title: "steps of equal cost",
    xlabel: "step in layer 1",
    ylabel: "step in layer 2",
    next: plane,
    equal: true,
  });
  const measures = fig.plot({
    x: [factors[0], MOST],
    y: [0.5, 1.3 * Math.max(...traces.map((value) => value / traces[one]))],
    xlog: true,
    ylog: true,
    xticks: [factors[0], 1, MOST],
    title: "relative to *c* = 1",
    xlabel: "factor *c*",
    share: 0.75,
    height: (width) => (fig.narrow ? 200 : Math.min(268, width + 54)),
  });
  const factor = fig.slider({
    label: "factor *c* on the first layer",
    min: 0,
    max: factors.length - 1,
    step: 1,
    value: Math.round(1.3 * one), // where the ellipse is not yet a circle
    to: (position) => factors[position],
    show: (c) => short(c, 3),
  });

  const score = (x, y) => {
    const [first, second] = logits(net, [x, y]);
    return second - first;
  };
  const side = (value) => (value > 0 ? 0.55 : 0);
  const round = (a, b) =>
    flatnb.linspace(0, 2 * Math.PI, 181).map((t) => [a * Math.cos(t), b * Math.sin(t)]);

  fig.draw(() => {
    const c = factor.value;
    const now = factors.indexOf(c);
    const changes = points.map((x, i) =>
      Math.max(...logits(rescaled(net, c), x).map((z, k) => Math.abs(z - before[i][k]))),
    );

    plane.field(score, side);
    points.forEach((x, i) => plane.dot(...x, { size: 3, hollow: !labels[i] }));

    for (const end of [[WINDOW, 0], [0, WINDOW]]) {
      steps.line([end.map((value) => -value), end], { color: "grid", width: 1 });
    }
    const ellipse = round(...axes(curvatures, c, rise));
    steps.area(ellipse, { color: "blue" });
    steps.line(ellipse, { color: "blue" });
    steps.line(round(1, 1), { color: "gray", dash: "2 4", width: 1.5 });

    for (const [values, color, dash] of [
      [flatness, "green", "none"],
      [traces, "black", "none"],
      [eigenvalues, "red", "6 4"],
    ]) {
      const relative = values.map((value) => value / values[one]);
      measures.line(relative.map((value, i) => [factors[i], value]), { color, dash });
      measures.dot(c, relative[now], { color });
    }
    const middle = Math.sqrt(measures.y[1]);
    const label = { anchor: "middle", size: measures.width < 240 ? 12 : 14 };
    measures.text(1, middle, "trace", { ...label, dy: -30 });
    measures.text(1, middle, "top eigenvalue", { ...label, dy: -14, color: "red" });
    measures.text(1, 1, "relative flatness", { ...label, dy: 20, color: "green" });

    fig.say(words(c, Math.max(...changes), now));
  });

  const words = (c, change, now) => {
    const [t, e, k] = [traces, eigenvalues, flatness].map((values) => short(values[now]));
    const times = (values) => {
      const ratio = values[now] / values[one];
      return `${ratio < 10 ? ratio.toFixed(1) : short(ratio)} times`;
    };
    if (now === one) {
      return `The net as it was trained: trace {black|${t}}, top eigenvalue {red|${e}}, relative flatness {green|${k}}.`;
    }
    const moved = change < 1e-9 ? "No prediction changes" : `A logit changes by ${short(change)}`;
    return (
      `${moved}. The trace is {black|${t}}, ${times(traces)} what it was; the top eigenvalue ` +
      `{red|${e}}, ${times(eigenvalues)}; relative flatness is still {green|${k}}.`
    );
  };
});
