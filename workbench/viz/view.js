// The live token view (view.py). All text is set with textContent: it is what a model wrote.
// Nothing is fetched.
//
// Words: a *pane* is one column of coloured tokens (0: the layer; 1: what is beside it); a *card* is
// one rollout of the group.

const FOLD = 300; // tokens from which a rollout is folded
const IN_SIGHT = 3; // of a folded rollout: the steps of its strongest tokens
const WIDEST = 90; // characters; a wider card has a row of its own
// layers that few look at: a group of their own in the menus, folded away in the details
const MORE = /(^| )(pg|nll|kl|mask|ratio|rank|borrowed)$/;

const MARK = { "-1": "▼", 0: "·", 1: "▲" };
const SORTS = {
  "as sampled": null,
  reward: (r) => -r.reward,
  length: (r) => r.ids.length,
  origin: (r) => r.origin,
  "first wrong step": (r) => r.wrong ?? Infinity,
};

function make(tag, kind, text, attributes = {}) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** A number in words, as tokens.signed writes it. */
function signed(value, digits = 2) {
  if (value === null || value === undefined) return "none";
  return value ? (value > 0 ? "+" : "−") + Math.abs(value).toFixed(digits) : "0";
}
/** tokens.worded and tokens.marked_as: a layer of sizes has no signs. */
const worded = (value, layer, digits = 2) =>
  layer.signed || !value ? signed(value, digits) : value.toFixed(digits);
const marked = (value, layer) =>
  layer.signed ? `${MARK[Math.sign(value ?? 0)]} ${signed(value)}` : worded(value, layer);
const cut = (text, size) => (text.length > size ? `${text.slice(0, size)}…` : text);
const percent = (logprob) => {
  const p = 100 * Math.exp(logprob);
  return p < 0.1 ? "<0.1 %" : `${p < 10 ? p.toFixed(1) : p.toFixed(0)} %`;
};

/** style.level: -levels ... levels. */
function level(value, limit, data) {
  if (value === null || Math.abs(value) < data.faint * limit) return 0;
  return (
    Math.sign(value) *
    Math.min(data.levels, Math.max(1, Math.ceil((Math.abs(value) / limit) * data.levels)))
  );
}
function kind(value, limit, layer, data) {
  if (value === null) return "wb-none";
  const shade = level(value, limit, data);
  return shade ? `wb-${layer.signed ? (shade > 0 ? "u" : "d") : "s"}${Math.abs(shade)}` : "wb-0";
}

class View {
  constructor(model, el) {
    this.model = model;
    this.data = model.get("data");
    this.scale = "robust";
    this.fixed = null; // the end of the scale while `scale` is "fixed"
    this.shown = "all";
    this.sort = "as sampled";
    this.root = el.appendChild(
      make("div", "wb-heat wb-view", undefined, {
        dir: "ltr",
        "data-lm-suppress-shortcuts": "true",
      }),
    );
    this.root.setAttribute("role", "region");
    this.root.setAttribute("aria-label", "Token view");
    this.bar = this.root.appendChild(make("div", "wb-tools"));
    this.question = this.root.appendChild(make("div", "wb-questions"));
    this.legends = this.root.appendChild(make("div", "wb-legends"));
    const main = this.root.appendChild(make("div", "wb-main"));
    this.grid = main.appendChild(make("div", "wb-cards"));
    this.aside = main.appendChild(
      make("aside", "wb-details", undefined, { "aria-label": "Token details" }),
    );
    this.status = this.root.appendChild(make("div", "wb-status", undefined, { role: "status" }));
    this.root.appendChild(
      make(
        "div",
        "wb-keys",
        "← → token   ↑ ↓ step   PgUp PgDn rollout   Enter or click: failure point   " +
          "Shift: span   S: strongest   L: next layer   Esc: clear",
      ),
    );
    // while the live view is there, its static twin (display.py) is not
    el.append(make("style", "", `#${model.get("twin")}{display:none!important}`));
    this.listen();
    this.build();
  }

