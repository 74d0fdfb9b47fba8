"use strict";
// The list of samples: see _Page in gallery.py. All of its texts become text nodes or attributes, never HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const list = document.getElementById("samples");
const filters = Object.fromEntries(["task", "class", "text"].map(id => [id, document.getElementById(id)]));
const titles = Object.fromEntries(data.tasks.map(([task, title]) => [task, title]));
const playButton = document.getElementById("play");
let selected = null; // the item that the keyboard acts on; the only one that is heard
let heard = 0; // number of the folder that is heard of the selected item
let playingAll = false;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const taskOf = sample => sample.name.slice(0, sample.name.lastIndexOf("_"));

// --- one item: empty until it comes near the window, and empty again when it is far away -------------------------------

function player(url, ending, label) {
  const sound = ending === "wav";
  const made = element(sound ? "audio" : "video", { controls: true, loop: true, preload: "metadata", muted: true, src: url });
  if (!sound) made.playsInline = true;
  made.setAttribute("aria-label", label);
  made.tabIndex = -1;
  return made;
}

function figure(run, folder, sample, [ending, pictured, text], label, caption) {
  const [, base] = data.runs[run];
  const made = element("figure", {}, player(`${base}${folder}${sample.name}.${ending}`, ending, `${label} of ${sample.name}`));
  if (pictured) {
    const src = `${base}spectrograms/${folder}${sample.name}.png`;
    made.append(element("img", { src, alt: `mel spectrogram: ${label} of ${sample.name}`, loading: "lazy" }));
  }
  made.append(element("figcaption", { textContent: [caption, data.texts[text]].filter(Boolean).join(": ") }));
  return made;
}

function fill(item) {
  if (item.lastChild.className === "media") return;
  const { sample } = item;
  const media = element("div", { className: "media" });
  if (sample.input) {
    const given = figure(sample.input[3], "inputs/", sample, sample.input, "input", "input");
    given.dataset.input = "";
    media.append(given);
  }
  const compared = data.runs.length > 1;
  sample.results.forEach((result, run) => {
    const [label] = data.runs[run];
    const caption = compared ? `${run + 1} ${label}` : sample.input ? "result" : "";
    if (!result) {
      media.append(element("figure", {}, element("div", { className: "none", textContent: "none" }),
        element("figcaption", { textContent: caption })));
      return;
    }
    const made = figure(run, "", sample, result, compared ? `result of ${label}` : "result", caption);
    made.dataset.run = run;
    media.append(made);
  });
  item.append(media);
  hear();
  if (playingAll) start(item);
}

function keepHeight() { // an empty item is as high as a filled one, so that nothing moves when it is filled
  const bottom = element => element.getBoundingClientRect().bottom;
  const heights = filled().map(item => bottom(item.lastChild) - item.getBoundingClientRect().top);
  if (!heights.length) return;
  list.style.setProperty("--height", `${Math.ceil(Math.max(...heights)) + 12}px`);
  if (selected === document.activeElement) selected.scrollIntoView({ block: "nearest" });
}

function empty(item) {
  if (item.lastChild.className !== "media") return;
  for (const each of item.querySelectorAll("video, audio")) {
    each.pause();
    each.removeAttribute("src");
    each.load(); // the browser lets go of the file and its decoder
  }
  item.lastChild.remove();
}

const near = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) (isIntersecting ? fill : empty)(target);
  if (!list.style.getPropertyValue("--height")) keepHeight();
}, { rootMargin: "50% 0%" });

function makeItem(sample) {
  const about = [titles[taskOf(sample)], sample.class, sample.prompt].filter(Boolean).join(" · ");
  const item = element("li", { tabIndex: -1, id: sample.name },
    element("b", { textContent: sample.name }), element("small", { textContent: ` ${about}` }));
  item.setAttribute("aria-label", `${sample.name}, ${about}`);
  item.sample = sample;
  const input = sample.input ? data.texts[sample.input[2]] : "";
  item.searched = [sample.name, sample.class, sample.prompt, input].join("\n").toLowerCase();
  near.observe(item);
  return item;
}

// --- playing ---------------------------------------------------------------------------------------------------------

const results = item => [...item.querySelectorAll("[data-run] video, [data-run] audio")];
const filled = () => [...list.querySelectorAll(".media")].map(media => media.parentElement);

function hear() { // mute all players but one
  for (const item of filled()) {
    for (const each of item.querySelectorAll("video, audio")) {
      const of = each.parentElement.dataset;
      const given = item.playsInput && "input" in of;
      const chosen = item === selected && (given || (!item.playsInput && Number(of.run) === heard));
      each.muted = !chosen;
      each.parentElement.classList.toggle("heard", chosen && data.runs.length > 1);
    }
  }
}

function start(item, players = results(item)) {
  for (const each of players) {
    each.play().catch(() => {}); // the file is missing, or play was followed by pause: the player shows which
  }
}

