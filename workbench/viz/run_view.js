// The browser over runs (run_view.py). All text is set with textContent: it is what a model wrote.
// Nothing is fetched. A group is unpacked when it is looked at, a rollout drawn when it is in sight.

const NONE = -32768;
const UNIT = 4096; // parts of the scale's end
const SORTS = {
  "as recorded": null,
  reward: (item) => -(item.reward ?? -Infinity),
  contrast: (item) => -(item.contrast ?? -Infinity),
  length: (item) => -item.length,
  entropy: (item) => -(item.entropy ?? -Infinity),
};
const SHOWN = {
  all: () => true,
  "with contrast": (item) => item.contrast > 0,
  "some right": (item) => item.right > 0,
  "none right": (item) => item.right === 0,
  "all right": (item) => item.right === item.rollouts.length,
};

function make(tag, kind, text, attributes = {}) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
const number = (value, digits = 2) => (value === null ? "unknown" : value.toFixed(digits));

function bytes(text) {
  const raw = atob(text);
  const array = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) array[i] = raw.charCodeAt(i);
  return array.buffer;
}

class Browser {
  constructor(root, data) {
    this.root = root;
    this.state = { step: 0, sort: "as recorded", shown: "all", words: "", follow: false, newest: false };
    this.seen = new IntersectionObserver((entries) => entries.forEach((e) => this.arrive(e)), {
      rootMargin: "200px",
    });
    this.load(data);
  }

  /** New data: a run that goes on. What was chosen stays. */
  load(data) {
    this.data = data;
    this.steps = [...new Set(data.items.map((item) => item.step))].sort((a, b) => a - b);
    const last = this.steps.length - 1;
    this.state.step = this.state.newest ? last : Math.min(this.state.step, last);
    this.build();
    this.draw();
  }

  build() {
    const bar = make("div", "wb-bar2");
    this.slider = this.input(bar, "Step", "range", "step", { min: 0, max: this.steps.length - 1 });
    this.input(bar, "Newest", "checkbox", "newest");
    this.where = bar.appendChild(make("output", "wb-where"));
    this.choice(bar, "Sort", "sort", Object.keys(SORTS));
    this.choice(bar, "Show", "shown", Object.keys(SHOWN));
    this.input(bar, "Find", "search", "words");
    this.input(bar, "Follow this problem", "checkbox", "follow");
    this.list = make("div", "wb-list", undefined, { role: "group", "aria-label": "Groups" });
    this.panes = make("div", "wb-panes");
    const legend = `Credit (${this.data.unit}). Blue, line above: pushed up; orange, line below: down.`;
    this.root.replaceChildren(bar, this.list, make("p", "wb-sum", legend), this.panes);
  }
  input(bar, text, type, name, attributes = {}) {
    const label = bar.appendChild(make("label", "", `${text} `));
    const input = label.appendChild(make("input", "", undefined, { type, ...attributes }));
    if (type === "checkbox") input.checked = this.state[name];
    else input.value = this.state[name];
    input.addEventListener("input", () => {
      const value = type === "checkbox" ? input.checked : input.value;
      this.state[name] = type === "range" ? Number(value) : value;
      if (name === "newest" && value) this.slider.value = this.state.step = this.steps.length - 1;
      this.draw();
    });
    return input;
  }
  choice(bar, text, name, options) {
    const label = bar.appendChild(make("label", "", `${text} `));
    const select = label.appendChild(make("select"));
    select.append(...options.map((option) => make("option", "", option)));
    select.value = this.state[name];
    select.addEventListener("change", () => {
      this.state[name] = select.value;
      this.draw();
    });
  }

  /** The groups of the step; of a problem that is followed, of all steps. */
  get items() {
    const { step, sort, shown, words, follow } = this.state;
    const now = this.steps[step];
    const fits = (item) =>
      (follow && this.chosen ? item.problem === this.chosen.problem : item.step === now) &&
      SHOWN[shown](item) &&
      (item.problem + item.question).toLowerCase().includes(words.toLowerCase());
    const items = this.data.items.filter(fits);
    const by = SORTS[sort];
    return by ? items.sort((a, b) => by(a) - by(b)) : items;
  }

