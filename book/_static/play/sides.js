/* Noise on one side of the weights and on both, in a valley of two weights. As in chapter 8. */

"use strict";

flatnb.sides = (() => {
  const ALONG = [0.88, 0.48];
  const ACROSS = [-0.48, 0.88];
  const dot = (v, w) => v[0] * w[0] + v[1] * w[1];
  const plus = (v, w, factor = 1) => [v[0] + factor * w[0], v[1] + factor * w[1]];
  const times = (v, factor) => [factor * v[0], factor * v[1]];
  const mean = (vectors) => times(vectors.reduce((sum, v) => plus(sum, v)), 1 / vectors.length);
  const length = (v) => Math.hypot(...v);

  /* The loss 0.3 a² + 2.5 b² + b⁴/2, with a along the valley and b across it. */
  const loss = (w) => {
    const [a, b] = [dot(ALONG, w), dot(ACROSS, w)];
    return 0.3 * a ** 2 + 2.5 * b ** 2 + b ** 4 / 2;
  };

  const gradient = (w) => {
    const [a, b] = [dot(ALONG, w), dot(ACROSS, w)];
    return plus(times(ALONG, 0.6 * a), ACROSS, 5 * b + 2 * b ** 3);
  };

  /* The gradient of sigma²/2 tr H. The second derivative across the valley is 5 + 6 b². */
  const traceTerm = (w, sigma) =>
    times(ACROSS, (sigma ** 2 / 2) * dot(ACROSS, ACROSS) * 12 * dot(ACROSS, w));

  const oneSide = (w, u) => gradient(plus(w, u));
  const bothSides = (w, u) => mean([oneSide(w, u), oneSide(w, times(u, -1))]);

  return { loss, gradient, traceTerm, oneSide, bothSides, plus, times, mean, length };
})();

flatnb.play("sides", (fig) => {
  const { loss, gradient, traceTerm, oneSide, bothSides } = flatnb.sides;
  const { plus, times, mean, length } = flatnb.sides;
  const { fixed } = flatnb;
  const COUNTS = [1, 3, 10, 30, 100, 300, 1000];
  const RATE = 0.2; // an arrow in the valley is the step of this learning rate
  const SHOWN = 100; // draws with a mark of their own
  fig.about(
    "Gradients at two mirrored random neighbors of the weights, and their mean.",
    "Drag *w*, redraw the noise, and compare the gradients on its two sides with that at *w*.",
  );
  const map = fig.plot({
    x: [-1.2, 3],
    y: [-0.8, 2.4],
    xticks: [-1, 0, 1, 2, 3],
    yticks: [0, 1, 2],
    grid: false,
    xlabel: "weight 1",
    ylabel: "weight 2",
    share: 1.2,
    equal: true,
  });
  const errors = fig.plot({
    x: [-2.6, 2.6],
    y: [-2.6, 2.6],
    xticks: [-2, 0, 2],
    yticks: [-2, 0, 2],
    title: "gradient minus that at *w*",
    share: 0.8,
    height: (width) => Math.min(330, width + 4),
  });
  const start = map.handle({
    label: "weights w",
    value: [1.2, 1.4],
    bounds: [[-0.4, 2.2], [-0.2, 1.7]],
    step: 0.05,
    text: ([x, y]) => `${fixed(x)}, ${fixed(y)}`,
  });
  const sigma = fig.slider({ label: "noise *σ*", min: 0.05, max: 0.5, step: 0.01, value: 0.3 });
  const count = fig.slider({
    label: "draws to average",
    min: 0,
    max: COUNTS.length - 1,
    step: 1,
    value: 0,
    to: (position) => COUNTS[position],
    show: (value) => String(value),
  });
  const FIRST = 567; // a first draw of middling length, and means that are typical
  let seed = FIRST;
  fig.button("New draw", () => seed++, () => (seed = FIRST));

  const LEVELS = flatnb.linspace(0.5, 10, 12);
  const ground = (x, y) => loss([x, y]);
  const band = (value) => LEVELS.filter((level) => value > level).length / LEVELS.length;

  const inside = ({ x, y }, [px, py]) => px >= x[0] && px <= x[1] && py >= y[0] && py <= y[1];

  fig.draw(() => {
    const w = start.value;
    const random = flatnb.normals(seed);
    const draw = () => times([random(), random()], sigma.value);
    const [us, vs] = [[], []]; // one-sided noise makes as many passes with v as NSO with -u
    for (let i = 0; i < count.value; i++) {
      us.push(draw());
      vs.push(draw());
    }
    const plain = gradient(w);
    const error = (g) => plus(g, plain, -1);
    const both = us.map((u) => error(bothSides(w, u)));
    const one = us.map((u, i) => error(mean([oneSide(w, u), oneSide(w, vs[i])])));
    const term = traceTerm(w, sigma.value);
    const [u] = us;
    const sides = [u, times(u, -1)];

    map.field(ground, band);
    map.line(sides.map((side) => plus(w, side)), { color: "gray", width: 1.5, dash: "4 4" });
    sides.forEach((side, i) => {
      const at = plus(w, side);
      if (!inside(map, at)) return;
      map.arrow(at, plus(at, oneSide(w, side), -RATE), { color: "violet" });
      map.dot(...at, { color: "violet" });
      const place = side[0] < 0 ? { anchor: "end", dx: -8 } : { dx: 8 };
      map.text(...at, i ? "*w* − *U*" : "*w* + *U*", { color: "violet", dy: -4, ...place });
    });
    map.arrow(w, plus(w, plain, -RATE), { width: 7, opacity: 0.45 });
    map.arrow(w, plus(w, plus(plain, mean(both)), -RATE), { color: "gold", width: 3 });

    errors.line([[-9, 0], [9, 0]], { color: "gray", width: 1 });
    errors.line([[0, -9], [0, 9]], { color: "gray", width: 1 });
    const rules = [
      [one, "plum", "square"],
      [both, "gold", "diamond"],
    ];
    if (count.value === 1) {
      for (const side of sides) {
        const e = error(oneSide(w, side));
        if (inside(errors, e)) errors.arrow([0, 0], e, { color: "violet" });
        else errors.line([[0, 0], e], { color: "violet" });
      }
      rules.shift();
    }
    for (const [found, color, shape] of rules) {
      for (const e of found.slice(0, SHOWN).filter((e) => inside(errors, e))) {
        errors.dot(...e, { color, shape, size: 2.5 });
      }
    }
    errors.dot(...term, { shape: "star", size: 10 });
    for (const [found, color, shape] of rules) {
      errors.dot(...mean(found), { color, shape, size: 6 });
    }

    const off = (v) => fixed(length(v));
    const far = (v) => fixed(length(plus(v, term, -1)), 3);
    fig.say(
      count.value === 1
        ? `The gradients at the {violet|two neighbors} are off by ${off(error(oneSide(w, sides[0])))} and ${off(error(oneSide(w, sides[1])))}, their {gold|mean} only by ${off(both[0])}: what is linear in *U* cancels. Over many draws the rest becomes the slope of the trace term (star), of length ${off(term)}.`
        : `Over ${count.value} draws, the mean of {gold|both sides} is ${far(mean(both))} from the star, the slope of the trace term (of length ${off(term)}); that of {plum|one side}, with as many passes, is ${far(mean(one))} from it.`,
    );
  });
});
