/* Figures to play with: each replaces a captioned picture on the screen. How to make one:

   1. Give the notebook cell that draws the picture the tag `play-NAME`; on a Markdown page, write
      <div data-play="NAME">the picture</div>. Pages that have one load this file, play.css and
      play/NAME.js (flatnb/book/play.py). Without JavaScript, in print, and if anything here
      fails, the picture is there.
   2. In play/NAME.js keep what is computed apart from what is drawn, and export it for the test
      that holds it against the library (tests/browser/test_play_NAME.py):

        flatnb.square = { value: (x) => x * x };

        flatnb.play("square", (fig) => {
          fig.about("A parabola and one of its points.", "Move *x* and watch the square.");
          const plot = fig.plot({ x: [0, 2], y: [0, 4], xlabel: "*x*", ylabel: "square" });
          const x = fig.slider({ label: "*x*", min: 0, max: 2, step: 0.01, value: 1 });
          fig.draw(() => {
            plot.line(flatnb.linspace(0, 2, 100).map((t) => [t, flatnb.square.value(t)]));
            plot.dot(x.value, flatnb.square.value(x.value), { color: "red" });
            fig.say(`The square is {red|${flatnb.square.value(x.value).toFixed(2)}}.`);
          });
        });

   The function given to `draw` runs after every change of a control, of the width and of the
   theme, each time on empty plots; it must draw everything. Text: *italic*, {color|marked}.
   Colors are the names of the palette (custom.css: black, gray, page, blue, …) and
   follow light and dark by themselves. `fig` has
     about(label, how)  what it is, for screen readers; one sentence of instruction
     plot({x, y, xlabel, ylabel, title, xticks, yticks, xlog, ylog, grid, margin, share, height,
          equal, next})  share: of the row, where all plots fit in one; equal: a unit is as long
                in both directions; next: a plot to share the place of, below or beside it
     slider({label, min, max, step, value, to, show})   .value = to(position), .text = show(value)
     choice({label, options: [[value, text, color]], value})            radio buttons
     button(label, click, reset)          calls click, then draws; what "Reset" calls to undo that
     say(text)  the finding, in words, below the plots
     beside(words)  where there is room, puts the controls beside the plots, and the finding, too,
                if `words`: so that a tall figure fits a laptop's screen
     data       what the cell displays by flatnb.book.play.data(...), or a page has inside of the
                element as <script type="application/json" class="play-data">
     narrow     whether it is on a phone, where a height, as a function, may be smaller
   Sliders and choices have `.hidden`. A plot has, in units of its axes,
     line(points, style), area(points, style), dot(x, y, style), arrow(from, to, style),
     text(x, y, text, style), field(f, shade), handle({label, value, bounds, step, text}).
   Styles: color, width, dash, opacity; of lines grow, to be drawn bit by bit; of dots shape, size and
   hollow; of text anchor, dx, dy, size. */

"use strict";

window.flatnb = window.flatnb || {};

