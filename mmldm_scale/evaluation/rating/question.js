// Players, keys and sending of the page of one question. Without this script the page works with the browser's own means.
"use strict";
const form = document.querySelector("form");
const rows = [...form.querySelectorAll(".row")];
const players = [...form.querySelectorAll("video")].map(makePlayer);
const message = document.getElementById("message");
const BAR = 80;  // pixels at the bottom that the bar covers
const opened = performance.now();
let active = rows.findIndex(row => !row.querySelector("input:checked"));
form.noValidate = true;

// Replace the browser's controls, which cover a small picture: a button over the picture, and a slider below it.
function makePlayer(video) {
  const clip = video.closest(".clip"), state = clip.querySelector(".state");
  const button = document.createElement("button"), seek = document.createElement("input");
  const player = { video, clip, played: false, failed: false, toggle, name: clip.getAttribute("aria-label") };
  button.type = "button";
  button.className = "play";
  button.setAttribute("aria-label", `Play or pause: ${player.name}`);
  button.innerHTML = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M6 3l15 9-15 9z"/></svg>';
  Object.assign(seek, { type: "range", className: "seek", min: 0, max: 1, step: "any", value: 0 });
  seek.setAttribute("aria-label", `Position: ${player.name}`);
  video.controls = false;
  video.after(button);
  state.before(seek);

  function toggle() {
    if (!video.paused) return video.pause();
    for (const other of players) if (other.video !== video) other.video.pause();
    return video.play().catch(() => {});  // refused: the button stays
  }
  function follow() {
    if (video.duration) seek.value = video.currentTime / video.duration;
    if (!video.paused) requestAnimationFrame(follow);
  }
  button.onclick = () => { button.blur(); toggle(); };
  seek.oninput = () => { if (video.duration) video.currentTime = seek.value * video.duration; };
  video.onplay = () => { button.classList.add("playing"); follow(); };
  video.onpause = () => button.classList.remove("playing");
  video.onended = () => {  // play it again, as long as nobody pauses it
    player.played = true;
    state.textContent = "played ✓";
    video.currentTime = 0;
    video.play().catch(() => {});
  };
  video.onerror = () => {
    player.failed = true;
    state.textContent = "This clip cannot be played here. Please reload the page, or give the lowest scores.";
  };
  if (video.error) video.onerror();
  return player;
}

function activate(index) {
  active = Math.min(Math.max(index, 0), rows.length - 1);
  rows.forEach((row, i) => row.classList.toggle("active", i === active));
  const { top, bottom } = rows[active].getBoundingClientRect(), clip = rows[active].closest(".clip");
  if (top >= 0 && bottom <= innerHeight - BAR) return;
  if (clip && clip.querySelector(".row") === rows[active]) clip.scrollIntoView({ behavior: "smooth" });  // with its picture
  else rows[active].scrollIntoView({ block: "center", behavior: "smooth" });
}

function choose(number) {
  const input = rows[active].querySelectorAll("input")[number - 1];
  if (!input) return;
  input.checked = true;
  rows[active].classList.remove("missing");
  activate(active + 1);
}

function say(text) {
  message.textContent = text;
  message.classList.add("wrong");
}

function complete() {
  const missing = rows.filter(row => !row.querySelector("input:checked"));
  rows.forEach(row => row.classList.toggle("missing", missing.includes(row)));
  if (missing.length) {
    activate(rows.indexOf(missing[0]));
    say(missing.length > 1 ? `${missing.length} rows have no answer yet` : "One row has no answer yet");
    return false;
  }
  const unplayed = players.find(player => !player.played && !player.failed);
  if (unplayed && !answeredBefore) {
    unplayed.clip.scrollIntoView({ block: "start", behavior: "smooth" });
    say(`Please play ${unplayed.name.replace("The", "the")} to its end first`);
    return false;
  }
  return true;
}

async function send() {
  const button = form.querySelector("button[type=submit]");
  if (button.disabled || !complete()) return;
  button.disabled = true;
  form.elements.played.value = players.every(player => player.played) ? 1 : 0;
  form.elements.seconds.value = ((performance.now() - opened) / 1000).toFixed(1);
  try {
    const response = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) });
    if (!response.ok) throw new Error(`status ${response.status}`);
    location.assign(response.url);
  } catch (error) {
    say(error instanceof TypeError ? "Not sent: no connection. Your answers are still here, try again." :
      `Not saved (${error.message}). Your answers are still here, try again.`);
    button.disabled = false;
  }
}

const answeredBefore = rows.every(row => row.querySelector("input:checked"));
rows.forEach((row, i) => row.addEventListener("change", () => { row.classList.remove("missing"); activate(i + 1); }));
form.addEventListener("submit", event => { event.preventDefault(); send(); });
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("a, .seek")) return;
  const actions = {
    " ": () => (players.find(player => player.clip.contains(rows[active])) ||
      players.find(player => !player.played) || players[0]).toggle(),
    Enter: () => { if (!event.repeat) send(); },
    ArrowUp: () => activate(active - 1),
    ArrowDown: () => activate(active + 1),
  };
  const action = /^[1-5]$/.test(event.key) ? () => choose(+event.key) : actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});
activate(active < 0 ? 0 : active);
