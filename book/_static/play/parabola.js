/* Flooding and soft ascent-descent on the smallest loss, f(x) = x²/2. As in chapter 5. */

"use strict";

flatnb.parabola = (() => {
  const loss = (x) => x ** 2 / 2;

  /* The weight of the gradient, from the loss minus the level. */
  const WEIGHTS = {
    ERM: () => 1,
    Flooding: (distance) => Math.sign(distance),
    SoftAD: (distance, width) => distance / Math.hypot(distance, width),
  };

  /* The iterates of a method, the start included. */
  const walk = (name, { level, width, rate, start = -2, steps = 100 }) => {
    const path = [start];
    for (let step = 0; step < steps; step++) {
      const x = path[step];
      path.push(x - rate * WEIGHTS[name](loss(x) - level, width) * x);
    }
    return path;
  };

  /* Near the level the factor of one step of SoftAD is 1 - 2 rate level / width, so it comes to
     rest from this width on. */
  const restingWidth = ({ level, rate }) => rate * level;

  /* The lowest and the highest of the last losses, and whether they are all but equal. */
  const ending = (path, last = 20) => {
    const losses = path.slice(-last).map(loss);
    const [low, high] = [Math.min(...losses), Math.max(...losses)];
    return { low, high, still: high - low < 0.002 };
  };

  return { loss, walk, restingWidth, ending };
})();

flatnb.play("parabola", (fig) => {
  const { loss, walk, restingWidth, ending } = flatnb.parabola;
  const { fixed } = flatnb;
  const STEPS = 100;
  const METHODS = {
    ERM: { color: "black", shape: "circle", text: "gradient descent" },
    Flooding: { color: "red", shape: "square", text: "Flooding" },
    SoftAD: { color: "green", shape: "diamond", text: "SoftAD" },
  };
  fig.about(
    "Gradient descent, Flooding and soft ascent-descent on a parabola.",
    "Move the level, the width and the learning rate, and see which method comes to rest.",
  );
  const shared = { y: [0, 2.1], yticks: [0, 0.5, 1, 1.5, 2], height: 240 };
  const bowl = fig.plot({
    ...shared,
    x: [-2.15, 0.35],
    xticks: [-2, -1, 0],
    xlabel: "*x*",
    ylabel: "loss *f*(*x*)",
  });
  const time = fig.plot({ ...shared, x: [0, STEPS], xticks: [0, 50, 100], xlabel: "step" });
  const level = fig.slider({
    label: "level, or threshold, *θ*",
    min: 0.05,
    max: 1.2,
    step: 0.01,
    value: 0.5,
  });
  const width = fig.slider({
    label: "width *σ* of SoftAD",
    min: -2,
    max: 0.4,
    step: 0.05,
    value: 0,
    to: (position) => 10 ** position,
    show: (value) => fixed(value, value < 0.1 ? 3 : 2),
  });
  const rate = fig.slider({
    label: "learning rate *η*",
    min: 0.02,
    max: 0.9,
    step: 0.01,
    value: 0.1,
  });

  let shown = STEPS;
  let timer = null;
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
    fig.button("Play the steps", () => {
      clearInterval(timer);
      shown = 0;
      timer = setInterval(() => {
        shown += 1;
        if (shown >= STEPS) clearInterval(timer);
        fig.update();
      }, 45); // less than five seconds in all
    });
  }

  /* An arc from one iterate to the next, over the curve (side 1) or under it (side -1). */
  const hop = (from, to, side) =>
    flatnb.linspace(0, 1, 15).map((t) => {
      const x = from + t * (to - from);
      return [x, loss(x) + side * 4 * t * (1 - t) * Math.min(0.5, 2 * Math.abs(to - from))];
    });

  fig.draw(() => {
    const now = { level: level.value, width: width.value, rate: rate.value, steps: STEPS };
    const dotted = { color: "gray", width: 1.5, dash: "2 5" };
    bowl.line(flatnb.linspace(...bowl.x, 80).map((x) => [x, loss(x)]), { color: "gray" });
    for (const plot of [bowl, time]) {
      plot.line(plot.x.map((x) => [x, now.level]), dotted);
    }
    bowl.text(0.3, now.level, "*θ*", { anchor: "end", dy: -6, color: "gray" });

    const ends = {};
    Object.entries(METHODS).forEach(([name, { color, shape, text }], row) => {
      const path = walk(name, now);
      ends[name] = ending(path);
      const seen = path.slice(0, shown + 1);
      time.line(seen.map((x, step) => [step, loss(x)]), { color });
      time.text(STEPS, 2.1, text, { color, anchor: "end", dx: -4, dy: 16 + 19 * row });
      const recent = seen.slice(-6);
      for (const [i, x] of recent.slice(1).entries()) {
        bowl.line(hop(recent[i], x, name === "Flooding" ? 1 : -1), { color, width: 1.5 });
      }
      const x = seen[shown];
      bowl.dot(x, loss(x), { color, shape, size: 6 });
      time.dot(shown, loss(x), { color, shape, size: 5 });
    });
    fig.say(words(now, ends));
  });

  const words = (now, { ERM, Flooding, SoftAD }) => {
    const needed = restingWidth(now);
    const limit = `*ηθ* = ${fixed(needed, needed < 0.1 ? 3 : 2)}`;
    const between = ({ low, high }) => `between losses ${fixed(low)} and ${fixed(high)}`;
    const crosses = ({ low, high }) => low < now.level && high > now.level;
    const parts = [
      ERM.still
        ? "{black|gradient descent} is in the minimum"
        : `{black|gradient descent} is on its way to the minimum, at loss ${fixed(ERM.low)}`,
      crosses(Flooding)
        ? `{red|Flooding} still hops about its level, ${between(Flooding)}`
        : `{red|Flooding} is on its way to its level, at loss ${fixed(Flooding.low)}`,
    ];
    let soft = `{green|SoftAD} rests at its threshold: *σ* is above ${limit}.`;
    if (now.width < needed) {
      soft = `{green|SoftAD} hops, too, ${between(SoftAD)}: *σ* is below ${limit}.`;
    } else if (!SoftAD.still || Math.abs(SoftAD.high - now.level) > 0.005) {
      soft = crosses(SoftAD)
        ? `{green|SoftAD} hops ever less, ${between(SoftAD)}: *σ* is just above ${limit}.`
        : `{green|SoftAD} is slowing down towards its threshold, at loss ${fixed(SoftAD.low)}.`;
    }
    return `After ${STEPS} steps ${parts.join(", and ")}. ${soft}`;
  };
});
