/* The valley w₁w₂ = 1 of the loss (w₁w₂ - 1)² / 2: where does each method stop? As in chapter 3. */

"use strict";

flatnb.valley = (() => {
  const loss = ([x, y]) => (x * y - 1) ** 2 / 2;
  const gradient = ([x, y]) => [(x * y - 1) * y, (x * y - 1) * x];
  const trace = ([x, y]) => x ** 2 + y ** 2;

  const plus = (w, v, factor = 1) => w.map((value, i) => value + factor * v[i]);
  const times = (v, factor) => v.map((value) => factor * value);

  /* The gradient at w + radius g / ‖g‖, uphill of w. */
  const uphill = (w, radius) => {
    const g = gradient(w);
    return gradient(plus(w, g, radius / Math.max(Math.hypot(...g), 1e-12)));
  };

  const ALPHA = 0.8; // of GNP
  const DRAWS = 4; // of NSO, per step

  /* What each method puts in the place of the gradient; `value` is its hyperparameter, `random`
     a function that draws a standard normal number. */
  const RULES = {
    ERM: (w) => gradient(w),
    SAM: (w, rho) => uphill(w, rho),
    GNP: (w, r) => plus(times(gradient(w), 1 - ALPHA), uphill(w, r), ALPHA),
    NSO: (w, sigma, random) => {
      let sum = [0, 0];
      for (let draw = 0; draw < DRAWS; draw++) {
        const u = [random(), random()];
        for (const side of [sigma, -sigma]) sum = plus(sum, gradient(plus(w, u, side)));
      }
      return times(sum, 1 / (2 * DRAWS));
    },
    Flooding: (w, level) => times(gradient(w), Math.sign(loss(w) - level)),
    SoftAD: (w, theta) => {
      const x = loss(w) - theta;
      return times(gradient(w), x / Math.sqrt(x ** 2 + 1));
    },
    FAM: (w, lam) => plus(gradient(w), [w[1], w[0]], lam * 2 * w[0] * w[1]),
  };

  /* The points of gradient descent with a method's rule, the start included; it ends early if
     it diverges. */
  const path = (name, value, start, { lr = 0.05, steps = 400, random = flatnb.normals(0) } = {}) => {
    const points = [start];
    while (points.length <= steps && Math.hypot(...points[points.length - 1]) < 100) {
      const w = points[points.length - 1];
      points.push(plus(w, RULES[name](w, value, random), -lr));
    }
    return points;
  };

  return { ALPHA, DRAWS, RULES, loss, gradient, trace, path };
})();

