/* A chart of Altair, as flatnb.charts writes it into the page: Vega draws it, and for what a
   reader may change there are the buttons, menus and sliders of play.js. Colors are CSS
   variables, which SVG follows when the theme changes. */

"use strict";

flatnb.chart = (() => {
  /* The rows of a table that is given by its columns. */
  const rows = (columns) => {
    const names = Object.keys(columns);
    const row = (_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]]));
    return names.length ? columns[names[0]].map(row) : [{}];
  };

  /* The chart for Vega: with rows, and without the inputs that it would add itself. */
  const complete = (vega) => ({
    ...vega,
    data: vega.data.map((part) => (part.values ? { ...part, values: rows(part.values) } : part)),
    signals: vega.signals.map(({ bind, ...signal }) => signal),
  });

  return { rows, complete };
})();

flatnb.play("chart", (fig) => {
  const { label, how, params, vega } = fig.data;
  fig.about(label, how);
  const box = document.createElement("div");
  box.className = "play-chart";
  fig.plots.append(box);
  fig.plots.before(fig.controls); // they decide what is in the chart, which may be long

  const select = ({ label, value, options }) => {
    const field = document.createElement("label");
    field.className = "play-menu";
    const menu = document.createElement("select");
    menu.append(...options.map(([_, text]) => new Option(text)));
    menu.options[options.findIndex(([option]) => option === value)].defaultSelected = true;
    field.append(label, menu);
    fig.controls.append(field);
    return () => options[menu.selectedIndex][0];
  };
  const radio = ({ label, value, options }) => {
    const pairs = options.map(([option, text]) => [String(option), text]);
    const buttons = fig.choice({ label, value: String(value), options: pairs });
    return () => Number(buttons.value);
  };
  const kinds = { select, radio };
  const inputs = params.map(({ name, value, bind }) => {
    const options = bind.options.map((option, i) => [option, bind.labels[i]]);
    return [name, kinds[bind.input]({ label: bind.name, value, options })];
  });

  /* At the first drawing the chart is in the page, which gives it a width and a font. */
  let drawn;
  const start = async () => {
    const result = await vegaEmbed(box, flatnb.chart.complete(vega), {
      mode: "vega",
      renderer: "svg",
      actions: false,
      defaultStyle: false,
      tooltip: { disableDefaultStyle: true },
      config: { font: getComputedStyle(box).fontFamily },
    });
    return result.view;
  };
  const draw = (view) => {
    for (const [name, input] of inputs) view.signal(name, input());
    return view.width(box.clientWidth).runAsync();
  };
  fig.draw(() => {
    drawn = drawn || start();
    drawn.then(draw).catch((error) =>
      fig.guard(() => {
        throw error;
      }),
    );
  });
});
