
"use strict";
// Filters of the answers. Without this script the whole page is there, and a link to a prompt works all the same.
(() => {
  const bar = document.querySelector(".filters");
  const cards = [...document.querySelectorAll(".sample")];
  const folds = [...document.querySelectorAll("details.passed")];
  const search = bar.querySelector("input[type=search]");
  const tag = bar.querySelector("select");
  const radios = [...bar.querySelectorAll("input[type=radio]")];
  const found = bar.querySelector("output");
  const texts = new Map();

  function textOf(card) {
    if (!texts.has(card)) texts.set(card, card.textContent.toLowerCase());
    return texts.get(card);
  }

  function chosen() {
    return { q: search.value.trim(), outcome: radios.find((radio) => radio.checked).value, tag: tag.value };
  }

  function choose(q, outcome, name) {
    search.value = q;
    (radios.find((radio) => radio.value === outcome && !radio.disabled) || radios[0]).checked = true;
    tag.value = ([...tag.options].find((option) => option.value && option.text === name) || tag.options[0]).value;
    return show();
  }

  function show() {
    const { q, outcome, tag: wanted } = chosen();
    const active = Boolean(q || wanted || outcome !== "all");
    let count = 0;
    for (const card of cards) {
      const fits = (outcome === "all" || card.dataset.outcome.split(" ").includes(outcome))
        && (!wanted || card.dataset.tags.split(" ").includes(wanted))
        && (!q || textOf(card).includes(q.toLowerCase()));
      card.hidden = !fits;
      count += fits;
    }
    for (const fold of folds) {
      const some = Boolean(fold.querySelector(".sample:not([hidden])"));
      fold.hidden = !some;
      if (active && some) fold.open = true;
    }
    found.value = `${count.toLocaleString("en")} of ${cards.length.toLocaleString("en")} prompts shown`;
    bar.querySelector("button").hidden = !active;
    return active;
  }

  function changed() {
    const { q, outcome, tag: wanted } = chosen();
    const state = new URLSearchParams();
    if (q) state.set("q", q);
    if (outcome !== "all") state.set("outcome", outcome);
    if (wanted) state.set("tag", tag.selectedOptions[0].text);
    history.replaceState(null, "", `#${state}`);
    show();
  }

  // Cards far away have a guessed height until they come near, so the way is found in steps.
  function reach(place, times) {
    place.scrollIntoView();
    if (times) requestAnimationFrame(() => reach(place, times - 1));
  }

  function follow() {
    const hash = location.hash.slice(1);
    let name = hash;
    try { name = decodeURIComponent(hash); } catch { /* a % that is none: as it stands */ }
    const card = cards.find((one) => one.id === name);
    const state = new URLSearchParams(card ? "" : hash);
    const active = choose(state.get("q") || "", state.get("outcome") || "all", state.get("tag"));
    if (card) {
      for (let at = card; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
      card.focus({ preventScroll: true });
      reach(card, 4);
    } else if (active) {
      reach(bar.previousElementSibling, 4);
    } else if (hash && !["q", "outcome", "tag"].some((key) => state.has(key))) {
      found.value = `${name} is not on this page; look for it in samples.csv`;
    }
  }

  bar.addEventListener("input", changed);
  bar.querySelector("button").addEventListener("click", () => { choose("", "all", ""); changed(); search.focus(); });
  window.addEventListener("hashchange", follow);
  bar.hidden = false;
  follow();
})();
