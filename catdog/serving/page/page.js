// The page: a picture in, the server's answer shown, and the last ten kept until the page is closed.
"use strict";

const $ = (id) => document.getElementById(id);
const { first, second, files: mostFiles, bytes: mostBytes } = document.body.dataset;
const KEPT = 10;
const tries = [];
let current = null;
let number = 0;

const percent = (share) => {
  const value = 100 * share;
  if (value > 99.9) return "over 99.9 %";
  if (value < 0.1) return "under 0.1 %";
  return `${value.toFixed(1)} %`;
};

const sentence = (entry) => {
  const share = entry.probabilities[entry.class_name];
  const other = entry.class_name === first ? second : first;
  if (entry.novelty > 1) return `Perhaps neither; if one of them, a ${entry.class_name}`;
  if (share >= 0.99) return `Almost certainly a ${entry.class_name}`;
  if (share >= 0.9) return `Very likely a ${entry.class_name}`;
  if (share >= 0.75) return `Probably a ${entry.class_name}`;
  return `Hard to say: a ${entry.class_name} rather than a ${other}`;
};

// What is also to be seen in the answer is only read aloud.
const say = (text, aloud = false) => {
  $("status").textContent = text;
  $("status").classList.toggle("aloud", aloud);
};

const showAnswer = () => {
  const element = document.querySelector(".result");
  const { top, bottom } = element.getBoundingClientRect();
  if (top >= 0 && Math.min(bottom, top + 480) <= innerHeight) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
};

const fail = (text) => {
  $("error").textContent = text;
  $("error").hidden = !text;
  if (!text) return;
  say(current ? "" : "No picture yet.");
  showAnswer();
};

async function ask(path, options) {
  let answer;
  for (let attempt = 0; ; attempt += 1) {
    try {
      answer = await fetch(path, options);
    } catch {
      throw new Error("The server does not answer. Is it still running?");
    }
    // Busy: it asks to come back, and a person should not have to do that by hand.
    if (answer.status !== 429 || attempt === 4) break;
    await answer.arrayBuffer();  // an answer that is not read keeps its connection
    await new Promise((resume) => setTimeout(resume, 1000 * Number(answer.headers.get("Retry-After") || 1)));
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  const line = body.error || `The server answered ${answer.status}.`;
  throw new Error(/^\S+:\/\//.test(line) ? line : line.charAt(0).toUpperCase() + line.slice(1));
}

const form = (pictures) => {
  const body = new FormData();
  for (const picture of pictures) body.append("files", picture, picture.name || "picture");
  return { method: "POST", body };
};

const json = (url) => ({
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ url }),
});

async function work(what, action) {
  const mine = ++number;
  document.body.classList.add("busy");
  document.body.setAttribute("aria-busy", "true");
  fail("");
  say(what);
  try {
    await action(() => mine === number);
  } catch (error) {
    if (mine === number) fail(error.message);
  } finally {
    if (mine === number) {
      document.body.classList.remove("busy");
      document.body.removeAttribute("aria-busy");
    }
  }
}

function lookAtFiles(list) {
  const pictures = [...list];
  if (!pictures.length) return;
  const size = pictures.reduce((sum, picture) => sum + picture.size, 0);
  if (pictures.length > mostFiles) { fail(`These are ${pictures.length} files; at most ${mostFiles} go at a time.`); return; }
  if (size > mostBytes) {
    fail(`${(size / 1e6).toFixed(1)} MB is too much; at most ${mostBytes / 1e6} MB go at a time. Choose a smaller picture.`);
    return;
  }
  work(pictures.length > 1 ? `Looking at ${pictures.length} pictures…` : "Looking…", async (last) => {
    const started = performance.now();
    const answer = await (await ask("v1/predict?thumbnail=true&novelty=true", form(pictures))).json();
    const seconds = (performance.now() - started) / 1000;
    const unreadable = [];
    answer.predictions.forEach((entry, at) => {
      if (entry.class_name) keep({ ...entry, seconds, computed: answer.seconds, again: () => form([pictures[at]]) });
      else unreadable.push(`${entry.name} cannot be read: ${entry.detail}`);
    });
    if (last()) show(tries[0]);
    if (unreadable.length) throw new Error(unreadable.join("; "));
  });
}

function lookAtAddress(url) {
  work("Fetching the picture…", async (last) => {
    const started = performance.now();
    const answer = await (await ask("v1/predict?thumbnail=true&novelty=true", json(url))).json();
    const [entry] = answer.predictions;
    const seconds = (performance.now() - started) / 1000;
    keep({ ...entry, seconds, computed: answer.seconds, again: () => json(url) });
    if (last()) show(tries[0]);
  });
}

function lookAtRandom() {
  work("Taking a picture…", async (last) => {
    const started = performance.now();
    const answer = await (await ask("v1/random")).json();
    const entry = answer.prediction;
    if (!entry.class_name) throw new Error(`${entry.name} cannot be read: ${entry.detail}`);
    const seconds = (performance.now() - started) / 1000;
    keep({
      ...entry, seconds, computed: answer.seconds, label: answer.label, credit: answer.credit, source: answer.source,
      again: () => form([new File([bytesOf(answer.picture)], entry.name)]),
    });
    if (last()) show(tries[0]);
  });
}