flatnb.play("valley", (fig) => {
  const { loss, trace, path } = flatnb.valley;
  const { fixed } = flatnb;
  const STEPS = 400;
  const LEVELS = [0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2];
  const METHODS = {
    ERM: { color: "black", shape: "circle" },
    SAM: { color: "blue", shape: "square", slider: ["radius *ρ*", 0, 0.6, 0.3] },
    GNP: { color: "pink", shape: "star", size: 9, slider: ["radius *r*", 0, 0.6, 0.3] },
    NSO: { color: "gold", shape: "diamond", slider: ["noise *σ*", 0, 0.6, 0.3] },
    Flooding: { color: "red", shape: "square", slider: ["flood level *b*", 0, 0.5, 0.1] },
    SoftAD: { color: "green", shape: "diamond", slider: ["threshold *θ*", 0, 0.5, 0.1] },
    FAM: { color: "sky", shape: "circle", slider: ["weight *λ* of κ", 0, 0.3, 0.05] },
  };

  fig.about(
    "Paths of training methods into the valley of minima where w₁ times w₂ is 1.",
    "Drag the start, choose a method, and watch where its path ends.",
  );
  fig.beside();
  const map = fig.plot({
    x: [0, 3.4],
    y: [0, 2.1],
    xticks: [0, 1, 2, 3],
    yticks: [0, 1, 2],
    grid: false,
    xlabel: "*w*₁",
    ylabel: "*w*₂",
    share: 1.4,
    equal: true,
  });
  const traces = fig.plot({
    x: [0, STEPS],
    y: [0, 12],
    xticks: [0, 200, 400],
    yticks: [0, 6, 12],
    title: "trace",
    share: 0.6,
    height: () => 115,
  });
  const products = fig.plot({
    x: [0, STEPS],
    y: [0, 2],
    xticks: [0, 200, 400],
    yticks: [0, 1, 2],
    title: "*w*₁*w*₂",
    xlabel: "step",
    next: traces,
    height: () => 135,
  });
  const start = map.handle({
    label: "start of the path",
    value: [3, 1],
    bounds: [[0.1, 3.4], [0.1, 2.1]],
    step: 0.05,
    text: ([x, y]) => `w₁ = ${fixed(x)}, w₂ = ${fixed(y)}`,
  });
  const method = fig.choice({
    label: "method",
    options: Object.entries(METHODS).map(([name, { color }]) => [name, name, color]),
    value: "SAM",
  });
  for (const one of Object.values(METHODS).filter(({ slider }) => slider)) {
    const [label, min, max, value] = one.slider;
    one.control = fig.slider({ label, min, max, step: 0.01, value });
  }
  const rate = fig.slider({ label: "learning rate *η*", min: 0.01, max: 0.35, step: 0.01, value: 0.05 });
  let seed = 0;
  const redraw = fig.button("New noise", () => seed++, () => (seed = 0));

  const band = (value) => LEVELS.filter((level) => value > level).length / LEVELS.length;
  const height = (x, y) => loss([x, y]);
  let before = null;

  fig.draw(() => {
    const name = method.value;
    const { color, shape, size, control } = METHODS[name];
    for (const [other, one] of Object.entries(METHODS)) {
      if (one.control) one.control.hidden = other !== name;
    }
    redraw.hidden = name !== "NSO";

    const settings = { lr: rate.value, steps: STEPS, random: flatnb.normals(seed) };
    const points = path(name, control ? control.value : 0, start.value, settings);
    const plain = path("ERM", 0, start.value, settings);

    map.field(height, band);
    map.line(flatnb.linspace(0.4, 3.4, 120).map((x) => [x, 1 / x]), { color: "gray", width: 1.5, dash: "1 5" });
    map.dot(1, 1, { color: "black", shape: "star", size: 10, hollow: true });
    map.text(1, 1, "flattest", { anchor: "end", dx: -12, dy: 16 });
    map.text(...start.value, "start", { anchor: "middle", dy: start.value[1] > 1.9 ? 30 : -18 });
    const fresh = before !== null && name !== before;
    for (const [steps, look] of [
      [plain, { color: "gray", width: 1.5, shape: "circle" }],
      [points, { color, width: 2, shape, grow: fresh }],
    ]) {
      if (steps === plain && name === "ERM") continue;
      map.line(steps, look);
      traces.line(steps.map((w, i) => [i, trace(w)]), look);
      products.line(steps.map(([x, y], i) => [i, x * y]), look);
      const last = steps[steps.length - 1];
      const end = { color: look.color, shape: look.shape, size: (steps === points && size) || 6 };
      if (Math.hypot(...last) < 5) map.dot(...last, end);
    }
    before = name;
    fig.say(words(name, points, plain));
  });

  const words = (name, points, plain) => {
    const { color } = METHODS[name];
    const [last, stop] = [points, plain].map((steps) => steps[steps.length - 1]);
    if (points.length <= STEPS) return `{${color}|${name}} diverges: the steps are too long for this start.`;
    const [sharp, flat] = [trace(stop), trace(last)];
    const ends = `{${color}|${name}} ends at *w*₁*w*₂ = ${fixed(last[0] * last[1])} with trace {${color}|${fixed(flat, 1)}}`;
    if (name === "ERM") return `${ends}. ${stopping(start.value)}`;
    const erm = `; ERM (gray) ${plain.length <= STEPS ? "diverges" : `stops at ${fixed(sharp, 1)}`}.`;
    const reason = REASONS[name](points, METHODS[name].control.value, flat < 0.9 * sharp);
    return `${ends}${erm} ${reason}`;
  };

  /* ERM's small steps keep w₁² - w₂², and so lead to a known point of the valley. */
  const stopping = ([x, y]) => {
    const sharp = Math.sqrt((x ** 2 - y ** 2) ** 2 + 4);
    const limit = 2 / rate.value;
    return sharp > limit
      ? `Steps this long cannot stay where the trace is above 2/*η* = ${fixed(limit, 1)}.`
      : "It stops where it meets the valley; at the flattest point the trace is 2.";
  };

  /* The mean of f over the last 50 points: a single one may be on either side of the valley. */
  const late = (points, f) => points.slice(-50).reduce((sum, w) => sum + f(w), 0) / 50;

  const along = (points, _, flatter) => {
    if (!flatter) return "";
    const product = late(points, ([x, y]) => x * y);
    const shrunken = product < 0.97 ? ", and the function shrinks a little" : "";
    return `It follows the valley to flatter ground${shrunken}.`;
  };
  const held = (points, level) => {
    return level > 0 && Math.abs(late(points, loss) - level) < 0.2 * level
      ? `Its loss is held near ${fixed(level)}: it does not reach the floor.`
      : "";
  };
  const REASONS = {
    SAM: along,
    GNP: along,
    NSO: along,
    Flooding: held,
    SoftAD: held,
    FAM: (_, lam) =>
      lam > 0 ? "Its penalty is the same all along the valley: it can only shrink the function." : "",
  };
});