  // ---- what is shown ----------------------------------------------------------------------------
  get group() {
    return this.data.groups[this.model.get("group")];
  }
  layerNamed(name) {
    return this.group.layers.find((l) => l.name === name) ?? this.group.layers[0];
  }
  /** The layer of each pane; a second pane with another rollout has the first one's layer. */
  get layers() {
    const beside = this.model.get("beside");
    const first = this.layerNamed(this.model.get("layer"));
    return beside === null
      ? [first]
      : [first, typeof beside === "number" ? first : this.layerNamed(beside)];
  }
  /** Which rollout pane `pane` of card `card` shows. */
  rolloutOf(pane, card) {
    const beside = this.model.get("beside");
    return pane && typeof beside === "number" ? beside : card;
  }
  limit(layer) {
    return this.scale === "fixed" ? this.fixed : layer[this.scale];
  }
  set(changes) {
    for (const [name, value] of Object.entries(changes)) this.model.set(name, value);
    this.model.save_changes();
  }

  listen() {
    this.handlers = [
      [
        "change:group change:beside change:data",
        () => {
          this.data = this.model.get("data");
          this.build();
        },
      ],
      [
        "change:layer",
        () => {
          this.tools();
          this.cards.forEach((_, card) => this.folded(card) && this.fill(card));
          this.color();
        },
      ],
      ["change:selected change:failure_point change:span", () => this.choose()],
    ];
    for (const [events, act] of this.handlers) this.model.on(events, act);
    const place = (event) => this.places.get(event.target.closest?.(".wb-t"));
    this.grid.addEventListener("pointerover", (event) => {
      const at = place(event);
      if (at) this.look(at);
    });
    this.grid.addEventListener("focusin", (event) => {
      const at = place(event);
      if (at) {
        this.rove(at);
        this.look(at);
      }
    });
    this.grid.addEventListener("mousedown", (event) => {
      if (event.shiftKey) event.preventDefault(); // no text selection
    });
    this.grid.addEventListener("click", (event) => {
      const at = place(event);
      if (at) this.click(at, event.shiftKey);
    });
    this.grid.addEventListener("keydown", (event) => this.key(event));
  }
  close() {
    for (const [events, act] of this.handlers) this.model.off(events, act);
  }

  // ---- building ---------------------------------------------------------------------------------
  build() {
    const panes = this.layers.length;
    this.places = new Map(); // token element -> {pane, card, rollout, index}
    // [pane][card] -> {rollout, tokens: [elements], sums: [..], strip: [..]}
    this.panes = Array.from({ length: panes }, () => []);
    this.hovered = [];
    this.roving = null;
    this.tools();
    this.question.replaceChildren(
      ...this.group.messages.map(([role, text]) => {
        const line = make("div", "wb-q", `${role}: `);
        line.append(make("span", "", text));
        return line;
      }),
    );
    this.width = 30; // characters of the widest card, so that as many stand side by side as fit
    this.opened = this.group.rollouts.map(() => new Set()); // steps that were unfolded by hand
    this.cards = this.group.rollouts.map((rollout, card) => this.card(rollout, card, panes));
    this.grid.style.setProperty("--wb-card", `${Math.min(this.width, WIDEST)}ch`);
    this.aside.replaceChildren(
      make("p", "wb-hint", "Hover over a token, or move to it with the arrow keys."),
    );
    this.color();
    this.arrange();
  }

