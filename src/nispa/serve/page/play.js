// The page of `nispa play`: what is taught, watched and tested. It writes text, never HTML.
import { Network, TASK_COLOURS, title } from "/network.js";
import { Pad, thumbnail } from "/pad.js";
import { Tour } from "/tour.js";

const $ = (id) => document.getElementById(id);
const network = new Network($("network"));
const percent = (share) => `${(100 * share).toFixed(share > .995 || share < .005 ? 0 : 1)} %`;
const count = (number) => number.toLocaleString("en");
let state = { tasks: [], taught: [], accuracy: { nispa: [], plain: [] }, learning: null };
let best = { nispa: [], plain: [] };
let examples = 0, live = "", moved = "";

function element(name, text = "", more = {}) {
  const made = Object.assign(document.createElement(name), more);
  made.textContent = text;
  return made;
}
// What is seen at once, and what a screen reader says: not every epoch.
function say(text, bad = false, aloud = true) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
  if (aloud) $("spoken").textContent = text;
}
async function ask(path, value) {
  const options = value === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(value),
  };
  try {
    const reply = await fetch(path, options), told = await reply.json();
    if (reply.ok) return told;
    say(told.error, true);
  } catch { say("The server does not answer; is nispa play still running?", true); }
  return null;
}

// What can be taught.
function showTasks() {
  const focused = document.activeElement?.dataset?.key;
  $("tasks").replaceChildren(...state.tasks.map((task) => {
    const place = state.taught.findIndex((each) => each.key === task.key);
    const button = element("button", "", { type: "button" });
    button.dataset.key = task.key;
    button.append(element("b", task.title));
    const row = element("span");
    row.append(...task.samples.map((sample) => thumbnail(sample, 32)));
    const told = place >= 0 ? `learned, task ${place + 1}` : state.learning === task.title ? "being learned …" : "teach";
    button.append(row, element("span", told, { className: "note" }));
    button.disabled = place >= 0 || state.learning !== null || state.taught.length >= state.most_tasks;
    if (place >= 0) { button.dataset.state = "taught"; button.style.borderLeftColor = TASK_COLOURS[place]; }
    button.addEventListener("click", () => teach(task.key));
    const item = element("li");
    item.append(button);
    return item;
  }));
  if (focused) document.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  $("own-teach").disabled = state.learning !== null || state.taught.length >= state.most_tasks;
}
const teach = (key) => ask("/api/teach", { task: key });

// A task of drawings.
const kinds = [];
const silent = element("p", "", { className: "note" });
silent.setAttribute("role", "status");
$("own").append(silent);
const ownPad = new Pad($("own-pad"), "Draw a character", () => {}, (text) => { silent.textContent = text; });
function addKind(name) {
  if (kinds.length >= 5) return;
  const kind = { images: [], name: element("input", "", { value: name, maxLength: 20 }), strip: element("span", "", { className: "strip" }) };
  kind.name.setAttribute("aria-label", `Name of kind ${kinds.length + 1}`);
  const add = element("button", "Add drawing", { type: "button", className: "plain" });
  add.addEventListener("click", () => {
    if (ownPad.empty) return say("Draw something first.", true);
    if (kind.images.length >= 12) return say("Twelve drawings of a kind are enough.", true);
    kind.images.push(ownPad.image);
    kind.strip.append(thumbnail(ownPad.image, 24));
    say(`'${kind.name.value}' has ${kind.images.length} drawing${kind.images.length > 1 ? "s" : ""}.`);
    ownPad.clear();
  });
  const row = element("div", "", { className: "kind" });
  row.append(kind.name, " ", add, kind.strip);
  $("kinds").append(row);
  kinds.push(kind);
}
addKind("star"); addKind("moon");
$("kind-add").addEventListener("click", () => addKind(`kind ${kinds.length + 1}`));
$("own-clear").addEventListener("click", () => ownPad.clear());
$("own-teach").addEventListener("click", () => ask("/api/teach", {
  name: $("own-name").value.trim(),
  drawings: kinds.filter((kind) => kind.images.length).map((kind) => ({ label: kind.name.value.trim(), images: kind.images })),
}));

// What is watched.
let units = {}, changes = {};
function watch(event) {
  units = event.units ?? units;
  changes = event.changes ?? changes;
  network.update(event);
  const feeding = Object.fromEntries(state.layers.map((layer) => [layer.target, layer.name]));
  $("counts").tBodies[0].replaceChildren(...state.groups.slice(1).map((group) => {
    const row = element("tr"), now = units[group.name], change = changes[feeding[group.name]];
    row.append(element("th", title(group.name), { scope: "row" }));
    const cells = [now.plastic, now.candidate, now.stable, change?.dropped, change?.grown, change?.live];
    row.append(...cells.map((cell) => element("td", cell === undefined ? "–" : count(cell))));
    return row;
  }));
}
const total = (name, part) => Object.values(name).reduce((sum, each) => sum + each[part], 0);

