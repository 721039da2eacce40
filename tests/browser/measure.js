// What the tests measure in a page. Each function returns plain data: mostly the names of
// the elements at fault.
window.measure = (() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const style = getComputedStyle;

  // Nothing is measured on its way from one look to another.
  const still = document.createElement("style");
  still.textContent = "*, *::before, *::after { transition: none !important; }";
  document.head.append(still);

  const shown = (element) =>
    element.checkVisibility({ visibilityProperty: true }) &&
    element.getBoundingClientRect().width > 0;

  // The way to an element that a reader of a report finds it by.
  const name = (element) => {
    const part = (one) => one.localName + (one.id ? `#${one.id}` : "") +
      [...one.classList].slice(0, 2).map((label) => `.${label}`).join("");
    const named = element.parentElement?.closest("[id], section, figure, nav");
    const words = (element.textContent || element.value || "").trim().replace(/\s+/g, " ");
    return `${named ? part(named) + " " : ""}${part(element)}` +
      (words ? ` "${words.slice(0, 40)}"` : "");
  };

  // What looks and stands alike is of one kind.
  const kind = (element) => {
    const around = [element, element.parentElement, element.parentElement?.parentElement];
    return around.filter(Boolean).map((one) =>
      `${one.localName}.${one.getAttribute("class")} ${one.getAttribute("style")}`)
      .join(" in ") + style(element).color;
  };

  // Two of each kind, which need not be measured a hundred times.
  const few = (elements) => {
    const kinds = {};
    return elements.filter((element) =>
      (kinds[kind(element)] = (kinds[kind(element)] ?? 0) + 1) <= 2);
  };

  // The nearest box, the element itself or one around it, that does not show what sticks
  // out of it.
  const clip = (element) => {
    const drawn = element.matches("img, svg, canvas");  // those clip themselves
    const first = drawn ? element.parentElement : element;
    for (let box = first; box && box !== document.body; box = box.parentElement) {
      if (style(box).overflowX !== "visible" && style(box).display !== "inline") return box;
    }
    return null;
  };
  const overfull = (box) => box.scrollWidth > box.clientWidth + 1;

  // Everything that a page must show: what a script draws comes a moment after loading.
  const ready = async () => {
    await window.MathJax?.startup?.promise;
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    for (let i = 0; i < 300 && document.querySelector(".play-chart:empty"); i++) await frame();
    await frame();
    await document.fonts.ready;  // those of the formulas, too
    await frame();
  };

  // Addresses of all that was fetched.
  const fetched = () => performance.getEntries()
    .filter((entry) => ["navigation", "resource"].includes(entry.entryType))
    .map((entry) => entry.name);

  // Elements that stick out of the window. In a box that scrolls only what is left of its
  // beginning, where nobody gets.
  const outside = () => {
    const width = document.documentElement.clientWidth;
    const inner = "svg *, mjx-math *, mjx-assistive-mml, .visually-hidden, .window > img";
    const boxes = new Map();  // of each parent
    const found = all("main *").filter((element) => {
      if (!shown(element) || element.closest(inner)) return false;
      const { left, right } = element.getBoundingClientRect();
      const parent = element.parentElement;
      if (!boxes.has(parent)) boxes.set(parent, clip(parent));
      const box = boxes.get(parent);
      if (box && ["auto", "scroll"].includes(style(box).overflowX)) {
        return left + box.scrollLeft < box.getBoundingClientRect().left - 1;
      }
      return right > width + 1 || left < -1;
    });
    const outer = found.filter((element) => !found.includes(element.parentElement));
    const page = document.documentElement.scrollWidth - width;
    return [...(page > 0 ? [`the page by ${page} px`] : []), ...outer.map(name)];
  };

  // Pictures, drawings and canvases without a text that says what they show; none is asked
  // of one in a link with words, such as a logo beside a name.
  const silent = () => all("img, canvas, svg[role=img], [role=img]").filter((picture) => {
    if (picture.closest("[aria-hidden=true]")) return false;
    if (picture.closest("a")?.textContent.trim()) return false;
    if (["none", "presentation"].includes(picture.getAttribute("role"))) return false;
    const labelled = picture.getAttribute("aria-labelledby");
    const text = picture.getAttribute("alt") ?? picture.getAttribute("aria-label") ??
      (labelled && document.getElementById(labelled)?.textContent) ??
      picture.querySelector("title")?.textContent ?? "";
    return !text.trim() || /\.(png|svg|jpe?g)$/.test(text);  // the name of a file says nothing
  }).map((picture) => `${name(picture)} ${picture.getAttribute("src") ?? ""}`.slice(0, 120));

  // Pictures that were fetched and are none.
  const broken = () => all("img").filter((image) =>
    image.complete && !image.naturalWidth && image.loading !== "lazy")
    .map((image) => image.getAttribute("src").slice(0, 100));

  // Figures in columns whose windows do not show all of them, from the left to the right end.
  const parted = () => all("main .columns").filter((columns) => {
    const own = [...columns.children].map((column) => column.lastElementChild.style);
    const part = (style, side) => Number(style.getPropertyValue(`--${side}`));
    const ends = [0, ...own.map((style) => part(style, "from") + part(style, "part"))];
    return ends.at(-1) < 0.998 ||
      own.some((style, i) => Math.abs(part(style, "from") - ends[i]) > 0.002);
  }).map(name);

  const headings = () => {
    const found = all("h1, h2, h3, h4, h5, h6").filter(shown);
    const level = (heading) => Number(heading.localName[1]);
    const tops = found.filter((heading) => level(heading) === 1).length;
    const skipped = found.filter((heading, i) =>
      i > 0 && level(heading) > level(found[i - 1]) + 1);
    return [...(tops === 1 ? [] : [`${tops} times h1`]),
      ...skipped.map((heading) => `skips a level: ${name(heading)}`)];
  };

  // Tables of results with more than six columns, without the names of their rows.
  const crowded = () => all("main table.dataframe").filter((table) =>
    Math.max(...all("tr", table).map((row) => row.cells.length)) > 7).map(name);

  const repeated = () => {
    const ids = all("[id]").map((element) => element.id);
    return [...new Set(ids.filter((id, i) => ids.indexOf(id) !== i))];
  };

  // Figures to play with.
  const live = () => all("[data-play], [class*=tag_play-], .vega-embed");

  // Formulas that are still TeX.
  const unset = () => all("main .math").filter((formula) =>
    shown(formula) && !formula.querySelector("mjx-container")).map(name);

  // Tables, code and pictures wider than the box that shows them, where nothing says that they
  // go on: no shadow at the edge, which is a background or a mask of gradients.
  const unannounced = () => all("main pre, main table, main :not(.window) > img").filter((wide) => {
    const box = clip(wide);
    if (!shown(wide) || !box || !overfull(box)) return false;
    const fades = [box, box.parentElement].some((one) =>
      [style(one).backgroundImage, style(one).maskImage].join().includes("gradient"));
    return !fades;
  }).map(name);

  // Tables, figures and formulas that go on outside their box; the plan of the rooms may.
  const scrolling = () => all("main :is(table, div.math, .picture)").filter((wide) => {
    const box = clip(wide);
    return shown(wide) && box && overfull(box) && !wide.querySelector("svg.architecture");
  }).map(name);

  // Controls of which nothing changes to the eye when the keyboard comes to them, two of a
  // kind. The caller has pressed a key, so that focus is shown as for a reader who uses the
  // keyboard.
  const unmarked = () => {
    const looks = ["outlineStyle", "outlineWidth", "outlineColor", "boxShadow", "borderColor",
      "borderWidth", "backgroundColor", "textDecorationLine", "textDecorationThickness"];
    const look = (element) => {
      const around = [element, element.parentElement, ...element.children,
        ...(element.labels ?? []), element.nextElementSibling].filter(Boolean);
      return around.flatMap((one) => [undefined, "::before", "::after"].map((side) => {
        const now = getComputedStyle(one, side);
        // The colour of an outline that is not drawn follows the text's.
        return looks.map((key) => now.outlineStyle === "none" && key.startsWith("outline")
          ? "" : now[key]).join(";");
      })).join("|");
    };
    const visible = (element) => {
      if (!shown(element)) return false;
      for (let one = element; one; one = one.parentElement) {
        if (style(one).opacity === "0") return false;
      }
      return true;
    };
    const found = few(controls()).filter((control) => {
      document.activeElement?.blur();
      const before = look(control);
      control.focus({ preventScroll: true });
      const marked = document.activeElement === control && look(control) !== before;
      // A hidden input stands for the label that is seen in its place.
      return !marked || ![control, ...(control.labels ?? [])].some(visible);
    });
    document.activeElement?.blur();
    return found.map(name);
  };

  // Elements with words of their own, two of a kind, of which axe is to compare the colors:
  // of all it takes minutes. Not those of a kind, letter and ground that pages before this one
  // had. Returns the kinds; `words.found` has the elements.
  const words = (before) => {
    const known = new Set(before);
    const look = (element) => {
      const { color, fontSize, fontWeight } = style(element);
      let ground = element;
      while (ground.parentElement && style(ground).backgroundImage === "none" &&
        style(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
      const { backgroundColor, backgroundImage } = style(ground);
      const around = element.parentElement ? style(element.parentElement).color : "";
      return [kind(element), color, fontSize, fontWeight, around, backgroundColor,
        backgroundImage].join(";");
    };
    const texts = few(all("body *").filter((element) => shown(element) &&
      [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())));
    words.found = texts.filter((element) => !known.has(look(element)));
    return words.found.map(look);
  };

  const controls = () => all(
    "a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex]"
  ).filter((control) => control.tabIndex >= 0 && !control.disabled && shown(control));

  // On paper: what a box cuts off, and what is taller than a page.
  const cut = (tall) => {
    const across = all("main pre, main table, main figure, main img, main svg, main div.math")
      .filter((element) => {
        if (!shown(element) || element.closest("mjx-container")) return false;
        const box = clip(element);
        const { right } = element.getBoundingClientRect();
        return (box && overfull(box)) || right > document.documentElement.clientWidth + 1;
      });
    const down = all("main pre, main div, main figure").filter((box) =>
      shown(box) && ["auto", "scroll", "hidden"].includes(style(box).overflowY) &&
      !box.matches(".math, .math *") && box.scrollHeight > box.clientHeight + 1);
    const high = all("main figure, main img").filter((figure) =>
      shown(figure) && figure.getBoundingClientRect().height > tall);
    return [...across.map((one) => `cut at the right: ${name(one)}`),
      ...down.map((one) => `cut below: ${name(one)}`),
      ...high.map((one) => `taller than a page: ${name(one)}`)];
  };

  // Where in the window, in px, the finding of a chapter ends, how much is seen of its first
  // picture (of its height), and where the heading of its first section ends.
  const opening = () => {
    const box = (element) => element?.getBoundingClientRect();
    const picture = box(all("main article :is(img, svg, .play)")
      .find((one) => shown(one) && one.getBoundingClientRect().width > 200));
    return {
      finding: box(document.querySelector("main h1 ~ p strong"))?.bottom,
      seen: picture && Math.max(0, Math.min(innerHeight, picture.bottom) - picture.top),
      picture: picture?.height,
      section: box(all("main h2").find(shown))?.bottom,
    };
  };

  return { ready, fetched, outside, silent, broken, parted, headings, repeated, crowded, live, unset,
    unannounced, scrolling, unmarked, words, controls, cut, opening, name, shown };
})();