  card(rollout, card, panes) {
    const section = make("section", "wb-card", undefined, { "aria-label": `rollout ${card + 1}` });
    const head = section.appendChild(make("button", "wb-head", undefined, { type: "button" }));
    head.append(
      make("b", "", `${card + 1} ${rollout.reward === null ? "?" : rollout.correct ? "✓" : "✗"}`),
      make(
        "span",
        "",
        [
          rollout.reward === null ? "verdict unknown" : `reward ${rollout.reward}`,
          `${rollout.ids.length} tokens`,
          ...(rollout.origin === "policy" ? [] : [rollout.origin]),
          ...(rollout.borrowed ? [`${rollout.borrowed} borrowed`] : []),
          ...(rollout.finished ? [] : ["cut off"]),
          ...(rollout.wrong === null ? [] : [`first error: step ${rollout.wrong + 1}`]),
        ].join(" · "),
      ),
    );
    head.addEventListener("click", () =>
      this.set({ selected: card, failure_point: null, span: null }),
    );
    const strip = section.appendChild(
      make("div", "wb-strip", undefined, { "aria-hidden": "true" }),
    );
    section.append(
      make("div", `wb-lines wb-panes${panes}`, undefined, {
        role: "group",
        "aria-label": `tokens of rollout ${card + 1}`,
      }),
    );
    const columns = Array.from({ length: panes }, (_, pane) => this.column(pane, card));
    this.width = Math.max(
      this.width,
      columns.reduce((sum, column) => sum + column.widest + 9, 4),
    );
    columns.forEach((column, pane) => {
      this.panes[pane][card] = column;
    });
    const ends = [...rollout.starts.slice(1), rollout.ids.length];
    columns[0].strip = rollout.starts.map((start, step) => {
      const part = strip.appendChild(make("span", ""));
      part.style.flexGrow = ends[step] - start;
      part.addEventListener("click", () => this.go(0, card, start));
      return part;
    });
    this.fill(card, section);
    return section;
  }

  /** The place for the tokens of one rollout in one card; they are made a step at a time. */
  column(pane, card) {
    const rollout = this.rolloutOf(pane, card);
    const { starts, texts } = this.group.rollouts[rollout];
    const sizes = starts.map((start, step) =>
      texts
        .slice(start, starts[step + 1])
        .reduce((size, text) => size + this.data.texts[text].length, 0),
    );
    const widest = Math.max(...sizes, 0);
    return { pane, card, rollout, widest, tokens: [], steps: [], sums: [], strip: [] };
  }

  /** The tokens of one step, each a button outside the tab order; and their sum. */
  step(column, step) {
    if (column.steps[step]) return;
    const { pane, card, rollout } = column;
    const { starts, texts } = this.group.rollouts[rollout];
    const line = make("span", "wb-toks");
    for (let index = starts[step]; index < (starts[step + 1] ?? texts.length); index++) {
      const element = make("span", "wb-t", this.data.texts[texts[index]], {
        role: "button",
        tabindex: "-1",
      });
      line.append(element);
      this.places.set(element, { pane, card, rollout, index, step });
      column.tokens[index] = element;
    }
    column.steps[step] = line;
    column.sums[step] = make("span", "wb-sum");
  }

  folded(card) {
    return this.panes.some(
      (columns) => this.group.rollouts[columns[card].rollout].ids.length > FOLD,
    );
  }

  /** The steps of a folded card that are shown: those of the strongest tokens, of the failure point
   *  and of the first error, and what was unfolded by hand. */
  inSight(card) {
    const steps = new Set(this.opened[card]);
    this.panes.forEach((columns, pane) => {
      const { rollout } = columns[card];
      const { starts, wrong } = this.group.rollouts[rollout];
      const stepOf = (index) => starts.findLastIndex((start) => start <= index);
      const values = this.layers[pane].values[rollout];
      const ranked = values.map((v, i) => [Math.abs(v ?? 0), i]).sort((a, b) => b[0] - a[0]);
      ranked.slice(0, IN_SIGHT).forEach(([, index]) => steps.add(stepOf(index)));
      if (wrong !== null) steps.add(wrong);
      const point = this.model.get("failure_point");
      if (rollout === this.model.get("selected") && point !== null) steps.add(stepOf(point));
    });
    return steps;
  }

