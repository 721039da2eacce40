/* SAM's ball in a slice through the loss of a real net, whose values the cell wrote. As in
   chapter 6. */

"use strict";

flatnb.ball = (() => {
  /* Catmull and Rom's cubic through four neighbors: their weights at t in [0, 1] between the
     middle two, and the derivatives of the weights. */
  const weights = (t) => [
    (-t + 2 * t ** 2 - t ** 3) / 2,
    (2 - 5 * t ** 2 + 3 * t ** 3) / 2,
    (t + 4 * t ** 2 - 3 * t ** 3) / 2,
    (t ** 3 - t ** 2) / 2,
  ];
  const slopes = (t) => [
    (-1 + 4 * t - 3 * t ** 2) / 2,
    (-10 * t + 9 * t ** 2) / 2,
    (1 + 8 * t - 9 * t ** 2) / 2,
    (3 * t ** 2 - 2 * t) / 2,
  ];

  /* The loss and its gradient between the grid's points. `data.losses` are the rows of a square
     grid over [-extent, extent]², in ten-thousandths. */
  const slice = ({ extent, points, losses }) => {
    const spacing = (2 * extent) / (points - 1);
    const sum = (across, up, column, row) => {
      let total = 0;
      for (let j = 0; j < 4; j++) {
        for (let i = 0; i < 4; i++) {
          total += across[i] * up[j] * losses[(row + j) * points + column + i];
        }
      }
      return total / 1e4;
    };
    const cell = (value) => {
      const place = (value + extent) / spacing;
      const index = Math.min(points - 3, Math.max(1, Math.floor(place)));
      return [index - 1, place - index];
    };
    const loss = ([x, y]) => {
      const [[column, t], [row, u]] = [cell(x), cell(y)];
      return sum(weights(t), weights(u), column, row);
    };
    const gradient = ([x, y]) => {
      const [[column, t], [row, u]] = [cell(x), cell(y)];
      const parts = [[slopes(t), weights(u)], [weights(t), slopes(u)]];
      return parts.map(([across, up]) => sum(across, up, column, row) / spacing);
    };
    return { loss, gradient };
  };

  /* SAM's point: the step of length rho along the gradient. */
  const ascent = ({ gradient }, w, rho) => {
    const g = gradient(w);
    const norm = Math.max(Math.hypot(...g), 1e-12);
    return w.map((value, i) => value + (rho * g[i]) / norm);
  };

  /* The point of highest loss on the circle of radius rho. */
  const worst = ({ loss }, w, rho) => {
    const at = (angle) => [w[0] + rho * Math.cos(angle), w[1] + rho * Math.sin(angle)];
    const highest = (center, step, count) => {
      let best = center;
      for (let i = -count; i <= count; i++) {
        if (loss(at(center + i * step)) > loss(at(best))) best = center + i * step;
      }
      return best;
    };
    let angle = highest(0, Math.PI / 60, 60); // all around, then on both sides of the best
    for (let step = Math.PI / 480; step > 1e-5; step /= 8) angle = highest(angle, step, 8);
    return at(angle);
  };

  return { slice, ascent, worst };
})();

