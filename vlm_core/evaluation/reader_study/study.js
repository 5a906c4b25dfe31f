"use strict";
const study = JSON.parse(document.getElementById("data").textContent);
const LEVELS = ["correct", "partly", "wrong"];
const PREFERENCES = [["first", "first is better"], ["equal", "equal"], ["second", "second is better"]];
const KEYS = {
  ArrowLeft: ["preference", "first"], ArrowDown: ["preference", "equal"], ArrowRight: ["preference", "second"],
  1: [0, "correct"], 2: [0, "partly"], 3: [0, "wrong"], 8: [1, "correct"], 9: [1, "partly"], 0: [1, "wrong"],
};
const place = (id) => document.getElementById(id);
const kept = `reader-study-${study.study}`;
const empty = () => ({ preference: null, correctness: [null, null] });
let state = { reader: "", current: 0, judgements: study.items.map(empty) };
try { state = JSON.parse(localStorage.getItem(kept)) ?? state; } catch (error) { console.warn(`nothing kept: ${error}`); }

const isComplete = (judgement) => judgement.preference !== null && judgement.correctness.every((level) => level !== null);

function choose(what, value) {
  const judgement = state.judgements[state.current];
  if (what === "preference") judgement.preference = value; else judgement.correctness[what] = value;
  draw();
}

function buttons(holder, options, chosen, pick) {
  holder.replaceChildren(...options.map(([value, title]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = title;
    button.setAttribute("aria-pressed", String(value === chosen));
    button.addEventListener("click", () => pick(value));
    return button;
  }));
}

function draw() {
  const item = study.items[state.current], judgement = state.judgements[state.current];
  place("place").textContent = `question ${state.current + 1} of ${study.items.length}`;
  place("images").replaceChildren(...item.images.map((number) => {
    const image = document.createElement("img");
    image.src = study.images[number];
    image.alt = `image of question ${state.current + 1}`;
    return image;
  }));
  place("question").textContent = item.question;
  place("reference").textContent = item.reference === null ? "" : `Reference: ${item.reference}`;
  item.answers.forEach((text, which) => {
    place(`answer${which}`).textContent = text || "(empty)";
    buttons(place(`correctness${which}`), LEVELS.map((level) => [level, level]), judgement.correctness[which], (level) => choose(which, level));
  });
  buttons(place("preference"), PREFERENCES, judgement.preference, (value) => choose("preference", value));
  const done = state.judgements.filter(isComplete).length;
  place("progress").textContent = `${done} of ${study.items.length} answered`;
  place("done").hidden = done < study.items.length;
  place("previous").disabled = state.current === 0;
  place("next").disabled = state.current === study.items.length - 1;
  try { localStorage.setItem(kept, JSON.stringify(state)); } catch (error) { console.warn(`not kept: ${error}`); }
}

function move(step) {
  state.current = Math.min(study.items.length - 1, Math.max(0, state.current + step));
  draw();
}

function save() {
  if (!state.reader.trim()) { place("reader").focus(); place("progress").textContent = "First type your name."; return; }
  const judgements = state.judgements.map((judgement, item) => ({ item, ...judgement })).filter(isComplete);
  const link = document.createElement("a");
  link.href = `data:application/json,${encodeURIComponent(JSON.stringify({ study: study.study, reader: state.reader.trim(), judgements }))}`;
  link.download = `reading-${study.study}-${state.reader.trim().replace(/[^A-Za-z0-9]+/g, "-")}.json`;
  link.click();
}

document.addEventListener("keydown", (event) => {
  if (event.target === place("reader") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in KEYS) choose(...KEYS[event.key]);
  else if (event.key === "Enter") move(1);
  else if (event.key === "Backspace") move(-1);
  else if (event.key.toLowerCase() === "s") save();
  else return;
  event.preventDefault();
});
place("reader").value = state.reader;
place("reader").addEventListener("input", (event) => { state.reader = event.target.value; draw(); });
place("about").addEventListener("submit", (event) => { event.preventDefault(); place("item").focus(); });
place("save").addEventListener("click", save);
place("previous").addEventListener("click", () => move(-1));
place("next").addEventListener("click", () => move(1));
draw();