  /** The rows of a card: its steps, and a button in place of those that are folded. */
  fill(card, section = this.cards[card]) {
    const columns = this.panes.map((pane) => pane[card]);
    const { wrong } = this.group.rollouts[columns[0].rollout];
    const count = Math.max(...columns.map((c) => this.group.rollouts[c.rollout].starts.length));
    const seen = this.folded(card) ? this.inSight(card) : null;
    const rows = [];
    for (let step = 0; step < count; step++) {
      if (seen && !seen.has(step)) {
        let end = step;
        while (end + 1 < count && !seen.has(end + 1)) end++;
        rows.push(this.fold(card, step, end));
        step = end;
        continue;
      }
      const bad = step === wrong;
      rows.push(
        make("span", `wb-step${bad ? " wb-bad" : ""}`, `${bad ? "✗ " : ""}${step + 1}`, {
          title: bad ? "the first wrong step" : "step",
        }),
      );
      for (const column of columns) {
        const there = step < this.group.rollouts[column.rollout].starts.length;
        if (there) this.step(column, step);
        const parts = there ? [column.steps[step], column.sums[step]] : [make("span"), make("span")];
        rows.push(...parts);
      }
    }
    section.querySelector(".wb-lines").replaceChildren(...rows);
  }

  /** The button that stands for the steps from `first` to `last`. */
  fold(card, first, last) {
    const { starts, ids } = this.group.rollouts[this.panes[0][card].rollout];
    const size = (starts[last + 1] ?? ids.length) - (starts[first] ?? ids.length);
    const steps = first === last ? `step ${first + 1}` : `steps ${first + 1} to ${last + 1}`;
    const button = make("button", "wb-fold", `⋯ ${steps}, ${size} tokens`, { type: "button" });
    button.addEventListener("click", () => {
      for (let step = first; step <= last; step++) this.opened[card].add(step);
      this.fill(card);
      this.color();
      this.go(0, card, starts[first]);
    });
    return button;
  }

  /** The element of a token, its step unfolded where it is not shown. */
  element(pane, card, index) {
    const column = this.panes[pane][card];
    const { starts } = this.group.rollouts[column.rollout];
    const step = starts.findLastIndex((start) => start <= index);
    if (!column.steps[step]?.parentNode && this.folded(card)) {
      this.opened[card].add(step);
      this.fill(card);
      this.color();
    }
    return column.tokens[index];
  }

  tools() {
    const pick = (label, options, value, then) => {
      const holder = make("label", "", `${label} `);
      const select = holder.appendChild(make("select", "", undefined, { "aria-label": label }));
      for (const [v, text, group] of options) {
        let parent = select;
        if (group) {
          parent =
            [...select.children].find((c) => c.label === group) ??
            select.appendChild(make("optgroup", "", undefined, { label: group }));
        }
        parent.append(make("option", "", text, { value: v }));
      }
      select.value = value;
      select.addEventListener("change", () => then(select.value));
      return holder;
    };
    const { layers, rollouts } = this.group;
    const beside = this.model.get("beside");
    const names = layers.map((l) => [l.name, l.name, MORE.test(l.name) ? "more" : ""]);
    const others = [
      ["", "nothing"],
      ...layers.map((l) => [`l${l.name}`, l.name, "layer"]),
      ...rollouts.map((_, i) => [`r${i}`, `rollout ${i + 1}`, "rollout"]),
    ];
    const origins = [...new Set(rollouts.map((r) => r.origin))];
    const filters = [
      "all",
      "right",
      "wrong",
      ...(origins.length > 1 ? origins : []),
      ...(rollouts.some((r) => r.wrong !== null) ? ["with a wrong step"] : []),
    ];
    const widgets = [
      ...(this.data.groups.length > 1
        ? [
            pick(
              "Group",
              this.data.groups.map((g, i) => [i, g.title]),
              this.model.get("group"),
              (v) =>
                this.set({
                  group: Number(v),
                  beside: null,
                  selected: 0,
                  failure_point: null,
                  span: null,
                }),
            ),
          ]
        : []),
      pick("Layer", names, this.layers[0].name, (layer) => this.set({ layer })),
      pick(
        "Beside",
        others,
        beside === null ? "" : typeof beside === "number" ? `r${beside}` : `l${beside}`,
        (v) => this.set({ beside: !v ? null : v[0] === "r" ? Number(v.slice(1)) : v.slice(1) }),
      ),
      pick(
        "Scale",
        [
          ["robust", "robust"],
          ["max", "largest"],
          ["fixed", "fixed"],
        ],
        this.scale,
        (v) => {
          this.fixed = Number(this.limit(this.layers[0]).toPrecision(2));
          this.scale = v;
          this.tools();
          this.color();
        },
      ),
      ...(this.scale === "fixed" ? [this.end()] : []),
      pick(
        "Show",
        filters.map((v) => [v, v]),
        filters.includes(this.shown) ? this.shown : "all",
        (v) => {
          this.shown = v;
          this.arrange();
        },
      ),
      pick(
        "Sort",
        Object.keys(SORTS).map((v) => [v, v]),
        this.sort,
        (v) => {
          this.sort = v;
          this.arrange();
        },
      ),
      make("button", "", "Strongest", {
        type: "button",
        title: "go to the strongest token, then the next (S)",
      }),
    ];
    widgets.at(-1).addEventListener("click", () => this.strongest());
    const focused = [...this.bar.children].findIndex((c) => c.contains(document.activeElement));
    this.bar.replaceChildren(...widgets);
    // a keyboard user stays where they were
    if (focused >= 0) (widgets[focused]?.control ?? widgets[focused])?.focus();
  }
  end() {
    const holder = make("label", "", "± ");
    const input = holder.appendChild(
      make("input", "", undefined, {
        type: "number",
        min: "0",
        step: "any",
        "aria-label": "end of the scale",
      }),
    );
    input.value = this.fixed;
    input.addEventListener("change", () => {
      if (Number(input.value) > 0) {
        this.fixed = Number(input.value);
        this.color();
      }
    });
    return holder;
  }

