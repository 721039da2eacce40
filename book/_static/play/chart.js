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
  const { label, how, say, widest = 10000, words, params, vega } = fig.data;
  fig.about(label, how);
  const box = document.createElement("div");
  box.className = "play-chart";
  box.style.maxWidth = `${widest}px`;
  fig.plots.append(box);
  fig.plots.before(fig.controls); // they decide what is in the chart, which may be long
  if (params.length > 3) fig.beside();

  const select = (label, value, bind) => {
    const field = document.createElement("label");
    field.className = "play-menu";
    const menu = document.createElement("select");
    menu.append(...bind.labels.map((text) => new Option(text)));
    menu.options[bind.options.indexOf(value)].defaultSelected = true;
    field.append(label, menu);
    fig.controls.append(field);
    return () => bind.options[menu.selectedIndex];
  };
  const radio = (label, value, bind) => {
    const options = bind.options.map((option, i) => [String(option), bind.labels[i]]);
    const buttons = fig.choice({ label, value: String(value), options });
    return () => Number(buttons.value);
  };
  const checkbox = (label, value) => {
    const field = document.createElement("label");
    field.className = "play-switch";
    const box = document.createElement("input");
    Object.assign(box, { type: "checkbox", defaultChecked: value });
    field.append(box, label);
    fig.controls.append(field);
    return () => box.checked;
  };
  const range = (label, value, { min, max, step }, name) => {
    const slider = fig.slider({ label, min, max, step, value, show: (i) => words[name][i] });
    return () => slider.value;
  };
  const kinds = { select, radio, checkbox, range };
  const inputs = params.map(({ name, value, bind }) => [
    name,
    kinds[bind.input](bind.name, value, bind, name),
  ]);

  /* At the first drawing the chart is in the page, which gives it a width and a font. */
  let drawn;
  const start = async () => {
    const font = getComputedStyle(box).fontFamily;
    const fonts = { labelFont: font, titleFont: font };
    const result = await vegaEmbed(box, flatnb.chart.complete(vega), {
      mode: "vega",
      renderer: "svg",
      actions: false,
      defaultStyle: false,
      tooltip: { disableDefaultStyle: true },
      config: { axis: fonts, legend: fonts, title: { font } },
    });
    return result.view;
  };
  const draw = async (view) => {
    for (const [name, input] of inputs) view.signal(name, input());
    await view.width(box.clientWidth).resize().runAsync();
    if (say) fig.say(view.signal(say));
  };
  const fail = (error) =>
    fig.guard(() => {
      throw error;
    });
  fig.draw(() => {
    drawn = drawn || start();
    drawn.then(draw).catch(fail);
  });
});
