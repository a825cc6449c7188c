"use strict";
// Graphs and the order of tables; everything else is in the page. Names come from programs that
// nobody trusts: they only ever become text, never markup.
(() => {
// As many frames as a browser lays out in an instant; narrower ones are left out and told.
const MOST_FRAMES = 2500;
const ROW = 20;

const bytes = value => {
  let size = Math.abs(value), unit = 0;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  for (; size >= 1024 && unit < 4; unit++) size /= 1024;
  return (unit === 0 || size >= 100 && unit < 4 ? size.toFixed(0) : size.toFixed(1)) + " " + units[unit];
};
const grouped = value => String(Math.abs(value)).replace(/\B(?=(\d{3})+$)/g, " ");
const percent = share => (share * 100).toFixed(share < 0.1 ? 2 : 1) + " %";

// A profile: the tree as columns, and what its nodes come to for one sample type, of one
// process or of all.
class Profile {
  constructor(data) {
    Object.assign(this, data);
    const size = this.depth.length;
    this.parent = new Int32Array(size).fill(-1);
    // First child and next sibling: an array for each of 300,000 nodes would take its time.
    this.first = new Int32Array(size).fill(-1);
    this.next = new Int32Array(size).fill(-1);
    const path = [];
    for (let node = 0; node < size; node++) {
      const depth = this.depth[node];
      if (depth > 0) {
        const parent = path[depth - 1];
        this.parent[node] = parent;
        if (this.first[parent] < 0) this.first[parent] = node;
        else this.next[path[depth]] = node;
      }
      path[depth] = node;
    }
  }
  childrenOf(node) {
    const children = [];
    for (let child = this.first[node]; child >= 0; child = this.next[child]) children.push(child);
    return children;
  }
  // Children stand behind their parents, so one pass from the end adds everything up.
  totals(values, process) {
    const totals = new Float64Array(this.depth.length);
    this.node.forEach((node, at) => {
      if (process === "" || this.process[at] === Number(process)) totals[node] += values[at];
    });
    for (let node = totals.length - 1; node > 0; node--) {
      if (this.parent[node] >= 0) totals[this.parent[node]] += totals[node];
    }
    return totals;
  }
  titleOf(node) { return this.frames[this.frame[node]]; }
  kindOf(node) { return this.kinds[this.frame[node]]; }
}

const profiles = new Map();
const profile = name => {
  if (!profiles.has(name)) {
    profiles.set(name, new Profile(JSON.parse(document.getElementById("data-" + name).textContent)));
  }
  return profiles.get(name);
};

// The same colour for the same name.
const hue = (text, colours) => {
  let hash = 0;
  for (let at = 0; at < text.length; at++) hash = (hash * 31 + text.charCodeAt(at)) | 0;
  return Math.abs(hash) % colours;
};

class Graph {
  constructor(box) {
    this.box = box;
    box.append(document.getElementById("controls").content.cloneNode(true));
    const find = selector => box.querySelector(selector);
    Object.assign(this, {
      what: find(".what select"), process: find(".process select"), difference: find(".difference input"),
      search: find(".search input"), reset: find(".reset"), found: find(".found"),
      explanation: find(".explanation"), frames: find(".frames"), detail: find(".detail"),
    });
    this.names = box.dataset.views.split(" ").filter(name => document.getElementById("data-" + name));
    this.series = this.names.flatMap(name => profile(name).types.map((type, index) => ({ name, type, index })));
    this.series = this.series.filter(({ name, index }) => profile(name).values[index].some(value => value !== 0));
    for (const [at, { name, type }] of this.series.entries()) {
      const several = profile(name).types.length > 1;
      this.what.add(new Option(profile(name).title + (several ? ": " + type.label : ""), at));
    }
    find(".what").hidden = this.series.length < 2;
    this.what.addEventListener("change", () => this.choose());
    this.process.addEventListener("change", () => { this.zoom = 0; this.weigh(); });
    this.difference.addEventListener("change", () => this.draw());
    this.search.addEventListener("input", () => this.draw());
    this.reset.addEventListener("click", () => this.zoomTo(0));
    this.frames.addEventListener("click", event => {
      if (event.target.dataset.node) this.zoomTo(Number(event.target.dataset.node));
    });
    for (const name of ["focusin", "mouseover"]) {
      this.frames.addEventListener(name, event => {
        if (event.target.dataset.node) this.tell(Number(event.target.dataset.node));
      });
    }
    this.frames.addEventListener("keydown", event => this.key(event));
    if (this.series.length === 0) {
      box.replaceChildren("There is nothing to draw.");
    } else {
      this.choose();
    }
  }

  choose() {
    const { name, index, type } = this.series[Number(this.what.value) || 0];
    this.profile = profile(name);
    this.type = type;
    this.values = this.profile.values[index];
    this.then = index === 0 ? this.profile.before : null;
    this.process.replaceChildren(new Option("all processes", ""));
    this.profile.processes.forEach((label, at) => this.process.add(new Option(label, at)));
    this.process.parentElement.hidden = this.profile.processes.length < 2;
    this.difference.parentElement.hidden = !this.names.some(name => profile(name).before);
    this.difference.nextSibling.textContent = ` what grew in ${this.box.dataset.span}`;
    this.difference.disabled = !this.then;
    this.explanation.textContent = this.profile.explanation;
    this.zoom = 0;
    this.weigh();
  }

  weigh() {
    this.totals = this.profile.totals(this.values, this.process.value);
    this.before = this.then && this.profile.totals(this.then, this.process.value);
    this.draw();
  }

  say(value) {
    return this.type.unit === "bytes" ? bytes(value) : grouped(value) + (this.type.kind === "threads" ? " threads" : "");
  }

  growth(node) { return this.totals[node] - this.before[node]; }

  words(node) {
    let words = `${this.profile.titleOf(node)}: ${this.say(this.totals[node])}, ${percent(this.totals[node] / (this.totals[0] || 1))}`;
    if (this.before) {
      const growth = this.growth(node);
      words += `, ${growth < 0 ? "−" : "+"}${this.say(growth)} in ${this.box.dataset.span}`;
    }
    return words;
  }

  tell(node) { this.detail.textContent = this.words(node); }

  // Which titles the search means: a regular expression, or a text where it is none.
  matches() {
    const wanted = this.search.value.trim();
    if (wanted === "") return null;
    let is;
    try {
      const pattern = new RegExp(wanted, "i");
      is = title => pattern.test(title);
    } catch {
      is = title => title.toLowerCase().includes(wanted.toLowerCase());
    }
    return this.profile.frames.map(is);
  }

  // Places of what is wide enough, each with its node, left edge and width in parts of the whole.
  lay(least) {
    const { profile, totals } = this;
    const whole = totals[this.zoom];
    const placed = [];
    const rest = [[this.zoom, 0]];
    while (rest.length > 0) {
      const [node, from] = rest.pop();
      placed.push([node, from, totals[node] / whole]);
      let left = from;
      const children = profile.childrenOf(node).filter(child => totals[child] > 0);
      children.sort((a, b) => totals[b] - totals[a]);
      for (const child of children) {
        const width = totals[child] / whole;
        // Those that follow are narrower still.
        if (width < least) break;
        rest.push([child, left]);
        left += width;
      }
    }
    return placed;
  }

  draw() {
    const { profile, totals } = this;
    const hits = this.matches();
    this.reset.disabled = this.zoom === 0;
    this.found.textContent = "";
    if (!(totals[this.zoom] > 0)) {
      this.frames.style.height = ROW + "px";
      this.frames.replaceChildren("There is nothing of it.");
      return;
    }
    let least = 2 / Math.max(this.frames.clientWidth, 300);
    let placed = this.lay(least);
    if (placed.length > MOST_FRAMES) {
      const widths = placed.map(place => place[2]).sort((a, b) => b - a);
      least = widths[MOST_FRAMES];
      placed = placed.filter(place => place[2] > least || place[0] === this.zoom);
    }
    const above = [];
    for (let node = profile.parent[this.zoom]; node >= 0; node = profile.parent[node]) above.unshift(node);
    const base = profile.depth[this.zoom];
    let deepest = base;
    const list = document.createDocumentFragment();
    const add = (node, left, width, isAbove) => {
      const frame = document.createElement("button");
      frame.type = "button";
      frame.dataset.node = node;
      frame.tabIndex = node === this.zoom ? 0 : -1;
      frame.textContent = profile.titleOf(node);
      frame.setAttribute("aria-label", this.words(node));
      frame.className = this.colour(node) + (isAbove ? " above" : "");
      if (hits) frame.classList.add(hits[profile.frame[node]] ? "hit" : "dull");
      frame.style.top = profile.depth[node] * ROW + "px";
      frame.style.left = left * 100 + "%";
      frame.style.width = width * 100 + "%";
      list.append(frame);
      deepest = Math.max(deepest, profile.depth[node]);
    };
    above.forEach(node => add(node, 0, 1, true));
    placed.sort((a, b) => a[0] - b[0]).forEach(([node, left, width]) => add(node, left, width, false));
    this.frames.replaceChildren(list);
    this.frames.style.height = (deepest + 1) * ROW + "px";
    this.frames.setAttribute("aria-label", `${profile.titleOf(this.zoom)}: ${placed.length} frames. ` +
      "Arrow keys move, Enter zooms, Escape zooms out.");
    if (hits) this.count(hits);
    this.tell(this.zoom);
  }

  // What the search found, each stack once.
  count(hits) {
    const { profile, totals } = this;
    let sum = 0, frames = 0;
    const rest = [this.zoom];
    while (rest.length > 0) {
      const node = rest.pop();
      if (!(totals[node] > 0)) continue;
      if (hits[profile.frame[node]]) {
        sum += totals[node];
        frames += 1;
      } else {
        rest.push(...profile.childrenOf(node));
      }
    }
    this.found.textContent = frames === 0 ? "found nowhere"
      : `found in ${this.say(sum)}, ${percent(sum / totals[this.zoom])}`;
  }

  colour(node) {
    const kind = this.profile.kindOf(node);
    if (this.difference.checked && this.before) {
      const part = this.growth(node) / (Math.max(Math.abs(this.growth(0)), this.totals[0] / 20) || 1);
      const way = part > 0 ? "up" : "down";
      const size = Math.abs(part);
      return size < 0.005 ? "same" : size > 0.5 ? way : size > 0.1 ? way + "2" : way + "3";
    }
    if (kind === "f") return "f" + hue(this.profile.titleOf(node), 5);
    if (kind === "s") return "s" + hue(this.profile.titleOf(node), 2);
    // Where there are no functions, headings tell by their colours what is what.
    if (kind === "l" && node !== 0 && !/[fgsk]/.test(this.profile.kinds)) return "p" + hue(this.profile.titleOf(node), 5);
    return kind;
  }

  zoomTo(node) {
    this.zoom = node;
    this.draw();
    this.focus(node);
  }

  focus(node) {
    const frame = this.frames.querySelector(`[data-node="${node}"]`);
    if (!frame) return;
    this.frames.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
    frame.tabIndex = 0;
    frame.focus({ preventScroll: false });
  }

  key(event) {
    const node = Number(event.target.dataset.node);
    const drawn = [...this.frames.children].map(frame => Number(frame.dataset.node));
    const { profile, totals } = this;
    const bySize = list => list.filter(child => drawn.includes(child)).sort((a, b) => totals[b] - totals[a]);
    const siblings = node === 0 ? [0] : bySize(profile.childrenOf(profile.parent[node]));
    const place = siblings.indexOf(node);
    const to = {
      ArrowDown: () => bySize(profile.childrenOf(node))[0],
      ArrowUp: () => profile.parent[node],
      ArrowRight: () => siblings[place + 1],
      ArrowLeft: () => siblings[place - 1],
      Home: () => this.zoom,
    }[event.key];
    if (to) {
      const target = to();
      if (target >= 0) this.focus(target);
    } else if (event.key === "Escape") {
      this.zoomTo(Math.max(profile.parent[this.zoom], 0));
    } else {
      return;
    }
    event.preventDefault();
  }
}

// Tables in the order of a column: by `data-v` or the number in it, else by its text.
const sortable = table => {
  const body = table.tBodies[0];
  if (body.rows.length < 2) return;
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const isNumber = head.classList.contains("n");
      const was = head.getAttribute("aria-sort");
      // Numbers begin with the biggest.
      const down = was ? was === "ascending" : isNumber;
      const key = row => {
        const cell = row.cells[column];
        return isNumber ? Number(cell.dataset.v ?? (parseFloat(cell.textContent) || 0)) : cell.textContent;
      };
      const rows = [...body.rows].map(row => [key(row), row]);
      rows.sort(([a], [b]) => (isNumber ? a - b : a.localeCompare(b)) * (down ? -1 : 1));
      body.append(...rows.map(([, row]) => row));
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    });
  }
};

document.querySelectorAll("table.sortable").forEach(sortable);
// The verdict is to be read before a graph is so much as looked into: they come one by one,
// each after a picture of what is there by then.
const boxes = [...document.querySelectorAll(".graph")];
const graphs = [];
const drawNext = () => {
  if (boxes.length > 0) graphs.push(new Graph(boxes.shift()));
};
const drawSoon = () => requestAnimationFrame(() => setTimeout(() => {
  drawNext();
  if (boxes.length > 0) drawSoon();
}));
drawSoon();
// What is closed would be missing on paper.
const closed = [];
addEventListener("beforeprint", () => {
  while (boxes.length > 0) drawNext();
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    closed.push(details);
  }
});
addEventListener("afterprint", () => closed.splice(0).forEach(details => { details.open = false; }));
addEventListener("keydown", event => {
  if (event.key !== "/" || event.target.matches("input, select")) return;
  event.preventDefault();
  graphs.at(-1)?.search.focus();
});
})();