  /** Filter and sort the cards; their order in the document is the order on the screen. */
  arrange() {
    const { rollouts } = this.group;
    const by = SORTS[this.sort];
    const order = rollouts.map((_, i) => i);
    if (by) {
      order.sort((a, b) => {
        const [x, y] = [by(rollouts[a]), by(rollouts[b])];
        return x < y ? -1 : x > y ? 1 : a - b;
      });
    }
    const fits = (r) =>
      ({
        all: true,
        right: r.correct,
        wrong: !r.correct && r.reward !== null,
        "with a wrong step": r.wrong !== null,
      })[
        this.shown
      ] ?? r.origin === this.shown;
    this.order = order.filter((i) => fits(rollouts[i]));
    this.grid.replaceChildren(...this.order.map((i) => this.cards[i]));
    if (!this.order.length) this.grid.append(make("p", "wb-hint", "No rollout is of this kind."));
    if (this.order.length && !this.order.includes(this.roving?.card)) {
      this.rove({ pane: 0, card: this.order[0], index: 0 });
    }
  }

  // ---- colouring --------------------------------------------------------------------------------
  color() {
    this.layers.forEach((layer, pane) => {
      const limit = this.limit(layer);
      for (const column of this.panes[pane]) {
        const rollout = this.group.rollouts[column.rollout];
        const values = layer.values[column.rollout];
        const { ids, texts, starts } = rollout;
        // forEach leaves out the tokens of steps that were never shown
        column.tokens.forEach((element, i) => {
          element.className = `wb-t ${kind(values[i], limit, layer, this.data)}`;
          element.setAttribute(
            "aria-label",
            `“${cut(this.data.texts[texts[i]], 40)}”, token ${i + 1} of ${ids.length}, ` +
              `${layer.name} ${worded(values[i], layer, 3)}`,
          );
        });
        const sums = starts.map((start, step) => {
          const present = values.slice(start, starts[step + 1]).filter((v) => v !== null);
          return present.length ? present.reduce((a, b) => a + b, 0) : null;
        });
        column.sums.forEach((element, step) => {
          element.textContent = marked(sums[step], layer);
          element.title = `${layer.name} summed over step ${step + 1}`;
        });
        const most = Math.max(...sums.map((v) => Math.abs(v ?? 0))) || 1;
        column.strip.forEach((part, step) => {
          part.className = kind(sums[step], most, layer, this.data);
          part.title = `step ${step + 1}: ${marked(sums[step], layer)}`;
        });
      }
    });
    this.legends.replaceChildren(...this.layers.map((layer, pane) => this.legend(layer, pane)));
    this.choose();
    this.look(this.looking);
  }

