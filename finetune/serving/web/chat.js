// The page: one message goes to one or two voices, whose answers stand side by side. READ THIS FIRST.

import { answer, models, useKey } from "./api.js";
import { TokenText, hideTip, watchTokens } from "./tokens.js";
import { Voice } from "./voices.js";

const ALTERNATIVES = 5;  // to each token
const SENTENCE = /[.!?…\n]\s*$/;
const find = (id) => document.getElementById(id);
const [log, heard, trouble, message, settings] = ["log", "heard", "trouble", "message", "settings"].map(find);
const voices = [...document.querySelectorAll(".voice")].map((fieldset) => new Voice(fieldset, complain));
const turns = [];  // {user, answers: the text of either side, "" if there is none}
let running = null;  // the AbortController of the answers being written

async function start() {
  watchTokens(log);
  find("composer").addEventListener("submit", submitted);
  find("stop").addEventListener("click", stop);
  find("reset").addEventListener("click", reset);
  settings.addEventListener("submit", (event) => event.preventDefault());
  settings.elements.key.addEventListener("change", changedKey);
  message.addEventListener("keydown", enter);
  document.addEventListener("keydown", escape);
  message.focus();
  await offer();
}

async function offer() {
  try {
    const found = await models();
    const base = found.find(({ parent }) => parent === null);
    find("base").textContent = `adapters on ${base.id}`;
    trouble.hidden = true;
    await Promise.all(voices.map((voice) => voice.offer(found, found.find(({ parent }) => parent)?.id ?? base.id)));
  } catch (error) {
    complain(error);
  }
}

function complain(error) {
  trouble.textContent = error.message;
  trouble.hidden = false;
  if (error.status !== 401) return;
  document.querySelector(".settings").open = true;
  settings.elements.key.focus();
}

function changedKey() {
  useKey(settings.elements.key.value);
  return offer();
}

// ------------------------------------------------------------------ a turn

function submitted(event) {
  event.preventDefault();
  const text = message.value;
  if (!text.trim() || running) return;
  message.value = "";
  send(text);
}

async function send(text) {
  const sides = voices.flatMap((voice, side) => (voice.chosen ? [side] : []));
  const turn = { user: text, answers: ["", ""] };
  const bodies = sides.map((side) => body(side, text));
  const places = drawTurn(text, sides);
  turns.push(turn);
  begin();
  const signal = running.signal;
  await Promise.all(sides.map((side, n) => ask(bodies[n], places[n], signal, (said) => { turn.answers[side] = said; })));
  if (running?.signal === signal) end();
}

// What is asked of one side: its own answers so far, and the settings that are filled in.
function body(side, text) {
  const fields = settings.elements;
  const system = fields.system.value.trim() ? [{ role: "system", content: fields.system.value }] : [];
  const said = turns.filter(({ answers }) => answers[side]).flatMap(({ user, answers }) => [
    { role: "user", content: user },
    { role: "assistant", content: answers[side] },
  ]);
  const numbers = ["temperature", "top_p", "top_k", "max_tokens", "seed"].filter((name) => fields[name].value !== "");
  return {
    model: voices[side].model,
    messages: [...system, ...said, { role: "user", content: text }],
    logprobs: true,
    top_logprobs: ALTERNATIVES,
    ...Object.fromEntries(numbers.map((name) => [name, Number(fields[name].value)])),
  };
}

async function ask(body, place, signal, keep) {
  const text = new TokenText(place.text);
  const speak = speaker(body.model);
  const facts = { began: performance.now() };
  try {
    for await (const event of answer(body, signal)) {
      Object.assign(facts, event);
      if (event.text === undefined) continue;
      text.add(event.text, event.tokens);
      keep(text.text);
      speak(event.text);
    }
  } catch (error) {
    if (signal.aborted) facts.reason = "stopped";
    else fail(place, error);
  }
  place.article.removeAttribute("aria-busy");
  place.facts.textContent = summary(facts);
  speak("", true);
}

function fail(place, error) {
  place.article.append(Object.assign(line(error.message), { className: "error" }));
  heard.append(line(error.message));
}

function summary({ began, usage, reason, note }) {
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  const counted = usage ? [`${usage.completion_tokens} tokens`] : [];
  const ending = { stop: [], length: ["cut off"], stopped: ["stopped"] }[reason] ?? [];
  return [...counted, `${seconds} s`, ...ending, ...(note ? [note] : [])].join(" · ");
}

// Screen readers get whole sentences; token by token nobody could follow.
function speaker(model) {
  let rest = "";
  return (text, last = false) => {
    rest += text;
    if (!rest.trim() || !(last || SENTENCE.test(rest))) return;
    heard.append(line(`${model}: ${rest}`));
    rest = "";
  };
}

// ------------------------------------------------------------------ what is shown

function line(text) {
  return Object.assign(document.createElement("p"), { textContent: text });
}

function drawTurn(text, sides) {
  const turn = document.createElement("div");
  turn.className = "turn";
  const asked = Object.assign(line(text), { className: "asked" });
  const row = document.createElement("div");
  row.className = "answers";
  const places = sides.map((side) => drawAnswer(voices[side].model));
  row.append(...places.map(({ article }) => article));
  turn.append(asked, row);
  log.append(turn);
  find("hint").hidden = true;
  turn.scrollIntoView({ block: "end" });
  return places;
}

function drawAnswer(model) {
  const article = document.createElement("article");
  article.className = "answer";
  article.setAttribute("aria-label", `Answer of ${model}`);
  article.setAttribute("aria-busy", "true");
  const name = Object.assign(document.createElement("h2"), { textContent: model });
  const text = Object.assign(document.createElement("div"), { className: "text" });
  text.setAttribute("role", "group");
  text.setAttribute("aria-label", "Tokens; the arrow keys go from one to the next");
  const facts = Object.assign(line("…"), { className: "soft facts" });
  article.append(name, text, facts);
  return { article, text, facts };
}

function begin() {
  running = new AbortController();
  find("send").disabled = true;
  find("stop").hidden = false;
}

function end() {
  running = null;
  find("send").disabled = false;
  find("stop").hidden = true;
  if (document.activeElement === document.body) message.focus();
}

// ------------------------------------------------------------------ keys and buttons

function enter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  find("composer").requestSubmit();
}

function escape(event) {
  if (event.key !== "Escape" || find("card").open) return;
  hideTip();
  stop();
}

function stop() {
  running?.abort();
}

function reset() {
  stop();
  turns.length = 0;
  log.replaceChildren();
  heard.replaceChildren();
  hideTip();
  find("hint").hidden = false;
  message.focus();
}

start();
