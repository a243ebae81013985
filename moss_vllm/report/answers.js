"use strict";
// The browser of questions: filters by task and outcome, search, pages; a page's questions are made when shown.
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 20, LABELS = { right: "✓ right", wrong: "✗ wrong", "not read": "✗ not read", failed: "failed", withheld: "not judged" };
const rows = data.questions.map(([uid, video, task, outcome, text, options, right, chosen, output, scores]) => ({
  uid, video: data.videos[video], strip: data.strips[video], task: task < 0 ? null : data.tasks[task][0],
  taskName: task < 0 ? "" : data.tasks[task][1], outcome: data.outcomes[outcome],
  text, options, right, chosen, output, scores,
}));
const wanted = { task: "", outcome: "", search: "" };
let first = 0;

function add(parent, name, text, className) {
  const one = parent.appendChild(document.createElement(name));
  if (text !== undefined) one.textContent = text;
  if (className) one.className = className;
  return one;
}

// Made once, when something is searched for.
function searched(row) {
  row.words ??= [row.uid, row.video, row.text, ...row.options, row.output].join("\n").toLowerCase();
  return row.words.includes(wanted.search);
}

const fits = (row, but) => (but === "task" || !wanted.task || row.task === wanted.task) &&
  (but === "outcome" || !wanted.outcome || row.outcome === wanted.outcome) && (!wanted.search || searched(row));

function showStrip(card, row) {
  const strip = row.strip;
  if (!strip) return void add(card, "p", row.outcome === "failed" ? "" : "no frames of this video on the page", "soft");
  if (strip.failed !== undefined) {
    return void add(card, "p", `frames of video ${row.video} cannot be read: ${strip.failed}`, "gone");
  }
  const box = add(card, "div", undefined, "strip");
  strip.frames.forEach((frame, place) => {
    const figure = add(box, "figure"), image = add(figure, "img"), at = strip.times[place].toFixed(1) + " s";
    [image.width, image.height] = strip.size;
    image.alt = `${row.video} at ${at}`;
    image.src = "data:image/jpeg;base64," + frame;
    add(figure, "figcaption", at);
  });
}

function showOptions(card, row) {
  const list = add(card, "ol", undefined, data.letters ? "letters" : "");
  row.options.forEach((option, place) => {
    const line = add(list, "li", option), score = row.scores[String.fromCharCode(65 + place)];
    if (place === row.right) line.classList.add("key");
    if (row.chosen.includes(place)) line.classList.add("chosen", row.outcome.replace(" ", "-"));
    const marks = [place === row.right && "right", row.chosen.includes(place) && "chosen"].filter(Boolean);
    if (marks.length) add(line, "span", marks.join(", "), "tag");
    if (score !== undefined) add(line, "span", data.score + " " + score, "soft score");
  });
}

function show(row) {
  const card = document.createElement("article");
  const head = add(card, "header");
  add(head, "span", LABELS[row.outcome], "mark " + row.outcome.replace(" ", "-"));
  if (row.task !== null) add(head, "span", row.task === row.taskName ? row.task : `${row.task}: ${row.taskName}`);
  if (row.uid) add(head, "span", "question " + row.uid, "soft");
  add(head, "span", "video " + row.video, "soft");
  if (row.outcome === "failed") {
    add(card, "p", "Its questions were not asked: " + row.text, "gone");
    return card;
  }
  add(card, "p", row.text, "text");
  showOptions(card, row);
  const said = add(card, "p", "output ", "said");
  add(said, "code", row.output === "" ? "(empty)" : row.output);
  if (!row.chosen.length && row.options.length) add(said, "span", " no option could be read from it", "soft");
  showStrip(card, row);
  return card;
}

function update() {
  const found = rows.filter(row => fits(row));
  first = Math.max(0, Math.min(first, PAGE * Math.floor((found.length - 1) / PAGE)));
  document.getElementById("list").replaceChildren(...found.slice(first, first + PAGE).map(show));
  for (const pager of document.querySelectorAll(".pager")) {
    const last = Math.min(first + PAGE, found.length), count = found.length.toLocaleString("en");
    pager.querySelector("span").textContent = found.length ? `${first + 1} to ${last} of ${count}` : "no question fits";
    for (const button of pager.querySelectorAll("button")) {
      button.disabled = button.dataset.by < 0 ? first === 0 : last === found.length;
    }
  }
  for (const group of document.querySelectorAll(".filter[data-key]")) {
    const key = group.dataset.key, left = new Map([["", 0]]);
    for (const row of rows) {
      if (!fits(row, key)) continue;
      left.set("", left.get("") + 1);
      left.set(row[key], (left.get(row[key]) ?? 0) + 1);
    }
    for (const button of group.children) {
      button.setAttribute("aria-pressed", button.dataset.only === wanted[key]);
      button.querySelector("span").textContent = (left.get(button.dataset.only) ?? 0).toLocaleString("en");
    }
  }
}

for (const group of document.querySelectorAll(".filter[data-key]")) {
  group.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (!button) return;
    wanted[group.dataset.key] = button.dataset.only;
    first = 0;
    update();
  });
}
for (const pager of document.querySelectorAll(".pager")) {
  pager.addEventListener("click", event => {
    if (!event.target.dataset.by) return;
    first += PAGE * event.target.dataset.by;
    update();
    document.getElementById("controls").scrollIntoView();
  });
}
let typing;
document.getElementById("search").addEventListener("input", event => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    wanted.search = event.target.value.trim().toLowerCase();
    first = 0;
    update();
  }, 150);
});
for (const id of ["controls", "browser"]) document.getElementById(id).hidden = false;
update();
