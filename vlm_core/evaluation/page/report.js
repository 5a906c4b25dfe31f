"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const [TEXT, RIGHT, LOGPROB, CONTRADICTS, SCORES] = [0, 1, 2, 3, 4]; // of an answer; from SCORES on, one score for each of data.metrics
const PAGE = 20;
const control = (id) => document.getElementById(id);
let shown = PAGE;

// Text of the dataset and of the model goes into text nodes alone, never into markup.
function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function matches(question) {
  const [own] = question.answers;
  const kind = own[RIGHT] === null ? "open" : own[RIGHT] ? "right" : "wrong";
  const words = control("search").value.toLowerCase();
  const texts = [question.case, question.id, question.question, question.reference, ...question.answers.map((a) => a[TEXT])];
  const dataset = data.datasets.length ? control("dataset").value : "";
  return (!control("mode").value || question.mode === control("mode").value)
    && (!dataset || question.dataset === dataset)
    && (!control("kind").value || kind === control("kind").value || (control("kind").value === "contradicts" && own[CONTRADICTS]))
    && (!words || texts.some((text) => text.toLowerCase().includes(words)));
}

function sorted(questions) {
  const [order, variant] = control("sort").value.split(" ");
  if (!order) return questions;
  const gain = (question) => question.answers[0][SCORES] - (variant ? question.answers[variant][SCORES] : 0);
  const sign = order === "high" || order === "gain" ? -1 : 1;
  return [...questions].sort((a, b) => sign * (gain(a) - gain(b)));
}

function addAnswer(list, name, answer) {
  const mark = answer[RIGHT] === null ? "" : answer[RIGHT] ? "right" : "wrong";
  list.append(element("dt", "", name), element("dd", mark, answer[TEXT] || "(empty)"));
  const logprob = answer[LOGPROB] === null ? "" : ` · log p ${answer[LOGPROB].toFixed(2).replace("-0.00", "0.00")}`;
  const scores = data.metrics.map((title, number) => `${title} ${answer[SCORES + number].toFixed(2)}`).join(" · ");
  list.append(element("dd", "score", `${scores}${logprob}`));
  if (answer[CONTRADICTS]) list.append(element("dd", "contradicts", `contradicts the reference: ${answer[CONTRADICTS]}`));
}

function card(question) {
  const item = element("article", "item");
  const images = element("div", "images");
  for (const number of question.images) {
    if (number < 0) { images.append(element("p", "note", "image left out")); continue; }
    const image = element("img");
    image.src = data.images[number];
    image.alt = `image of case ${question.case}`;
    images.append(image);
  }
  images.append(element("div", "place", `case ${question.case} · ${question.mode} · ${question.id}`));
  const texts = element("div");
  texts.append(element("p", "question", question.question));
  const list = element("dl");
  list.append(element("dt", "", "reference"), element("dd", "wide", question.reference), element("dd", "score", ""));
  question.answers.forEach((answer, number) => addAnswer(list, data.variants[number].name, answer));
  texts.append(list);
  item.append(images, texts);
  return item;
}

function draw() {
  const found = sorted(data.questions.filter(matches));
  control("cards").replaceChildren(...found.slice(0, shown).map(card));
  control("count").textContent = `${found.length} of ${data.questions.length} questions`;
  control("more").hidden = found.length <= shown;
}

for (const id of ["mode", "kind", "sort", "search", ...(data.datasets.length ? ["dataset"] : [])]) {
  control(id).addEventListener("input", () => { shown = PAGE; draw(); });
}
control("filters").addEventListener("submit", (event) => event.preventDefault());
control("more").addEventListener("click", () => { shown += PAGE; draw(); });
draw();
