/* Two wells: the test loss is the training loss, shifted and blurred. As in chapter 1. */

"use strict";

flatnb.wells = (() => {
  const SHARP = { center: -1.5, width: 0.15 };
  const FLAT = { center: 1.5, width: 0.6 };

  /* The mean of exp(-(gap + u)² / (2 width²)) over u normal with standard deviation blur. */
  const well = (gap, width, blur) => {
    const variance = width ** 2 + blur ** 2;
    return (width / Math.sqrt(variance)) * Math.exp(-(gap ** 2) / (2 * variance));
  };

  /* The loss at w, moved to the right by `shift`; the flat well's bottom is at `floor`. */
  const loss = (w, { shift = 0, blur = 0, floor = 0 } = {}) =>
    1 -
    well(w - SHARP.center - shift, SHARP.width, blur) -
    (1 - floor) * well(w - FLAT.center - shift, FLAT.width, blur);

  /* The least shift in [0, most] from which on the sharp minimum has the higher test loss;
     null if there is none. */
  const crossing = ({ blur, floor }, most) => {
    const excess = (shift) =>
      loss(SHARP.center, { shift, blur, floor }) - loss(FLAT.center, { shift, blur, floor });
    if (excess(0) > -1e-4) return 0; // equal, up to the other well's tail
    if (excess(most) < 0) return null;
    let [low, high] = [0, most];
    for (let i = 0; i < 50; i++) {
      const middle = (low + high) / 2;
      if (excess(middle) < 0) low = middle;
      else high = middle;
    }
    return high;
  };

  return { SHARP, FLAT, loss, crossing };
})();

flatnb.play("wells", (fig) => {
  const { SHARP, FLAT, loss, crossing } = flatnb.wells;
  const MOST = 0.6;
  fig.about(
    "Two wells of a loss, one sharp and one flat, and the test loss in their minima.",
    "Shift or blur the test loss, and compare what the two minima pay.",
  );
  const curve = fig.plot({
    x: [-2.4, 3.4],
    y: [-0.24, 1.12],
    yticks: [0, 0.5, 1],
    xlabel: "weight *w*",
    ylabel: "loss",
    share: 1.25,
    height: () => (fig.narrow ? 175 : 195),
  });
  const paid = fig.plot({
    x: [0, MOST],
    y: [0, 1.05],
    xticks: [0, 0.2, 0.4, 0.6],
    yticks: [0, 0.5, 1],
    xlabel: "shift",
    ylabel: "test loss",
    share: 0.75,
    height: () => (fig.narrow ? 175 : 195),
  });
  const shift = fig.slider({ label: "shift", min: 0, max: MOST, step: 0.01, value: 0.25 });
  const blur = fig.slider({ label: "blur *σ* (random shifts)", min: 0, max: 0.6, step: 0.01, value: 0 });
  const floor = fig.slider({
    label: "floor of the flat well",
    min: 0,
    max: 0.5,
    step: 0.01,
    value: 0,
  });

  fig.draw(() => {
    const now = { shift: shift.value, blur: blur.value, floor: floor.value };
    const weights = flatnb.linspace(...curve.x, 400);
    curve.line(weights.map((w) => [w, loss(w, { floor: now.floor })]));
    curve.line(weights.map((w) => [w, loss(w, now)]), { color: "red", dash: "6 5" });
    curve.text(-0.25, 0.62, "training", { anchor: "middle" });
    curve.text(-0.25, 0.62, "test", { anchor: "middle", dy: 20, color: "red" });

    const shifts = flatnb.linspace(0, MOST, 121);
    const tests = {};
    for (const [name, { center }, color] of [
      ["sharp", SHARP, "pink"],
      ["flat", FLAT, "blue"],
    ]) {
      const training = loss(center, { floor: now.floor });
      const test = (tests[name] = loss(center, now));
      curve.line([[center, training], [center, test]], { color, width: 7, opacity: 0.45 });
      curve.dot(center, training, { size: 4.5 });
      curve.dot(center, test, { color, shape: "square" });
      curve.text(center, training, name, { anchor: "middle", dy: 21 });
      const values = shifts.map((u) => [u, loss(center, { ...now, shift: u })]);
      paid.line(values, { color, width: 2.5 });
      const [, end] = values[values.length - 1];
      paid.text(MOST, end, name, { anchor: "end", dx: -2, dy: end > 0.8 ? 20 : -9 });
      paid.dot(now.shift, test, { color, shape: "square" });
    }
    paid.line([[now.shift, 0], [now.shift, 1.05]], { color: "gray", width: 1, dash: "3 4" });

    const start = crossing(now, MOST);
    if (start) {
      paid.line([[start, 0], [start, 1.05]], { color: "pink", width: 1.5 });
      paid.text(start, 1, "sharp loses →", { dx: 5, dy: 2, size: 13 });
    }
    fig.say(words(now, tests));
  });

  const words = (now, tests) => {
    const { fixed } = flatnb;
    const pays = `The sharp minimum has test loss {pink|${fixed(tests.sharp)}}, the flat one {blue|${fixed(tests.flat)}}`;
    const start = crossing(now, MOST);
    if (now.shift === 0 && now.blur === 0) {
      return now.floor === 0
        ? "Training and test loss are the same curve: both minima have loss 0."
        : `${pays}: as long as the curves agree, the deeper minimum is the better one.`;
    }
    if (now.floor === 0) {
      return `${pays}. Both have training loss 0.`;
    }
    if (start === null) return `${pays}. The sharp one stays ahead at every shift shown.`;
    if (start === 0) return `${pays}. With this blur, the sharp one is behind at every shift.`;
    return `${pays}. The sharp one has the lower training loss; from a shift of ${fixed(start)} on it has the higher test loss.`;
  };
});