  legend(layer, pane) {
    const limit = this.limit(layer);
    const values = layer.values.flat();
    const present = values.filter((v) => v !== null);
    const line = make("div", "wb-legend");
    const beside = this.model.get("beside");
    const where =
      this.layers.length < 2
        ? ""
        : pane
          ? `right${typeof beside === "number" ? `, rollout ${beside + 1}` : ""}: `
          : "left: ";
    line.append(where, make("b", "", layer.name), ` (${layer.unit}) `);
    if (!present.some((v) => v)) {
      line.append(present.length ? "0 on every token" : "no numbers");
      return line;
    }
    const beyond = present.some((v) => Math.abs(v) > limit);
    const bar = make("span", "wb-bar", undefined, { "aria-hidden": "true" });
    const sides = [-1, 1].filter((side) => present.some((v) => v * side > 0));
    const { levels } = this.data;
    for (let s = -levels; s <= levels; s++) {
      if (s === 0 || sides.includes(Math.sign(s))) {
        bar.append(
          make(
            "span",
            `wb-t ${kind((s / levels) * limit, limit, layer, this.data)}`,
            s ? "\u00a0" : "0",
          ),
        );
      }
    }
    if (sides.includes(-1)) {
      line.append(`▼ line below, ${layer.down}: ${beyond ? "≤ " : ""}${signed(-limit)} `);
    }
    line.append(bar);
    if (sides.includes(1)) {
      line.append(
        ` ${beyond ? "≥ " : ""}${worded(limit, layer)}: ${layer.up}, ` +
          (layer.signed ? "line above ▲" : "dotted line"),
      );
    }
    if (present.length < values.length) line.append(". Grey italics: no number");
    return line;
  }

  /** The selected rollout, its failure point and its span, in words too. */
  choose() {
    const card = this.model.get("selected");
    const point = this.model.get("failure_point");
    if (point !== null) this.element(0, card, point);
    const span = this.model.get("span");
    for (const element of this.chosen ?? []) {
      element.classList.remove("wb-fail", "wb-range");
      element.removeAttribute("aria-current");
    }
    this.chosen = new Set();
    for (const columns of this.panes) {
      for (const { rollout, tokens } of columns) {
        if (rollout !== card) continue;
        const add = (index, name) => {
          const e = tokens[index];
          if (e) {
            e.classList.add(name);
            this.chosen.add(e);
          }
          return e;
        };
        if (point !== null) add(point, "wb-fail")?.setAttribute("aria-current", "true");
        if (span) for (let i = span[0]; i < span[1]; i++) add(i, "wb-range");
      }
    }
    this.cards.forEach((section, i) => {
      section.classList.toggle("wb-chosen", i === card);
      section.firstChild.setAttribute("aria-pressed", i === card);
    });
    const rollout = this.group.rollouts[card];
    const text = (i) => `“${cut(this.data.texts[rollout.texts[i]], 20)}”`;
    this.status.textContent = [
      `rollout ${card + 1}`,
      point === null ? "no failure point" : `failure point: token ${point + 1} ${text(point)}`,
      ...(span ? [`span: tokens ${span[0] + 1} to ${span[1]}`] : []),
    ].join(" · ");
  }

  // ---- looking at one token ---------------------------------------------------------------------
  /** The place in another pane's rollout that goes with `at`: the same token, or the same place in
   *  the same step. */
  twin(at, rollout) {
    if (rollout === at.rollout) return at.index;
    const from = this.group.rollouts[at.rollout].starts;
    const to = this.group.rollouts[rollout].starts;
    const index = to[at.step] + at.index - from[at.step];
    return index < (to[at.step + 1] ?? this.group.rollouts[rollout].ids.length) ? index : -1;
  }

