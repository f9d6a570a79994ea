"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
  button.hidden = false;
  label();

  const filters = document.getElementById("filters");
  if (!filters) return;
  const cards = [...document.querySelectorAll(".card")].map((card) => ({ card, text: card.textContent.toLowerCase() }));
  const kind = document.getElementById("kind");
  const search = document.getElementById("search");
  const outcomes = [...filters.querySelectorAll("button[data-outcome]")];
  let outcome = "";
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { card, text } of cards) {
      const fits = (!outcome || card.dataset.outcome === outcome) && (!kind.value || card.dataset.kind === kind.value)
        && words.every((word) => text.includes(word));
      card.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    document.getElementById("shown").textContent = `${shown} of ${cards.length} scenes`;
    document.getElementById("none").hidden = shown > 0;
  };
  for (const item of outcomes) {
    item.addEventListener("click", () => {
      outcome = item.dataset.outcome;
      for (const other of outcomes) other.setAttribute("aria-pressed", String(other === item));
      apply();
    });
  }
  kind.addEventListener("change", apply);
  search.addEventListener("input", apply);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.hidden = false;
})();
