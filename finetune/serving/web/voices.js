// Who answers: base, adapter or blend on either side, with the adapters' cards and reports.

import { adapter } from "./api.js";

const BLEND = "+";  // no model is called that
const FACTS = [
  ["Base", (card) => `${card.base.model} (${card.base.quantization})`],
  ["Base verified", (card) => (card.base.verified ? "yes, by its fingerprint" : "no, somebody said so")],
  ["Method", (card) => `${card.method}, r ${card.r}, alpha ${card.alpha}`],
  ["System prompt", (card) => card.system],
  ["Training rows", (card) => number(card.train_rows)],
  ["Steps", (card) => number(card.steps)],
  ["Trained tokens", (card) => number(card.trained_tokens)],
  ["Data", (card) => Object.keys(card.data).join(", ")],
  ["Licence of the base", (card) => card.base.licence],
  ["Source", (card) => card.source && `${card.source.kind}: ${card.source.place}`],
  ["Created", (card) => card.created],
];

export class Voice {
  constructor(fieldset, trouble) {
    this.select = fieldset.querySelector("select");
    this.blend = fieldset.querySelector("input");
    this.papers = fieldset.querySelector(".papers");
    this.optional = fieldset.dataset.side !== "0";
    this.trouble = trouble;
    this.known = [];
    this.select.addEventListener("change", () => this.changed());
    this.blend.addEventListener("change", () => this.changed());
  }

  // The model to ask, or "" if this side is silent.
  get model() {
    return this.select.value === BLEND ? this.blend.value.trim() : this.select.value;
  }

  get chosen() {
    return this.select.value !== "";
  }

  offer(models, first) {
    this.known = models;
    const before = this.select.value;
    const silent = this.optional ? [new Option("nobody", "")] : [];
    const named = models.map(({ id, parent }) => new Option(parent === null ? `${id} (base)` : id, id));
    this.select.replaceChildren(...silent, ...named, new Option("a blend …", BLEND));
    const values = [...this.select.options].map((option) => option.value);
    this.select.value = values.find((value) => before && value === before) ?? (this.optional ? "" : first);
    return this.changed();
  }

  async changed() {
    this.blend.hidden = this.select.value !== BLEND;
    const loaded = this.known.filter(({ parent }) => parent !== null).map(({ id }) => id);
    const names = parts(this.model).filter((name) => loaded.includes(name));
    const asked = this.model;
    try {
      const found = await Promise.all(names.map(adapter));
      if (asked === this.model) this.papers.replaceChildren(...found.map(paper));
    } catch (error) {
      this.papers.replaceChildren();
      this.trouble(error);
    }
  }
}

// "pizza+0.5*cheerful" -> ["pizza", "cheerful"]
function parts(model) {
  return model.split("+").map((part) => part.split("*").pop().trim());
}

function paper({ id, card, report }) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = `Card of ${id}`;
  button.addEventListener("click", () => showCard(id, card));
  item.append(button);
  if (report) {
    const link = document.createElement("a");
    link.href = report;
    link.target = "_blank";
    link.rel = "noopener noreferrer";
    link.textContent = `Report of ${id}`;
    item.append(" ", link);
  }
  return item;
}

function showCard(id, card) {
  document.getElementById("card-name").textContent = id;
  const rows = [...FACTS.map(([name, read]) => [name, read(card)]), ...Object.entries(card.metrics).map(measured)];
  const written = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
  document.getElementById("card-facts").replaceChildren(...written.flatMap(fact));
  document.getElementById("card").showModal();
}

function measured([name, { value, low, high }]) {
  return [name, `${short(value)} (${short(low)} to ${short(high)})`];
}

function fact([name, value]) {
  const term = document.createElement("dt");
  const text = document.createElement("dd");
  term.textContent = name;
  text.textContent = value;
  return [term, text];
}

function number(count) {
  return count === null ? "" : count.toLocaleString("en");
}

function short(value) {
  return typeof value === "number" ? String(Number(value.toPrecision(3))) : "?";
}