  look(at) {
    this.looking = at;
    for (const element of this.hovered) element.classList.remove("wb-hover");
    this.hovered = [];
    if (!at || !this.panes[at.pane]?.[at.card]) return;
    for (const columns of this.panes) {
      const column = columns[at.card];
      const element = column.tokens[this.twin(at, column.rollout)];
      if (element) {
        element.classList.add("wb-hover");
        this.hovered.push(element);
      }
    }
    this.aside.replaceChildren(...this.details(at));
  }

  details({ rollout: number, index, step }) {
    const rollout = this.group.rollouts[number];
    const { texts } = this.data;
    const text = texts[rollout.texts[index]];
    const title = make("div", "wb-big", cut(text, 400));
    const where = make(
      "div",
      "wb-where",
      `rollout ${number + 1}, step ${step + 1}, token ${index + 1} of ${rollout.ids.length}, ` +
        `id ${rollout.ids[index]}` +
        (text.length > 400 ? `; ${text.length} characters` : "") +
        (index < rollout.borrowed ? "; borrowed" : ""),
    );
    const table = (layers) => {
      const numbers = make("table", "wb-numbers");
      for (const layer of layers) {
        const row = numbers.insertRow();
        row.append(
          make("th", "", layer.name, { scope: "row" }),
          make("td", "", marked(layer.values[number][index], layer)),
        );
        if (this.layers.includes(layer)) row.className = "wb-on";
      }
      return numbers;
    };
    const first = this.group.layers.filter((l) => !MORE.test(l.name) || this.layers.includes(l));
    const rest = this.group.layers.filter((l) => !first.includes(l));
    const parts = [title, where, ...this.sides(rollout, index), table(first)];
    if (rest.length) {
      const more = make("details", "wb-more-numbers");
      more.append(make("summary", "", "more numbers"), table(rest));
      more.open = this.unfolded ?? false;
      more.addEventListener("toggle", () => {
        this.unfolded = more.open;
      });
      parts.push(more);
    }
    return parts;
  }

  /** What each side says of this token, and what it would rather have written. */
  sides(rollout, index) {
    const names = Object.keys(rollout.sides);
    if (!names.length) return [];
    const table = make("table", "wb-sides");
    const head = table.createTHead().insertRow();
    const body = table.createTBody();
    head.append(make("th"), ...names.map((name) => make("th", "", name, { scope: "col" })));
    const row = (label, cell) => {
      const line = body.insertRow();
      line.append(
        make("th", "", label, { scope: "row" }),
        ...names.map((n) => cell(rollout.sides[n])),
      );
    };
    row("log-prob", (side) => make("td", "", signed(side.logprob[index])));
    row("probability", (side) => make("td", "", percent(side.logprob[index])));
    row("place in its list", (side) => make("td", "", String(side.rank[index])));
    row("entropy", (side) => make("td", "", side.entropy[index]?.toFixed(2) ?? "none"));
    return [table, ...names.map((name) => this.likeliest(name, rollout, index))];
  }

  /** What a side would write here, a line each: there is room for words. */
  likeliest(name, rollout, index) {
    const side = rollout.sides[name];
    const list = make("div", "wb-would");
    list.append(make("div", "wb-who", `${name} would write`));
    side.top[index].forEach((text, place) => {
      const own = side.top_ids[index][place] === rollout.ids[index];
      const logprob = side.top_logprob[index][place];
      const line = list.appendChild(make("div", `wb-top${own ? " wb-own" : ""}`));
      line.style.setProperty("--p", `${100 * Math.exp(logprob)}%`);
      line.append(
        make("span", "wb-alt", cut(this.data.texts[text], 60)),
        make("span", "", `${own ? "◂ " : ""}${percent(logprob)}`),
      );
    });
    return list;
  }

