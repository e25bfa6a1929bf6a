// The review: one photo at a time, decided by a key, written by the server at once.
"use strict";

const $ = (id) => document.getElementById(id);
const { first, second } = document.body.dataset;
const KEYS = { 1: "keep", 2: "flip", 3: "leave out", x: "" };
const DONE = { keep: "kept", flip: "flipped", "leave out": "left out" };
let items = [];
let others = {};
let at = 0;
// Decisions are sent one after another, so that the last key pressed is the one that counts.
let sending = Promise.resolve();

const SPLITS = { train: "training", valid: "validation", test: "test" };
const opposite = (label) => (label === first ? second : first);
const percent = (share) => `${(100 * share).toFixed(share < 0.001 || share > 0.999 ? 2 : 1)} %`;

function explain(item, finding) {
  const other = others[finding.other];
  switch (finding.issue) {
    case "label": return `Labelled ${item.label}, but models that never saw it give ${item.label} only ${percent(finding.score)}.`;
    case "ambiguous": return `Unclear: the likelier class has ${percent(finding.score)}. It may show both, or neither.`;
    case "outlier": return `Unlike the other photos (similarity ${finding.score.toFixed(2)}). It may show neither.`;
    case "duplicate": return `Nearly the same photo as ${other.key} of ${SPLITS[other.split]}${other.label ? `, labelled ${other.label}` : ""} (${finding.score} of 64 bits differ).`;
    default: return finding.issue;
  }
}

function figure(row, caption, label) {
  const box = document.createElement("figure");
  const frame = document.createElement("div");
  const image = document.createElement("img");
  const text = document.createElement("figcaption");
  const strong = document.createElement("strong");
  frame.className = "frame";
  image.src = `pictures/${row}`;
  image.alt = `The photo ${caption}`;
  strong.textContent = label || "no label";
  text.append(strong, ` ${caption}`);
  frame.append(image);
  box.append(frame, text);
  return box;
}

function show() {
  const item = items[at];
  $("question").textContent = `${at + 1} of ${items.length}: is this a ${item.label}?`;
  const pair = [figure(item.row, item.key, item.label)];
  for (const row of new Set(item.findings.map((finding) => finding.other).filter((row) => row !== null))) {
    pair.push(figure(row, `${others[row].key} (${SPLITS[others[row].split]})`, others[row].label));
  }
  $("pair").replaceChildren(...pair);
  $("findings").replaceChildren(...item.findings.map((finding) => {
    const line = document.createElement("li");
    line.textContent = explain(item, finding);
    return line;
  }));
  $("kept").textContent = `as ${item.label}`;
  $("flipped").textContent = `to ${opposite(item.label)}`;
  for (const button of $("decide").children) {
    button.setAttribute("aria-pressed", String(item.action !== null && button.dataset.action === item.action));
  }
  $("back").disabled = at === 0;
  $("next").disabled = at === items.length - 1;
  for (const ahead of items.slice(at + 1, at + 3)) new Image().src = `pictures/${ahead.row}`;
}

function count(said = "") {
  const counts = Object.entries(DONE).map(([action, name]) => `${items.filter((item) => item.action === action).length} ${name}`);
  const open = items.filter((item) => item.action === null).length;
  $("progress").max = items.length;
  $("progress").value = items.length - open;
  $("status").textContent = `${said}${counts.join(", ")}, ${open} not decided.`;
}

function fail(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

function decide(action) {
  const item = items[at];
  const before = item.action;
  item.action = action || null;
  fail("");
  count(action ? `${item.key} is ${DONE[action]}. ` : "Skipped. ");
  if (at < items.length - 1) at += 1;
  show();
  sending = sending.then(async () => {
    try {
      const answer = await fetch("decisions", {
        method: "POST", headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ row: item.row, action: action || null }),
      });
      // Read in any case: an answer that is not read keeps its connection, of which a browser has six.
      const body = await answer.json();
      if (!answer.ok) throw new Error(body.error);
    } catch (error) {
      // Nothing must look decided that is not written.
      item.action = before;
      at = items.indexOf(item);
      show();
      count();
      fail(error instanceof TypeError ? "The server does not answer, so this was not written. Is it still running?" : error.message);
    }
  });
}

function move(by) {
  at = Math.min(items.length - 1, Math.max(0, at + by));
  fail("");
  show();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !items.length) return;
  const key = event.key.toLowerCase();
  if (key in KEYS) decide(KEYS[key]);
  else if (event.key === "ArrowLeft") move(-1);
  else if (event.key === "ArrowRight") move(1);
  else return;
  event.preventDefault();
});
$("back").addEventListener("click", () => move(-1));
$("next").addEventListener("click", () => move(1));
for (const button of $("decide").children) button.addEventListener("click", () => decide(button.dataset.action));

fetch("items").then((answer) => answer.json()).then((found) => {
  items = found.items;
  others = found.others;
  // Where an earlier review ended.
  at = Math.max(0, items.findIndex((item) => item.action === null));
  show();
  count();
  $("question").focus();
}).catch(() => fail("The server does not answer. Is it still running?"));