const bytesOf = (dataUrl) => Uint8Array.from(atob(dataUrl.split(",", 2)[1]), (letter) => letter.charCodeAt(0));

function keep(entry) {
  tries.unshift(entry);
  for (const old of tries.splice(KEPT)) if (old.overlay) URL.revokeObjectURL(old.overlay);
}

function show(entry) {
  current = entry;
  $("result").hidden = false;
  showPicture(false);
  $("picture").alt = `The picture: ${entry.name}`;
  $("verdict").textContent = sentence(entry);
  for (const [side, name] of [["first", first], ["second", second]]) {
    const share = entry.probabilities[name];
    $(`share-${side}`).style.flexGrow = share;
    $(`share-${side}`).style.flexBasis = 0;
    $(`text-${side}`).textContent = `${name} ${percent(share)}`;
    $(`text-${side}`).classList.toggle("leads", entry.class_name === name);
  }
  $("bar").setAttribute("aria-label", `${first} ${percent(entry.probabilities[first])}, ${second} ${percent(entry.probabilities[second])}`);
  const remarks = [];
  if (entry.novelty > 1) remarks.push(`It is unlike the photos that the model learned from, so do not trust the figures.`);
  if (entry.status === "recovered") remarks.push(`The file is unusual or damaged (${entry.detail}); the answer may suffer.`);
  if (entry.label) remarks.push(entry.label === entry.class_name ? `Right: it is labelled ${entry.label}.` : `Wrong: it is labelled ${entry.label}.`);
  $("remark").textContent = remarks.join(" ");
  $("remark").hidden = !remarks.length;
  $("about").replaceChildren(`${entry.name}, answered in ${entry.seconds.toFixed(2)} s (${(1000 * entry.computed).toFixed(0)} ms on the server).`);
  if (entry.credit) {
    const link = document.createElement("a");
    link.href = entry.source;
    link.rel = "noreferrer";
    link.textContent = entry.credit;
    $("about").append(" ", entry.source ? link : entry.credit);
  }
  say(`${sentence(entry)}: ${entry.class_name} ${percent(entry.probabilities[entry.class_name])}. It took ${entry.seconds.toFixed(2)} seconds.`, true);
  showTries();
  showAnswer();
}

function showPicture(overlay) {
  $("picture").src = overlay ? current.overlay : current.thumbnail;
  $("explain").setAttribute("aria-pressed", String(overlay));
  $("legend").hidden = !overlay;
}

function showTries() {
  $("none").hidden = tries.length > 0;
  $("history").replaceChildren(...tries.map((entry) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const picture = document.createElement("img");
    const text = document.createElement("span");
    const name = document.createElement("strong");
    picture.src = entry.thumbnail;
    picture.alt = "";
    name.textContent = entry.class_name;
    text.append(name, percent(entry.probabilities[entry.class_name]));
    button.type = "button";
    button.title = entry.name;
    button.setAttribute("aria-label", `Show again: ${entry.name}, ${entry.class_name} ${percent(entry.probabilities[entry.class_name])}`);
    if (entry === current) button.setAttribute("aria-current", "true");
    button.append(picture, text);
    button.addEventListener("click", () => {
      fail("");
      show(entry);
      $("history").querySelector('[aria-current="true"]').focus();
    });
    item.append(button);
    return item;
  }));
}

$("explain").addEventListener("click", () => {
  const entry = current;
  if ($("explain").getAttribute("aria-pressed") === "true") { showPicture(false); say("The picture without colours.", true); return; }
  if (entry.overlay) { showPicture(true); say("Warm colours show where it looked.", true); return; }
  $("explain").disabled = true;
  work("Drawing… The first time takes some seconds.", async () => {
    try {
      entry.overlay = URL.createObjectURL(await (await ask("v1/explain", entry.again())).blob());
      if (entry === current) { showPicture(true); say("Warm colours show where it looked.", true); }
    } finally {
      $("explain").disabled = false;
      if (entry === current) $("explain").focus();
    }
  });
});

for (const id of ["choose", "photograph"]) {
  $(id).addEventListener("change", (event) => {
    lookAtFiles(event.target.files);
    event.target.value = "";  // so that the same file can be chosen again
  });
}

$("random")?.addEventListener("click", lookAtRandom);

$("address").addEventListener("submit", (event) => {
  event.preventDefault();
  const url = $("url").value.trim();
  if (!/^https?:\/\/./i.test(url)) { fail("Give an address that begins with https:// or http://."); $("url").focus(); return; }
  lookAtAddress(url);
});

const given = (transfer) => {
  if (transfer.files.length) { lookAtFiles(transfer.files); return true; }
  const text = (transfer.getData("text/uri-list") || transfer.getData("text/plain")).trim().split("\n")[0];
  if (!/^https?:\/\/\S+$/i.test(text)) return false;
  $("url").value = text;
  lookAtAddress(text);
  return true;
};

document.addEventListener("paste", (event) => {
  const typing = event.target instanceof HTMLInputElement && event.target.id === "url";
  if (typing && !event.clipboardData.files.length) return;
  if (given(event.clipboardData)) event.preventDefault();
});

// The whole page takes what is dropped; else the browser would leave it and open the file.
document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (!given(event.dataTransfer)) fail("That is no picture, and no address of one.");
});
