// Answers token by token: how sure the model was, and what else it thought of.

const ARROWS = { ArrowRight: 1, ArrowLeft: -1 };
const infos = new WeakMap();  // the element of a token -> what the server says of it
const tip = document.getElementById("tip");

// A place for one answer's text; one stop of the Tab key, the arrows go from token to token.
export class TokenText {
  constructor(place) {
    this.place = place;
    this.text = "";
    this.waiting = [];  // tokens whose text is yet to come: parts of a character
    place.addEventListener("keydown", (event) => this.move(event));
  }

  add(text, tokens) {
    this.text += text;
    this.waiting.push(...tokens);
    if (!text) return;
    const whole = this.waiting.map((token) => token.token).join("") === text;
    if (whole) for (const token of this.waiting) this.append(token.token, [token]);
    else this.append(text, this.waiting);
    this.waiting = [];
  }

  append(text, tokens) {
    if (!text) return;
    const span = document.createElement("span");
    span.className = `token ${sureness(tokens)}`;
    span.textContent = text;
    span.tabIndex = this.place.firstChild ? -1 : 0;
    if (tokens.length) infos.set(span, tokens);
    this.place.append(span);
  }

  move(event) {
    const spans = [...this.place.children];
    const at = spans.indexOf(document.activeElement);
    if (at < 0) return;
    const target = { Home: 0, End: spans.length - 1 }[event.key] ?? at + (ARROWS[event.key] ?? NaN);
    if (!spans[target]) return;
    event.preventDefault();
    spans[at].tabIndex = -1;
    spans[target].tabIndex = 0;
    spans[target].focus();
  }
}

// Shows the tip for tokens under the pointer or with the focus, anywhere inside `root`.
export function watchTokens(root) {
  for (const kind of ["mouseover", "focusin"]) root.addEventListener(kind, (event) => show(event.target));
  for (const kind of ["mouseout", "focusout"]) root.addEventListener(kind, hideTip);
  addEventListener("scroll", hideTip, { passive: true });
}

export function hideTip() {
  tip.hidden = true;
  document.querySelector("[aria-describedby=tip]")?.removeAttribute("aria-describedby");
}

function show(span) {
  const tokens = infos.get(span);
  if (!tokens) return;
  hideTip();
  tip.replaceChildren(...tokens.map(table));
  tip.hidden = false;
  span.setAttribute("aria-describedby", "tip");
  const at = span.getBoundingClientRect();
  const left = Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = at.bottom + 6 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - 6 - tip.offsetHeight)}px`;
}

// The token that was written, then the most probable ones.
function table(token) {
  const rows = document.createElement("table");
  const others = token.top_logprobs.filter((other) => other.token !== token.token);
  for (const each of [token, ...others]) {
    const row = rows.insertRow();
    row.className = each === token ? "taken" : "";
    row.insertCell().textContent = visible(each.token);
    row.insertCell().textContent = percent(each.logprob);
    const bar = document.createElement("progress");
    bar.value = Math.exp(each.logprob);
    bar.setAttribute("aria-hidden", "true");
    row.insertCell().append(bar);
  }
  return rows;
}

function sureness(tokens) {
  const least = Math.exp(Math.min(0, ...tokens.map((token) => token.logprob)));
  if (least >= 0.9) return "";
  if (least >= 0.5) return "likely";
  return least >= 0.1 ? "unsure" : "unlikely";
}

function visible(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "(nothing)";
}

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share > 0 && share < 0.1 ? "< 0.1 %" : `${share.toFixed(1)} %`;
}