  draw() {
    const items = this.items;
    const now = this.steps[this.state.step];
    if (this.state.follow && this.chosen) {
      const until = this.data.items.filter(
        (item) => item.problem === this.chosen.problem && item.step <= now,
      );
      this.chosen = until[until.length - 1] ?? items[0] ?? null;
    } else if (!items.includes(this.chosen)) {
      const same = items.find((item) => item.problem === this.chosen?.problem);
      this.chosen = same ?? items[0] ?? null;
    }
    this.where.textContent = this.metrics(now);
    this.list.replaceChildren(...items.map((item) => this.line(item)));
    if (!items.length) this.list.append(make("p", "", "No group is of this kind."));
    this.show();
  }
  metrics(now) {
    const words = this.data.runs.map((name, run) => {
      const numbers = Object.entries(this.data.metrics[run][now] ?? {});
      return [name, ...numbers.map(([key, value]) => `${key} ${value.toFixed(3)}`)].join(", ");
    });
    return `step ${now} · ${words.join(" · ")}`;
  }
  line(item) {
    const pressed = String(item === this.chosen);
    const line = make("button", "", undefined, { type: "button", "aria-pressed": pressed });
    for (const text of [
      `${this.data.runs[item.run]} ${item.step}`,
      item.problem,
      `${item.right} of ${item.rollouts.length}`,
      `reward ${number(item.reward)}`,
      `${item.length.toFixed(0)} tokens`,
      `entropy ${number(item.entropy)}`,
    ])
      line.append(make("span", "", text));
    line.addEventListener("click", () => {
      this.chosen = item;
      for (const other of this.list.children) other.setAttribute("aria-pressed", other === line);
      this.show();
    });
    return line;
  }

  /** The chosen group, and beside it what the other runs last wrote for the same problem. */
  show() {
    this.seen.disconnect();
    const { chosen } = this;
    const panes = chosen ? [chosen] : [];
    for (let run = 0; chosen && run < this.data.runs.length; run++) {
      if (run === chosen.run) continue;
      const others = this.data.items.filter(
        (item) => item.run === run && item.problem === chosen.problem && item.step <= chosen.step,
      );
      if (others.length) panes.push(others[others.length - 1]);
    }
    this.panes.replaceChildren(...panes.map((item) => this.pane(item)));
  }
  pane(item) {
    const pane = make("section");
    pane.append(
      make("b", "", `${this.data.runs[item.run]}, step ${item.step}`),
      make("p", "wb-q", item.question),
    );
    let start = 0;
    item.rollouts.forEach(([size, mark, words], i) => {
      const card = pane.appendChild(make("div", "wb-card"));
      card.append(make("div", "wb-head", `${i + 1} ${mark} ${words} · ${size} tokens`));
      const body = card.appendChild(make("div", "wb-body"));
      body.wanted = [item, start, start + size];
      // about as high as it will be, so that few are in sight at first
      body.style.minHeight = `${Math.ceil((size * 4) / 60) * 1.5}em`;
      this.seen.observe(body);
      start += size;
    });
    return pane;
  }

  arrive({ isIntersecting, target }) {
    if (!isIntersecting || !target.wanted) return;
    const [item, start, end] = target.wanted;
    target.wanted = null;
    this.seen.unobserve(target);
    target.style.minHeight = "";
    target.append(this.tokens(item, start, end));
  }
  /** Neighbours of one shade are one element; its title has their numbers. */
  tokens(item, start, end) {
    const unpacked = this.unpack(item);
    const part = document.createDocumentFragment();
    for (let t = start; t < end; ) {
      const shade = this.shade(unpacked.numbers[t]);
      let text = "";
      const numbers = [];
      for (; t < end && this.shade(unpacked.numbers[t]) === shade; t++) {
        text += this.data.texts[unpacked.tokens[t]];
        if (numbers.length < 8) numbers.push(this.word(unpacked.numbers[t], item));
      }
      const side = shade > 0 ? "u" : "d";
      const kind = shade === null ? "wb-none" : shade ? `wb-${side}${Math.abs(shade)}` : "wb-0";
      part.append(make("span", `wb-t ${kind}`, text, { title: `credit ${numbers.join(", ")}` }));
    }
    return part;
  }
  unpack(item) {
    if (this.unpacked?.item !== item) {
      const tokens = bytes(item.tokens);
      this.unpacked = {
        item,
        tokens: item.wide ? new Uint32Array(tokens) : new Uint16Array(tokens),
        numbers: new Int16Array(bytes(item.numbers)),
      };
    }
    return this.unpacked;
  }
  shade(parts) {
    if (parts === NONE) return null;
    const size = Math.abs(parts) / UNIT;
    if (size < this.data.faint) return 0;
    return Math.sign(parts) * Math.min(this.data.levels, Math.ceil(size * this.data.levels));
  }
  word(parts, item) {
    return parts === NONE ? "none" : ((parts / UNIT) * item.limit).toFixed(2);
  }
}

function browse(el, data) {
  const attributes = { dir: "ltr", role: "region", "aria-label": "Runs" };
  const root = make("div", "wb-heat wb-run", undefined, attributes);
  el.append(root);
  return new Browser(root, data);
}

export default {
  render({ model, el }) {
    el.append(make("style", "", `#${model.get("twin")}{display:none!important}`));
    const browser = browse(el, model.get("data"));
    const load = () => browser.load(model.get("data"));
    model.on("change:data", load);
    return () => {
      browser.seen.disconnect();
      model.off("change:data", load);
    };
  },
};