flatnb.play("ball", (fig) => {
  const { slice, ascent, worst } = flatnb.ball;
  const { fixed } = flatnb;
  const { data } = fig;
  const net = slice(data);
  const MOST = 0.48 * data.extent; // of the radius, and of w's distance from the middle
  const TOPS = [0.5, 1, 2, 4, 8, 16, 32, 64];
  fig.about(
    "A ball around the weights of a net, SAM's point on it and the worst point.",
    "Drag *w* and change the radius: how much of the worst rise does SAM's step find?",
  );
  fig.beside(true);
  const side = [-data.extent, data.extent];
  const map = fig.plot({
    x: side,
    y: side,
    grid: false,
    xlabel: "distance along *g*",
    ylabel: "distance across *g*",
    height: (width) => width - 68 + 54, // one unit is as long in both directions
  });
  const rises = fig.plot({
    x: [0, MOST],
    title: "rise of the loss [nats]",
    xlabel: "radius *ρ*",
    height: (width) => Math.min(330, width - 14),
  });
  const start = map.handle({
    label: "weights w",
    value: [0, 0],
    bounds: [[-MOST, MOST], [-MOST, MOST]],
    step: MOST / 20,
    text: ([x, y]) => `${fixed(x)} along, ${fixed(y)} across`,
  });
  const radius = fig.slider({
    label: "radius *ρ*",
    min: data.rho / 25,
    max: MOST,
    step: data.rho / 50,
    value: data.rho,
  });

  const sorted = [...data.losses].sort((a, b) => a - b);
  const [least, most] = [sorted[0] / 1e4, sorted[Math.floor(0.97 * sorted.length)] / 1e4];
  const LEVELS = flatnb.linspace(0, 1, 15).map((part) => least + part ** 2 * (most - least));
  const ground = (x, y) => net.loss([x, y]);
  const band = (value) => LEVELS.filter((level) => value > level).length / LEVELS.length;

  fig.draw(() => {
    const [w, rho] = [start.value, radius.value];
    const here = net.loss(w);
    const rise = (point) => net.loss(point) - here;
    const [sam, top] = [ascent(net, w, rho), worst(net, w, rho)];

    map.field(ground, band);
    const circle = flatnb.linspace(0, 2 * Math.PI, 90);
    const around = (angle) => [w[0] + rho * Math.cos(angle), w[1] + rho * Math.sin(angle)];
    map.line(circle.map(around), { dash: "6 5", width: 1.5 });
    map.arrow(w, sam, { color: "blue", width: 2.5 });
    map.dot(...top, { color: "red", shape: "star", size: 10 });
    map.dot(...sam, { color: "blue", shape: "diamond", size: 7 });
    map.text(...w, "*w*", { anchor: "end", dx: -13, dy: -8 });

    const radii = flatnb.linspace(0, MOST, 25).slice(1);
    const curves = [
      ["blue", "diamond", radii.map((r) => rise(ascent(net, w, r))), rise(sam)],
      ["red", "star", radii.map((r) => rise(worst(net, w, r))), rise(top)],
    ];
    const highest = curves[1][2][radii.length - 1];
    rises.y = [0, TOPS.find((value) => value > highest) || highest];
    rises.begin(); // with the axis that fits
    const norm = Math.hypot(...net.gradient(w));
    rises.line([[0, 0], [MOST, MOST * norm]], { color: "gray", dash: "6 5" });
    if (w.every((value) => value === 0)) rises.line([[0, 0], ...data.random], { color: "gray" });
    for (const [color, shape, values, now] of curves) {
      rises.line([[0, 0], ...radii.map((r, i) => [r, values[i]])], { color });
      rises.dot(rho, now, { color, shape, size: shape === "star" ? 10 : 6 });
    }
    const legend = [["red", "worst point"], ["blue", "SAM's step"], ["gray", "straight line"]];
    legend.forEach(([color, text], row) => {
      rises.text(0, rises.y[1], text, { color, dx: 8, dy: 18 + 19 * row });
    });
    fig.say(words(rise(sam), rise(top), rho * norm, here));
  });

  const words = (sam, top, line, here) => {
    const percent = (rise) => `${fixed((100 * rise) / top, 0)}\u00a0%`;
    const losses = `From ${fixed(here)} at *w*, the loss rises by {blue|${fixed(sam)}} to SAM's point and by {red|${fixed(top)}} to the worst on the circle.`;
    if (top < 0.005) return `${losses} It hardly rises around here.`;
    if (sam < 0) return `${losses} SAM's step leads over a ridge: its point is lower than *w*.`;
    const found = sam > 0.95 * top ? "nearly all of the worst rise, " : "";
    const part = found ? percent(sam) : `${percent(sam)} of the worst rise`;
    return `${losses} SAM's step finds ${found}${part}; the straight line promised ${percent(line)}.`;
  };
});