(() => {
  const SVG = "http://www.w3.org/2000/svg";
  let count = 0; // for ids

  const element = (parent, tag, attributes = {}, text) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) write(node, text);
    return parent.appendChild(node);
  };

  const mark = (parent, tag, attributes = {}) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return parent.appendChild(node);
  };

  /* Text with *italic* and {color|marked} parts, into an element of HTML or SVG. */
  const write = (node, text) => {
    node.textContent = "";
    const svg = node.namespaceURI === SVG;
    for (const part of text.split(/(\*[^*]+\*|\{\w+\|[^}]*\})/)) {
      const marked = part.match(/^\{(\w+)\|(.*)\}$/);
      if (marked) {
        const bold = element(node, "b");
        bold.style.textDecorationColor = ink(marked[1]);
        write(bold, marked[2]);
      } else if (/^\*.+\*$/.test(part)) {
        const italic = svg ? mark(node, "tspan") : element(node, "i");
        italic.style.fontStyle = "italic";
        italic.textContent = part.slice(1, -1);
      } else node.append(part);
    }
  };

  const plain = (text) => text.replace(/\*|\{\w+\||\}/g, "");
  const ink = (color = "black") => (/^\w+$/.test(color) ? `var(--flatnb-${color})` : color);
  const clamp = (value, [low, high]) => Math.min(high, Math.max(low, value));

  /* `count` numbers from low to high, both included. */
  flatnb.linspace = (low, high, count) =>
    Array.from({ length: count }, (_, i) => low + ((high - low) * i) / (count - 1));

  /* A number as text, with a minus sign that is as wide as a plus. */
  flatnb.fixed = (value, digits = 2) => {
    const text = value.toFixed(digits);
    return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
  };

  /* Standard normal numbers of a seed: those of mulberry32, by Box and Muller. */
  flatnb.normals = (seed) => {
    const uniform = () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
      mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    };
    return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  };

  /* Round numbers in [low, high], about `count` of them; of a logarithmic axis, powers. */
  const ticks = ([low, high], count, log) => {
    if (log) {
      const powers = flatnb.linspace(-12, 12, 25).map((power) => 10 ** power);
      return powers.filter((power) => power >= low * 0.999 && power <= high * 1.001);
    }
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((times) => times * power >= rough * 0.999);
    const first = Math.ceil(low / step - 1e-9);
    const length = Math.floor(high / step + 1e-9) - first + 1;
    return Array.from({ length }, (_, i) => Number(((first + i) * step).toPrecision(12)));
  };

  /* A color of the palette as [red, green, blue]. */
  const rgb = (color, node) => {
    const context = document.createElement("canvas").getContext("2d");
    context.fillStyle = getComputedStyle(node).getPropertyValue(`--flatnb-${color}`).trim();
    context.fillRect(0, 0, 1, 1);
    return context.getImageData(0, 0, 1, 1).data;
  };

  const SHAPES = {
    circle: (x, y, r) => `M${x - r},${y}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0`,
    square: (x, y, r) => `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    diamond: (x, y, r) => `M${x},${y - r}l${r},${r}l${-r},${r}l${-r},${-r}z`,
    star: (x, y, r) => {
      const corner = (i) => {
        const [angle, radius] = [(Math.PI * i) / 5, i % 2 ? 0.45 * r : r];
        return `${x + radius * Math.sin(angle)},${y - radius * Math.cos(angle)}`;
      };
      return `M${Array.from({ length: 10 }, (_, i) => corner(i)).join("L")}z`;
    },
  };

  class Plot {
    constructor(fig, options) {
      const { share = 1, next } = options;
      Object.assign(this, { x: [0, 1], y: [0, 1], height: 250 }, options);
      this.place = next ? next.place : element(fig.plots, "div", { class: "play-place" });
      if (!next) this.place.style.flex = `${10 * share} 1 ${Math.round(300 * share)}px`;
      this.box = element(this.place, "div", { class: "play-plot" });
      this.canvas = element(this.box, "canvas", { "aria-hidden": "true" });
      this.svg = mark(this.box, "svg", { "aria-hidden": "true" });
      this.fig = fig;
      this.id = `play-clip-${++count}`;
      this.handles = [];
    }

    /* An empty plot of the present width, with axes. */
    begin() {
      this.width = this.box.clientWidth;
      const bare = this.yticks && !this.yticks.length;
      this.left = this.margin || (bare ? 10 : 36) + (this.ylabel ? 20 : 0);
      this.right = this.width - 10;
      this.top = this.title ? 26 : 10;
      const low = (this.xticks && !this.xticks.length ? 8 : 24) + (this.xlabel ? 20 : 0);
      const square = ((this.right - this.left) * (this.y[1] - this.y[0])) / (this.x[1] - this.x[0]);
      const fixed = typeof this.height === "function" ? this.height(this.width) : this.height;
      this.size = this.equal ? this.top + square + low : fixed;
      this.box.style.height = `${this.size}px`;
      this.bottom = this.size - low;
      this.svg.textContent = "";
      this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.size}`);
      const clip = mark(mark(this.svg, "clipPath", { id: this.id }), "rect");
      const extent = { x: this.left, y: this.top, width: this.right - this.left };
      for (const [name, value] of Object.entries(extent)) clip.setAttribute(name, value);
      clip.setAttribute("height", this.bottom - this.top);
      this.axes();
      this.inside = mark(this.svg, "g", { "clip-path": `url(#${this.id})` });
      this.above = mark(this.svg, "g");
      this.shaded = false;
    }

    end() {
      this.canvas.hidden = !this.shaded;
      this.handles.forEach((handle) => handle.place());
    }

    /* From units of the axes to pixels, and back. */
    X(value) {
      return this.left + unit(value, this.x, this.xlog) * (this.right - this.left);
    }

    Y(value) {
      return this.bottom - unit(value, this.y, this.ylog) * (this.bottom - this.top);
    }

    at(left, top) {
      const across = (left - this.left) / (this.right - this.left);
      const up = (this.bottom - top) / (this.bottom - this.top);
      return [value(across, this.x, this.xlog), value(up, this.y, this.ylog)];
    }

    axes() {
      const grid = mark(this.svg, "g", { class: "play-axes" });
      const across = this.xticks || ticks(this.x, (this.right - this.left) / 70, this.xlog);
      const up = this.yticks || ticks(this.y, (this.bottom - this.top) / 45, this.ylog);
      const lines = this.grid === false ? document.createElementNS(SVG, "g") : grid;
      for (const tick of across) {
        const x = this.X(tick);
        mark(lines, "line", { x1: x, x2: x, y1: this.top, y2: this.bottom });
        const text = mark(grid, "text", { x, y: this.bottom + 17, "text-anchor": "middle" });
        write(text, label(tick));
      }
      for (const tick of up) {
        const y = this.Y(tick);
        mark(lines, "line", { x1: this.left, x2: this.right, y1: y, y2: y });
        const text = mark(grid, "text", { x: this.left - 7, y: y + 4, "text-anchor": "end" });
        write(text, label(tick));
      }
      const middle = [(this.left + this.right) / 2, (this.top + this.bottom) / 2];
      if (this.xlabel) {
        const place = { x: middle[0], y: this.size - 7, "text-anchor": "middle" };
        write(mark(grid, "text", { ...place, class: "play-title" }), this.xlabel);
      }
      if (this.title) {
        write(mark(grid, "text", { x: this.left, y: 14, class: "play-title" }), this.title);
      }
      if (this.ylabel) {
        const turn = `translate(14 ${middle[1]}) rotate(-90)`;
        const place = { transform: turn, "text-anchor": "middle", class: "play-title" };
        write(mark(grid, "text", place), this.ylabel);
      }
    }

    path(points) {
      return points.map(([x, y]) => `${this.X(x).toFixed(1)},${this.Y(y).toFixed(1)}`).join("L");
    }

    line(points, { color, width = 2, dash = "none", opacity = 1, grow = false } = {}) {
      const node = mark(this.inside, "path", { d: `M${this.path(points)}`, fill: "none" });
      if (grow) {
        node.setAttribute("pathLength", 1);
        node.classList.add("play-grow");
      }
      const style = { stroke: ink(color), strokeWidth: width, strokeDasharray: dash, opacity };
      Object.assign(node.style, style, { strokeLinejoin: "round", strokeLinecap: "round" });
      return node;
    }

    area(points, { color, opacity = 0.25 } = {}) {
      const node = mark(this.inside, "path", { d: `M${this.path(points)}z` });
      Object.assign(node.style, { fill: ink(color), opacity });
      return node;
    }

    dot(x, y, { color, shape = "circle", size = 5, hollow = false } = {}) {
      const d = SHAPES[shape](this.X(x), this.Y(y), size);
      const node = mark(this.above, "path", { d });
      const [fill, stroke] = hollow ? ["page", color] : [color, "page"];
      Object.assign(node.style, { fill: ink(fill), stroke: ink(stroke), strokeWidth: 1.5 });
      return node;
    }

    arrow(from, to, { color, width = 2, opacity = 1 } = {}) {
      const [[x0, y0], [x1, y1]] = [from, to].map(([x, y]) => [this.X(x), this.Y(y)]);
      const length = Math.hypot(x1 - x0, y1 - y0);
      if (length < 1) return;
      const [dx, dy] = [(x1 - x0) / length, (y1 - y0) / length];
      const head = Math.min(10, length);
      const [hx, hy] = [x1 - head * dx, y1 - head * dy];
      const group = mark(this.above, "g");
      group.style.opacity = opacity;
      const shaft = mark(group, "line", { x1: x0, y1: y0, x2: hx, y2: hy });
      Object.assign(shaft.style, { stroke: ink(color), strokeWidth: width });
      const wing = [0.45 * head * dy, -0.45 * head * dx];
      const corners = [[x1, y1], [hx + wing[0], hy + wing[1]], [hx - wing[0], hy - wing[1]]];
      mark(group, "path", { d: `M${corners.join("L")}z` }).style.fill = ink(color);
    }

    text(x, y, text, { color, anchor = "start", dx = 0, dy = 0, size = 14 } = {}) {
      const place = { x: this.X(x) + dx, y: this.Y(y) + dy, "text-anchor": anchor };
      const node = mark(this.above, "text", place);
      Object.assign(node.style, { fill: ink(color), fontSize: `${size}px` });
      write(node, text);
      return node;
    }

    /* Shade the ground by f(x, y), from `page` (shade(value) = 0) to `shade` (1). It is
       painted again only if f, shade, the size or the theme change: keep f the same function. */
    field(f, shade) {
      this.shaded = true;
      const ratio = window.devicePixelRatio || 1;
      const theme = document.documentElement.dataset.theme;
      const key = [f, shade, this.width, this.size, ratio, theme, ...this.x, ...this.y];
      if (this.painted && key.every((part, i) => part === this.painted[i])) return;
      this.painted = key;
      const [left, top, right, bottom] = [this.left, this.top, this.right, this.bottom];
      const [columns, rows] = [right - left, bottom - top].map((side) => Math.round(side * ratio));
      Object.assign(this.canvas, { width: columns, height: rows });
      const box = { left, top, width: right - left, height: bottom - top };
      for (const [side, length] of Object.entries(box)) this.canvas.style[side] = `${length}px`;
      const [low, high] = [rgb("page", this.box), rgb("shade", this.box)];
      const context = this.canvas.getContext("2d");
      const image = context.createImageData(columns, rows);
      for (let row = 0, i = 0; row < rows; row++) {
        for (let column = 0; column < columns; column++, i += 4) {
          const [x, y] = this.at(left + (column + 0.5) / ratio, top + (row + 0.5) / ratio);
          const part = shade(f(x, y));
          for (let c = 0; c < 3; c++) image.data[i + c] = low[c] + part * (high[c] - low[c]);
          image.data[i + 3] = 255;
        }
      }
      context.putImageData(image, 0, 0);
    }

    /* A point to drag, or to move by the arrow keys: returns an object with its `value`. */
    handle({ label, value: [x, y], bounds = [this.x, this.y], step = 0.02, text, color }) {
      const handle = new Handle(this, { label, start: [x, y], bounds, step, text, color });
      this.handles.push(handle);
      return handle;
    }
  }

  const unit = (value, [low, high], log) =>
    log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
  const value = (unit, [low, high], log) =>
    log ? low * (high / low) ** unit : low + unit * (high - low);
  const label = (tick) => String(tick).replace("-", "−");

  class Handle {
    constructor(plot, options) {
      Object.assign(this, options, { plot, value: options.start });
      this.node = element(plot.box, "button", {
        type: "button",
        class: "play-handle",
        role: "slider",
        "aria-label": plain(this.label),
        "aria-roledescription": "point to move",
        "aria-valuemin": this.bounds[0][0],
        "aria-valuemax": this.bounds[0][1],
      });
      this.node.style.setProperty("--play-handle", ink(this.color));
      this.node.addEventListener("pointerdown", (event) => {
        this.node.setPointerCapture(event.pointerId);
        this.held = true;
      });
      this.node.addEventListener("pointermove", (event) => this.held && this.follow(event));
      for (const end of ["pointerup", "pointercancel"]) {
        this.node.addEventListener(end, () => (this.held = false));
      }
      this.node.addEventListener("keydown", (event) => this.press(event));
      // A click or tap beside it calls it; a drag elsewhere scrolls the page, as it should.
      plot.box.addEventListener("click", (event) => {
        if (event.target !== this.node && plot.handles.length === 1) this.follow(event);
      });
      plot.fig.resets.push(() => (this.value = this.start));
    }

    follow(event) {
      const box = this.plot.box.getBoundingClientRect();
      this.move(this.plot.at(event.clientX - box.left, event.clientY - box.top));
    }

    press(event) {
      const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
      const direction = directions[event.key];
      if (!direction) return;
      event.preventDefault();
      const step = this.step * (event.shiftKey ? 5 : 1);
      this.move(this.value.map((old, i) => old + step * direction[i]));
    }

    move(to) {
      this.value = to.map((coordinate, i) => clamp(coordinate, this.bounds[i]));
      this.plot.fig.update();
    }

    place() {
      const [x, y] = this.value;
      this.node.style.left = `${this.plot.X(x)}px`;
      this.node.style.top = `${this.plot.Y(y)}px`;
      this.node.setAttribute("aria-valuenow", x);
      const text = this.text || (([x, y]) => `${flatnb.fixed(x)}, ${flatnb.fixed(y)}`);
      this.node.setAttribute("aria-valuetext", text(this.value));
    }
  }

  class Figure {
    constructor(host, name) {
      this.host = host;
      this.root = document.createElement("div");
      this.root.className = "play";
      this.root.dataset.name = name;
      this.head = element(this.root, "div", { class: "play-head" });
      this.how = element(this.head, "p");
      this.plots = element(this.root, "div", { class: "play-plots" });
      this.finding = element(this.root, "p", { class: "play-finding", "aria-live": "polite" });
      const id = `play-form-${++count}`;
      const form = { class: "play-controls", id, autocomplete: "off" };
      this.controls = element(this.root, "form", form);
      element(this.head, "button", { type: "reset", form: id }, "Reset");
      this.all = [];
      this.resets = [];
      // Of a cell with a caption they stand in the cell before it (flatnb/book/stage.py).
      const cell = host.closest(".cell, [data-play]");
      const scripts = [cell, cell.previousElementSibling].map(
        (node) => node && node.querySelector("script.play-data"),
      );
      const json = scripts.find(Boolean);
      this.data = json && JSON.parse(json.textContent);
      this.controls.addEventListener("submit", (event) => event.preventDefault());
      this.controls.addEventListener("input", () => this.update());
      this.controls.addEventListener("reset", () => {
        this.resets.forEach((reset) => reset());
        setTimeout(() => this.update()); // after the inputs have their first values again
      });
    }

    about(label, how) {
      this.root.setAttribute("role", "group");
      this.root.setAttribute("aria-label", label);
      write(this.how, how);
    }

    beside(words = false) {
      this.root.classList.add("play-beside");
      if (words) this.root.classList.add("play-words-beside");
    }

    /* Whether it is on a phone: there, all of it should be seen at once. */
    get narrow() {
      return this.root.clientWidth < 500;
    }

    plot(options) {
      const plot = new Plot(this, options);
      this.all.push(plot);
      return plot;
    }

    slider({ label, min, max, step, value, to = (position) => position, show }) {
      const box = element(this.controls, "label", { class: "play-slider" });
      const head = element(box, "span");
      element(head, "span", {}, label);
      const output = element(head, "span", { class: "play-value", "aria-hidden": "true" });
      const input = element(box, "input", { type: "range", min, max, step, value });
      const text = show || ((number) => flatnb.fixed(number));
      const control = {
        get value() {
          return to(Number(input.value));
        },
        get text() {
          return text(control.value);
        },
        set hidden(hidden) {
          box.hidden = hidden;
        },
      };
      const tell = () => {
        output.textContent = control.text;
        input.setAttribute("aria-valuetext", control.text);
      };
      input.addEventListener("input", tell);
      this.resets.push(() => setTimeout(tell));
      tell();
      return control;
    }

    choice({ label, options, value }) {
      const box = element(this.controls, "fieldset", { class: "play-choice" });
      element(box, "legend", {}, label);
      const name = `play-choice-${++count}`;
      for (const [option, text, color] of options) {
        const item = element(box, "label");
        const input = element(item, "input", { type: "radio", name, value: option });
        input.defaultChecked = option === value;
        item.style.setProperty("--play-own", ink(color));
        element(item, "span", {}, text || option);
      }
      return {
        get value() {
          return box.querySelector("input:checked").value;
        },
        set hidden(hidden) {
          box.hidden = hidden;
        },
      };
    }

    button(label, click, reset) {
      const button = element(this.controls, "button", { type: "button" }, label);
      button.addEventListener("click", () => {
        click();
        this.update();
      });
      if (reset) this.resets.push(reset);
      return button;
    }

    say(text) {
      if (this.said !== text) write(this.finding, text);
      this.said = text;
    }

    draw(paint) {
      this.paint = paint;
    }

    /* Draw before the next frame, once for all that changed. */
    update() {
      this.asked = this.asked || requestAnimationFrame(() => this.redraw());
    }

    redraw() {
      this.asked = null;
      if (!this.root.clientWidth) return; // not shown, as in print
      this.guard(() => {
        this.all.forEach((plot) => plot.begin());
        this.paint();
        this.all.forEach((plot) => plot.end());
      });
    }

    show() {
      this.host.prepend(this.root);
      this.host.classList.add("play-host");
      this.redraw();
      let width = this.root.clientWidth;
      new ResizeObserver(() => {
        if (this.root.clientWidth !== width) this.update();
        width = this.root.clientWidth;
      }).observe(this.root);
      const theme = { attributes: true, attributeFilter: ["data-theme"] };
      new MutationObserver(() => this.update()).observe(document.documentElement, theme);
    }

    /* What fails gives its place back to the picture. */
    guard(work) {
      try {
        work();
      } catch (error) {
        this.root.remove();
        this.host.classList.remove("play-host");
        console.error(error);
      }
    }
  }

  flatnb.play = (name, mount) => {
    for (const node of document.querySelectorAll(`.tag_play-${name}, [data-play="${name}"]`)) {
      const host = node.querySelector("figure") || node.querySelector(".cell_output") || node;
      const fig = new Figure(host, name);
      fig.guard(() => {
        mount(fig);
        fig.show();
      });
    }
  };
})();