function toggle(item) {
  const players = results(item);
  const playing = players.some(each => !each.paused);
  item.playsInput = false;
  hear();
  if (playing) players.forEach(each => each.pause());
  else {
    for (const each of players) each.currentTime = players[0].currentTime; // side by side: at the same time
    start(item, players);
  }
}

function toggleInput(item) {
  const given = item.querySelector("[data-input] video, [data-input] audio");
  if (!given) return;
  item.playsInput = given.paused;
  hear();
  if (given.paused) start(item, [given]);
  else given.pause();
}

function playAll(play) {
  playingAll = play;
  playButton.setAttribute("aria-pressed", String(play));
  if (play) filled().forEach(item => start(item));
  else list.querySelectorAll("video, audio").forEach(each => each.pause());
}

// --- selecting and filtering -----------------------------------------------------------------------------------------

function select(item, focus = true) {
  if (!item) return;
  if (selected) {
    selected.tabIndex = -1;
    selected.removeAttribute("aria-current");
    if (selected !== item && !playingAll) selected.querySelectorAll("video, audio").forEach(each => each.pause());
  }
  selected = item;
  item.tabIndex = 0;
  item.setAttribute("aria-current", "true");
  if (focus) {
    item.focus({ preventScroll: true });
    fill(item);
    item.scrollIntoView({ block: "nearest" });
  }
  hear();
}

function columns() {
  return getComputedStyle(list).gridTemplateColumns.split(" ").length;
}

function move(steps) {
  const items = [...list.children];
  const place = items.indexOf(selected);
  select(items[Math.min(items.length - 1, Math.max(0, place < 0 ? 0 : place + steps))]);
}

const items = data.samples.map(makeItem);

function filter() {
  const text = filters.text.value.trim().toLowerCase();
  const shown = items.filter(({ sample, searched }) =>
    (!filters.task.value || taskOf(sample) === filters.task.value) &&
    (!filters.class.value || sample.class === filters.class.value) && searched.includes(text));
  const visible = new Set(shown);
  items.forEach(item => visible.has(item) || empty(item));
  list.replaceChildren(...shown);
  const left = data.left_out ? `, ${data.left_out.toLocaleString("en")} more in the folder` : "";
  document.getElementById("count").textContent =
    `${shown.length.toLocaleString("en")} of ${items.length.toLocaleString("en")} samples${left}`;
  if (!visible.has(selected)) select(shown[0], false);
}

function offer(select, values) {
  for (const [value, text] of values) select.append(element("option", { value, textContent: text }));
  select.parentElement.hidden = values.length < 2;
}

offer(filters.task, data.tasks.map(([task, , count]) => [task, `${task} (${count.toLocaleString("en")})`]));
const classes = [...new Set(data.samples.map(sample => sample.class).filter(Boolean))].sort();
offer(filters.class, classes.map(name => [name, name]));
const most = Math.max(1, ...data.samples.map(sample => sample.results.length + (sample.input ? 1 : 0)));
list.style.setProperty("--card", `${Math.max(15, 9 * most)}rem`);
filter();

// --- events ----------------------------------------------------------------------------------------------------------

addEventListener("resize", keepHeight);
for (const each of Object.values(filters)) each.addEventListener("input", filter);
document.getElementById("bar").addEventListener("submit", event => event.preventDefault());
playButton.addEventListener("click", () => playAll(true));
document.getElementById("pause").addEventListener("click", () => playAll(false));
const keys = document.getElementById("keys");
document.getElementById("help").addEventListener("click", () => keys.showModal());
list.addEventListener("focusin", event => {
  const item = event.target.closest("#samples > li");
  if (item !== selected) select(item, false);
});
list.addEventListener("pointerdown", event => {
  const item = event.target.closest("#samples > li");
  if (!item) return;
  const of = event.target.closest("figure")?.dataset ?? {};
  item.playsInput = "input" in of;
  if ("run" in of) heard = Number(of.run);
  select(item, false);
});

const actions = {
  ArrowLeft: () => move(-1),
  ArrowRight: () => move(1),
  ArrowUp: () => move(-columns()),
  ArrowDown: () => move(columns()),
  Home: () => select(list.firstElementChild),
  End: () => select(list.lastElementChild),
  " ": () => selected && toggle(selected),
  i: () => selected && toggleInput(selected),
  a: () => playAll(!playingAll),
  "/": () => filters.text.focus(),
  "?": () => keys.showModal(),
};

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
  if (event.key === "Escape") document.activeElement.blur();
  if (event.target.closest("input, select, button, video, audio")) return;
  const digit = /^[1-9]$/.test(event.key) ? Number(event.key) - 1 : -1;
  if (digit >= 0 && digit < data.runs.length) {
    heard = digit;
    hear();
  }
  const action = actions[event.key] ?? actions[event.key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  action();
});
