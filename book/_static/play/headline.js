/* The headline: what methods gain over plain training, at one learning rate, when all tune it,
   and when it falls, too. Every number is of the records; the page has them (flatnb.book.headline). */

"use strict";

flatnb.headline = (() => {
  /* What a panel shows, in words. */
  const finding = (rows, rule) => {
    const better = rows.filter((row) => row.verdict > 0).map((row) => row.gain);
    const range = [Math.min(...better), Math.max(...better)].map((gain) => flatnb.fixed(gain, 1));
    const count = `{blue|${better.length} of ${rows.length} methods}`;
    if (rule === "fixed")
      return `At one learning rate for all, ${count} beat plain training, by {blue|${range.join(" to ")} points} of accuracy.`;
    const when = rule === "tuned" ? "When plain training tunes its learning rate too" : "When the tuned rate also falls to zero";
    return `${when}, ${count} keep a gain` + (better.length ? `, at most {blue|${range[1]} points}.` : ".");
  };

  /* Part of the way, 0 to 1, from one row to another. */
  const between = (from, to, part) => ({
    ...(part < 1 ? from : to),
    gain: from.gain + part * (to.gain - from.gain),
    half: from.half + part * (to.half - from.half),
  });

  return { finding, between };
})();

flatnb.play("headline", (fig) => {
  const { finding, between } = flatnb.headline;
  const DURATION = 600; // milliseconds
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");
  const count = fig.data.tuned.length;
  const looks = {
    1: { color: "blue" },
    0: { color: "gray", hollow: true },
    "-1": { color: "red", shape: "square", size: 4.5 },
  };
  fig.about(
    "Gains in test accuracy of ten methods over plain training, at one learning rate for all, with tuned rates, or with tuned rates that fall.",
    "",
  );
  const rate = fig.choice({
    label: "Click through the three: the learning rate is",
    options: [
      ["fixed", "the same for all"],
      ["tuned", "tuned"],
      ["falling", "tuned, and falling"],
    ],
    value: "fixed",
  });
  fig.root.insertBefore(fig.controls, fig.plots);
  const plot = fig.plot({
    x: [-0.5, 2.5],
    y: [-0.6, count - 0.4],
    yticks: [],
    margin: 104,
    xlabel: "gain over plain training [points]",
    height: 46 + 23 * count,
  });
  let rows = fig.data.fixed;
  let goal = rows;
  let move = null;
  fig.draw(() => {
    const wanted = fig.data[rate.value];
    if (wanted !== goal) {
      move = { from: rows, start: performance.now() };
      goal = wanted;
    }
    if (move) {
      const part = still.matches ? 1 : Math.min(1, (performance.now() - move.start) / DURATION);
      const eased = part * part * (3 - 2 * part);
      rows = goal.map((row, i) => between(move.from[i], row, eased));
      if (part === 1) move = null;
      else fig.update();
    }
    plot.line([[0, -1], [0, count]], { color: "black", width: 1.5 });
    rows.forEach(({ method, gain, half, verdict }, i) => {
      const look = looks[verdict];
      plot.text(plot.x[0], i, method, { anchor: "end", dx: -8, dy: 5 });
      plot.line([[gain - half, i], [gain + half, i]], { color: look.color, width: 2.5 });
      plot.dot(gain, i, { size: 5.5, ...look });
    });
    fig.say(finding(goal, rate.value));
  });
});