// What is tested.
function showAccuracy() {
  const rows = state.taught.map((task, place) => {
    const row = element("tr"), head = element("th", `${place + 1}. ${task.title}`, { scope: "row" });
    head.style.borderLeftColor = TASK_COLOURS[place];
    row.append(head);
    for (const name of ["nispa", "plain"]) {
      const share = state.accuracy[name][place], cell = element("td");
      const top = best[name][place] = Math.max(best[name][place] ?? 0, share);
      const fell = share < top - .05;
      cell.dataset.learner = name; cell.dataset.share = share;
      const bar = element("span", "", { className: fell ? "bar fell" : "bar" }), inner = element("i");
      inner.style.width = `${100 * share}%`;
      bar.append(inner);
      cell.append(percent(share), fell ? element("span", `was ${percent(top)}`, { className: "fell-text" }) : "", bar);
      row.append(cell);
    }
    return row;
  });
  if (rows.length) $("accuracy").tBodies[0].replaceChildren(...rows);
  else $("accuracy").tBodies[0].replaceChildren(Object.assign(element("tr"), {}));
  if (!rows.length) {
    const cell = element("td", "Nothing is taught yet.", { colSpan: 3, className: "note" });
    $("accuracy").tBodies[0].rows[0].append(cell);
  }
  const chosen = $("task").value;
  $("task").replaceChildren(...state.taught.map((task, place) => element("option", `${place + 1}. ${task.title}`, { value: place })));
  if (chosen && Number(chosen) < state.taught.length) $("task").value = chosen;
  for (const id of ["task", "example"]) $(id).disabled = !state.taught.length;
}
const heard = element("p", "", { className: "note" });
heard.setAttribute("role", "status");
$("answers").after(heard);
let truth = null;
const pad = new Pad($("pad"), "Draw what to ask", () => { truth = null; $("truth").textContent = ""; answer(true); },
                    (text) => { heard.textContent = text; });
async function answer(drawing) {
  if (!state.taught.length) return say("Teach a task first, then ask.", true);
  if (pad.empty) return;
  const told = await ask("/api/ask", { image: pad.image, task: Number($("task").value), drawing });
  if (!told) return;
  $("answers").replaceChildren(...[["nispa", "with NISPA"], ["plain", "without"]].map(([name, how]) => {
    const box = element("div"), [first, ...others] = told[name];
    box.dataset.learner = name;
    box.append(element("span", how, { className: "note" }), element("strong", first.label),
               element("span", percent(first.probability)));
    if (truth !== null) {
      box.classList.toggle("wrong", first.label !== truth);
      box.append(element("span", first.label === truth ? " – right" : " – wrong"));
    }
    box.append(element("p", others.slice(0, 2).map((each) => `${each.label}: ${percent(each.probability)}`).join(", "), { className: "note" }));
    return box;
  }));
}
async function takeExample() {
  const told = await ask(`/api/example?task=${$("task").value || 0}&number=${examples++}`);
  if (!told) return;
  truth = told.label;
  pad.set(told.image);
  $("truth").textContent = `It is ${told.label}.`;
  await answer(false);
}
$("example").addEventListener("click", takeExample);
$("clear").addEventListener("click", () => { pad.clear(); truth = null; $("truth").textContent = ""; $("answers").replaceChildren(); });
$("task").addEventListener("change", () => { if (truth === null) answer(true); else takeExample(); });
$("restart").addEventListener("click", () => ask("/api/restart", {}));

// What happens.
const happen = {
  state(event) {
    state = event;
    best = { nispa: [...event.accuracy.nispa], plain: [...event.accuracy.plain] };
    changes = {};
    network.form(event.groups, event.layers);
    watch(event); showTasks(); showAccuracy();
    $("answers").replaceChildren();
    say(event.learning ? `Learning ${event.learning} …` : event.taught.length ? "Teach another task, or test." : "Choose a task to teach, or take the tour.");
  },
  begin(event) {
    state.learning = event.title; changes = {}; moved = "";
    showTasks();
    say(`NISPA learns task ${event.task + 1}, ${event.title}: at first every plastic unit may help.`);
  },
  phase(event) { live = `Phase ${event.phase} of at most ${event.phases}`; },
  epoch(event) {
    state.accuracy[event.learner] = event.accuracy;
    showAccuracy();
    const who = event.learner === "nispa" ? live : "The network without NISPA learns the same task";
    say(`${who}: ${percent(event.new)} of the new task right.${event.learner === "nispa" ? moved : ""}`, false, false);
  },
  rewired(event) {
    watch(event);
    moved = ` ${count(total(event.units, "candidate"))} units are candidates; ` +
            `${count(total(event.changes, "dropped"))} connections were dropped, ${count(total(event.changes, "grown"))} grew.`;
    say(`${live} is over.${moved}`);
  },
  stable(event) {
    watch({ units: event.units, lines: event.lines });
    say(`The candidates are stable now, ${count(total(event.units, "stable"))} units in all. What they compute never changes again.`);
  },
  learned(event) {
    state.learning = null;
    state.taught.push(state.tasks.find((task) => task.title === event.title) ?? event);
    state.accuracy = event.accuracy;
    showTasks(); showAccuracy();
    $("task").value = $("task").value || "0";
    const fell = event.accuracy.plain.filter((share, place) => share < (best.plain[place] ?? 0) - .05).length;
    say(`Task ${event.task + 1} is learned. NISPA forgot nothing` +
        (fell ? `; without it, ${fell} earlier task${fell > 1 ? "s" : ""} got worse.` : "."));
  },
  failed(event) { say(event.error, true); },
};
const source = new EventSource("/api/events");
source.addEventListener("message", (message) => {
  const event = JSON.parse(message.data);
  if (event.event === "learned" && !state.tasks.some((task) => task.title === event.title))
    fetch("/api/state").then((reply) => reply.json()).then(happen.state);
  happen[event.event](event);
});
source.addEventListener("error", () => say("Connection lost; trying again …", true));

const next = (key) => state.taught.some((task) => task.key === key) ? null : () => teach(key);
new Tour({
  first: () => next("digits-0-to-4"),
  second: () => next("digits-0-to-4-turned"),
  example: () => state.taught.length ? () => { $("task").value = "0"; takeExample(); } : null,
});
window.nispaPlay = { network };  // for the tests: how many frames were drawn
