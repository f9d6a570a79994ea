"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
  button.hidden = false;
  label();

  const source = document.getElementById("data");
  if (!source) return;
  const PAGE = 24;
  const { pictures, cards, noun } = JSON.parse(source.textContent);
  const byId = (id) => document.getElementById(id);
  const [filters, place, template, more, search, order, turn] = ["filters", "cards", "card", "more", "search", "order", "turn"].map(byId);
  const outcomes = [...filters.querySelectorAll("button[data-outcome]")];
  const facets = [...filters.querySelectorAll("select[data-facet]")];
  const texts = cards.map((c) => [c.id, c.q, ...c.t.map((t) => t[0]), ...c.r.map((r) => r[1])].join("\n").toLowerCase());
  const natural = new Intl.Collator(undefined, { numeric: true });
  let outcome = "";
  let fitting = cards.map((_, i) => i);
  let drawn = 0;

  // Texts of data sets only ever become text nodes and attribute values.
  const make = (name, words, kind) => {
    const node = document.createElement(name);
    if (words !== undefined) node.textContent = words;
    if (kind) node.className = kind;
    return node;
  };
  const image = (number, alt, kind) => {
    const node = make("img", undefined, kind);
    node.decoding = "async";
    node.alt = alt;
    node.src = pictures[number];
    return node;
  };
  const vector = (name, values) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(values)) node.setAttribute(key, value);
    return node;
  };
  const scene = (card) => {
    if (!card.s) return make("p", card.p, "noregion");
    const stack = make("span", undefined, "stack");
    stack.setAttribute("role", "img");
    stack.setAttribute("aria-label", ["Scene", ...card.b.map((b) => b[1])].join("; "));
    const photo = image(card.s[0], "", "");
    [photo.width, photo.height] = [card.s[1], card.s[2]];
    const svg = vector("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const [kind, , x0, y0, x1, y1] of card.b) {
      const box = { x: x0, y: y0, width: x1 - x0, height: y1 - y0 };
      svg.append(vector("rect", { class: ["predicted", "unseen"].includes(kind) ? "halo" : kind === "sample" ? "hair" : "thin", ...box }), vector("rect", { class: kind, ...box }));
    }
    stack.append(photo, svg);
    return stack;
  };
  const row = ([term, words, mark, code, note]) => {
    const line = make("div");
    const value = make("dd");
    const said = make(code ? "code" : "bdi", words);
    said.dir = "auto";
    if (mark) {
      const verdict = make("span", undefined, `verdict ${mark}`);
      const sign = make("span", mark === "right" ? "✓" : "✗");
      sign.setAttribute("role", "img");
      sign.setAttribute("aria-label", mark);
      verdict.append(said, " ", sign);
      value.append(verdict);
    } else value.append(said);
    if (note) value.append(" ", make("small", note));
    line.append(make("dt", term), value);
    return line;
  };
  const build = (index) => {
    const card = cards[index];
    const node = template.content.firstElementChild.cloneNode(true);
    const part = (name) => node.querySelector(name);
    node.dataset.id = card.id;
    node.setAttribute("aria-label", card.l || card.q);
    part(".tags").append(...card.t.flatMap(([words, kind]) => [make("span", words, `tag ${kind}`), " "]));
    part("h3").textContent = card.q;
    part(".main").append(scene(card));
    part(".small").append(...card.v.map(([number, caption, alt, kind]) => {
      const figure = make("figure");
      figure.append(image(number, alt, kind), make("figcaption", caption));
      return figure;
    }));
    part(".answers").append(...card.r.map(row));
    return node;
  };
  const grow = () => {
    place.append(...fitting.slice(drawn, drawn + PAGE).map(build));
    drawn = Math.min(fitting.length, drawn + PAGE);
    more.hidden = drawn >= fitting.length;
  };
  const before = (a, b) => {
    const [x, y] = [cards[a].k[order.value], cards[b].k[order.value]];
    const [noX, noY] = [x === undefined || x === null, y === undefined || y === null];
    if (noX || noY) return noX - noY || a - b;
    const by = typeof x === "number" ? x - y : natural.compare(x, y);
    return (turn.getAttribute("aria-pressed") === "true" ? -by : by) || a - b;
  };
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = facets.filter((f) => f.value).map((f) => [f.dataset.facet, f.value]);
    fitting = [];
    cards.forEach((card, i) => {
      if ((!outcome || card.o === outcome) && wanted.every(([name, value]) => card.f[name] === value)
        && words.every((word) => texts[i].includes(word))) fitting.push(i);
    });
    if (order.value) fitting.sort(before);
    else if (turn.getAttribute("aria-pressed") === "true") fitting.reverse();
    place.replaceChildren();
    drawn = 0;
    grow();
    byId("shown").textContent = `${fitting.length.toLocaleString("en")} of ${cards.length.toLocaleString("en")} ${noun}`;
    byId("none").hidden = fitting.length > 0;
  };
  const step = (by) => {
    const shown = [...place.children];
    const next = shown.indexOf(document.activeElement.closest?.(".card")) + by;
    if (next >= shown.length && !more.hidden) grow();
    const card = place.children[Math.max(0, Math.min(next, place.children.length - 1))];
    if (card) card.focus();
  };
  for (const item of outcomes) {
    item.addEventListener("click", () => {
      outcome = item.dataset.outcome;
      for (const other of outcomes) other.setAttribute("aria-pressed", String(other === item));
      apply();
    });
  }
  for (const choice of [...facets, order]) choice.addEventListener("change", apply);
  search.addEventListener("input", apply);
  turn.addEventListener("click", () => { turn.setAttribute("aria-pressed", String(turn.getAttribute("aria-pressed") !== "true")); apply(); });
  more.addEventListener("click", () => { const first = place.children.length; grow(); place.children[first]?.focus(); });
  filters.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === search && event.key === "Escape") { search.value = ""; apply(); search.blur(); return; }
    if (/^(input|select|textarea)$/i.test(event.target.tagName)) return;
    if (event.key === "/") { event.preventDefault(); search.focus(); }
    else if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
  });
  new IntersectionObserver((seen) => { if (seen.some((entry) => entry.isIntersecting) && !more.hidden) grow(); }, { rootMargin: "400px" }).observe(more);
  for (const node of [filters, byId("keys")]) node.hidden = false;
  grow();
})();