  // ---- hands ------------------------------------------------------------------------------------
  rove(at) {
    const element = this.element(at.pane, at.card, at.index);
    if (this.rovingElement !== element) this.rovingElement?.setAttribute("tabindex", "-1");
    element.setAttribute("tabindex", "0");
    this.rovingElement = element;
    this.roving = at;
  }
  go(pane, card, index) {
    this.element(pane, card, index).focus();
  }

  click(at, shift) {
    const same = this.model.get("selected") === at.rollout;
    const point = this.model.get("failure_point");
    if (shift) {
      const from = same && point !== null ? point : at.index;
      this.anchor = from;
      return this.set({
        selected: at.rollout,
        failure_point: same ? point : null,
        span: [Math.min(from, at.index), Math.max(from, at.index) + 1],
      });
    }
    this.anchor = at.index;
    return this.set({
      selected: at.rollout,
      failure_point: same && point === at.index ? null : at.index,
      span: null,
    });
  }

  /** The strongest token of the rollout in the focus; from there the next strongest. */
  strongest() {
    if (!this.order.length) return;
    const { pane, card, index } = this.roving;
    const rollout = this.panes[pane][card].rollout;
    const values = this.layers[pane].values[rollout];
    const ranked = values
      .map((v, i) => [Math.abs(v ?? 0), i])
      .sort((a, b) => b[0] - a[0] || a[1] - b[1])
      .map(([, i]) => i);
    const begun = this.jumped === `${pane} ${card} ${index} ${this.layers[pane].name}`;
    const next = begun ? ranked[(ranked.indexOf(index) + 1) % ranked.length] : ranked[0];
    this.jumped = `${pane} ${card} ${next} ${this.layers[pane].name}`;
    this.go(pane, card, next);
  }

  key(event) {
    const at = this.places.get(event.target);
    if (!at || event.ctrlKey || event.metaKey || event.altKey) return;
    const { pane, card, rollout, index } = at;
    const { starts, ids } = this.group.rollouts[rollout];
    const next = this.order.indexOf(card);
    const names = this.group.layers.map((l) => l.name);
    const toStep = (by) => {
      const to = at.step + by;
      if (to < 0 || to >= starts.length) return by < 0 ? 0 : ids.length - 1;
      return Math.min(starts[to] + index - starts[at.step], (starts[to + 1] ?? ids.length) - 1);
    };
    const moves = {
      ArrowLeft: index - 1,
      ArrowRight: index + 1,
      ArrowUp: toStep(-1),
      ArrowDown: toStep(1),
      Home: starts[at.step],
      End: (starts[at.step + 1] ?? ids.length) - 1,
    };
    const acts = {
      Enter: () => this.click(at, event.shiftKey),
      " ": () => this.click(at, event.shiftKey),
      Escape: () => this.set({ failure_point: null, span: null }),
      s: () => this.strongest(),
      l: () =>
        this.set({
          layer:
            names[
              (names.indexOf(this.layers[0].name) + (event.shiftKey ? -1 : 1) + names.length) %
                names.length
            ],
        }),
      PageUp: () => next > 0 && this.go(0, this.order[next - 1], 0),
      PageDown: () => next < this.order.length - 1 && this.go(0, this.order[next + 1], 0),
    };
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (name in moves) {
      const to = Math.max(0, Math.min(ids.length - 1, moves[name]));
      if (event.shiftKey) this.extend(at, to);
      this.go(pane, card, to);
    } else if (name in acts) acts[name]();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Shift and a move: the span runs from where it began to the token moved to. */
  extend(at, to) {
    const same = this.model.get("selected") === at.rollout;
    if (!same || !this.model.get("span")) this.anchor = at.index;
    this.set({
      selected: at.rollout,
      failure_point: same ? this.model.get("failure_point") : null,
      span: [Math.min(this.anchor, to), Math.max(this.anchor, to) + 1],
    });
  }
}

function render({ model, el }) {
  const view = new View(model, el);
  return () => view.close();
}

export default { render };
