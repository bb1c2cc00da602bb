"use strict";
const { study, pairs } = JSON.parse(document.getElementById("data").textContent);
const place = `gdro-bench study ${study}`;
const find = (name) => document.getElementById(name);
let kept = {};
try { kept = JSON.parse(localStorage.getItem(place)) || {}; } catch { kept = {}; } // a browser may keep nothing
const answers = Array.isArray(kept.answers) ? kept.answers.slice(0, pairs.length) : [];
let began = Date.now();
for (const image of document.images) { // enlarged, pixels stay sharp; photographs are made smaller smoothly
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < 256));
}

function keep() {
  try {
    localStorage.setItem(place, JSON.stringify({ answers, rater: find("rater").value }));
    find("forgets").hidden = true;
  } catch { find("forgets").hidden = false; }
}

function show() {
  const number = answers.length, done = number === pairs.length;
  document.querySelector("progress").value = number;
  find("count").textContent = `${number} of ${pairs.length}`;
  find("ask").hidden = done;
  find("done").hidden = !done;
  if (!done) {
    find("prompt").textContent = pairs[number].prompt;
    for (const side of ["left", "right"]) find(side).firstElementChild.src = pairs[number][side];
  }
  began = Date.now();
}

function answer(choice) {
  if (answers.length === pairs.length) return;
  answers.push({ pair: answers.length, choice, seconds: Math.round((Date.now() - began) / 100) / 10 });
  keep();
  show();
}

function back() {
  answers.pop();
  keep();
  show();
}

function save() {
  keep();
  const rater = find("rater").value.trim();
  const file = new Blob([JSON.stringify({ study, rater, answers }, null, 1)], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = `answers-${study}-${rater.replace(/[^A-Za-z0-9]+/g, "-") || "rater"}.json`;
  link.click();
}

function anew() {
  if (!confirm("Forget these answers and begin again? Save them first.")) return;
  answers.length = 0;
  find("rater").value = "";
  keep();
  show();
}

const keys = { ArrowLeft: () => answer("left"), ArrowRight: () => answer("right"), ArrowDown: () => answer("tie"),
  ArrowUp: back };
document.addEventListener("keydown", (event) => {
  if (event.target.id === "rater" || event.repeat || !keys[event.key]) return;
  if (event.altKey || event.ctrlKey || event.metaKey) return; // the browser's own
  event.preventDefault();
  keys[event.key]();
});
for (const button of document.querySelectorAll("[data-choice]")) { // the second click of two saw no new pair
  button.addEventListener("click", (event) => { if (event.detail < 2) answer(button.dataset.choice); });
}
find("back").addEventListener("click", back);
find("again").addEventListener("click", back);
find("save").addEventListener("click", save);
find("anew").addEventListener("click", anew);
find("rater").value = typeof kept.rater === "string" ? kept.rater : "";
find("rater").addEventListener("input", keep);
keep();
show();
