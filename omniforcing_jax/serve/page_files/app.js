// The page: what is clicked and typed goes to the server, what comes from there is shown.

import { address, ask, Line, Refusal, setToken, takeToken } from "./api.js";
import { CameraPad } from "./camera.js";
import { Player } from "./player.js";
import { SoundView } from "./sound.js";
import { Timeline } from "./timeline.js";

const FRAME_RATE = 24;
const AGAIN_MS = 1500; // until a lost connection is tried again

const $ = (id) => document.getElementById(id);
const video = $("video");
const timeline = new Timeline($("timeline"));
const sound = new SoundView(video, $("spectrogram"), $("left"), $("right"));
const player = new Player(video, { onStall: () => showFigures() });
const camera = new CameraPad($("camera"), moveCamera);
player.onMuted = () => {
  $("unmute").hidden = false;
  showMute();
};

const page = { server: null, stream: null, line: null, start: null, edge: 0, retry: null };

// -- words ------------------------------------------------------------------------------------------------------

function showError(error) {
  $("error").textContent = error.message ?? String(error);
  $("error").hidden = false;
  if (error instanceof Refusal && error.status === 401) {
    $("token-form").hidden = false;
    $("main").hidden = true;
    $("token").focus();
  }
}

function clearError() {
  $("error").hidden = true;
}

async function attempt(work) {
  try {
    clearError();
    return await work();
  } catch (error) {
    showError(error);
    return null;
  }
}

function number(value, digits = 1) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

// -- server -----------------------------------------------------------------------------------------------------

async function meetServer() {
  const server = await attempt(() => ask("GET", "/v1/server"));
  if (!server) return false;
  $("token-form").hidden = true;
  $("main").hidden = false;
  showServer(server);
  const suggestions = server.suggestions.map((text) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = text;
    chip.onclick = () => {
      $("prompt").value = text;
      submitPrompt();
    };
    return chip;
  });
  $("suggestions").replaceChildren(...suggestions);
  $("prompt").value ||= server.suggestions[0] ?? "";
  return true;
}

function showServer(server) {
  page.server = server;
  const what = server.is_mock ? "mock: drawn, no weights" : server.weights;
  $("server").textContent = server.stage === "ready" ? what : `${what} · ${server.message}`;
  const load = Math.round(100 * server.load);
  const waiting = server.waiting ? `, ${server.waiting} waiting` : "";
  $("f-streams").textContent = `${server.running} running${waiting}, ${load} % busy`;
  $("camera").hidden = !server.has_camera;
  if (!page.stream) {
    $("start").disabled = false;
    $("cover-text").textContent = coverWords();
  }
}

function coverWords() {
  const first = page.server?.needs_picture && !page.start ? "Drop an image to begin with. " : "";
  return `${first}Say what you want to see, and press Start.`;
}

async function refresh() {
  try {
    showServer(await ask("GET", "/v1/server"));
    const { streams } = await ask("GET", "/v1/streams");
    showStreams(streams);
  } catch (error) {
    if (error.status === 401) showError(error);
  }
}

function showStreams(streams) {
  const rows = streams.map((stream) => {
    const row = document.createElement("li");
    const link = document.createElement("a");
    const [name, state] = [document.createElement("b"), document.createElement("span")];
    link.href = `/?stream=${stream.id}`;
    link.setAttribute("aria-current", String(stream.id === page.stream?.id));
    name.textContent = stream.prompt;
    state.textContent = stateWords(stream);
    link.append(name, state);
    row.append(link);
    return row;
  });
  if (!rows.length) {
    const row = document.createElement("li");
    row.className = "quiet";
    row.textContent = "None yet.";
    rows.push(row);
  }
  $("streams").replaceChildren(...rows);
}

// -- one stream -------------------------------------------------------------------------------------------------

function stateWords(stream) {
  if (stream.state === "queued") return stream.place ? `place ${stream.place} in the queue` : "queued";
  return stream.state;
}

function watch(stream, atStart = false) {
  clearTimeout(page.retry);
  page.line?.close();
  player.reset();
  timeline.reset();
  camera.reset();
  $("camera-words").textContent = "";
  page.edge = 0;
  $("changes").replaceChildren();
  const url = new URL(location.href);
  url.searchParams.set("stream", stream.id);
  if (url.href !== location.href) history.pushState(null, "", url);
  showStream(stream);
  follow(stream.id, atStart);
}

function follow(id, atStart) {
  page.line = new Line(id, {
    atStart,
    onMessage: (envelope, bytes) => attemptQuietly(() => take(envelope, bytes)),
    onClose: () => {
      page.retry = setTimeout(() => again(id), AGAIN_MS);
    },
  });
}

function attemptQuietly(work) {
  try {
    work();
  } catch (error) {
    showError(error);
  }
}

async function again(id) {
  try {
    const stream = await ask("GET", `/v1/streams/${id}`);
    clearError();
    showStream(stream);
    if (!["ended", "failed"].includes(stream.state)) follow(id, false);
  } catch (error) {
    if (error.status !== 0) {
      showError(error);
      return forget();
    }
    if ($("error").hidden) showError(error); // what the server said last is worth more
    $("state").textContent = "connecting";
    $("state").dataset.state = "queued";
    page.retry = setTimeout(() => again(id), AGAIN_MS);
  }
}

function take(envelope, bytes) {
  if (envelope.type === "header") player.header(envelope.mime, bytes);
  else if (envelope.type === "fragment") {
    player.append(bytes);
    timeline.addFragment(envelope);
    page.edge = Math.max(page.edge, envelope.end_s);
    $("cover").hidden = true;
  } else if (envelope.type === "stream") showStream(envelope.stream);
  else if (envelope.type === "receipt") showReceipt(envelope.receipt);
  else if (envelope.type === "skipped") {
    showError(new Error(`Your connection is slow: ${envelope.fragments} pieces were left out.`));
  } else if (envelope.type === "end") {
    showError(new Error(`${envelope.message}.`));
    if (page.stream?.state === "ended") player.end();
  } else if (envelope.type === "error") showError(new Error(envelope.message));
}

function showStream(stream) {
  page.stream = stream;
  $("state").textContent = stateWords(stream);
  $("state").dataset.state = stream.state;
  const isAlive = !["ended", "failed"].includes(stream.state);
  for (const id of ["pause", "live", "fork", "save", "delete"]) $(id).disabled = !isAlive;
  camera.enable(isAlive && Boolean(page.server?.has_camera));
  $("download").setAttribute("aria-disabled", String(!stream.made_s));
  const query = { from: "start", until: "now", download: "1" };
  if (stream.made_s) $("download").href = address(`/v1/streams/${stream.id}/media.mp4`, query);
  $("send").textContent = isAlive ? "Change" : "Start";
  $("stage").style.aspectRatio = `${Math.max(stream.width, 1.25 * stream.height)} / ${stream.height}`;
  if (!player.hasBegun) {
    const waits = stream.state === "queued" ? `You are at place ${stream.place ?? "?"} in the queue.` : stream.message;
    $("cover").hidden = false;
    $("start").hidden = isAlive;
    const isStarting = page.server && page.server.stage !== "ready";
    $("cover-text").textContent = isStarting ? `The server is starting: ${page.server.message}` : waits || "Starting …";
  }
  if (stream.state === "failed") showError(new Error(stream.message));
  showFigures();
}

function showFigures() {
  const stream = page.stream;
  $("f-buffer").textContent = player.hasBegun ? `${number(player.ahead_s)} s` : "–";
  if (!stream) return;
  $("f-first").textContent = stream.first_chunk_s === null ? "–" : `${number(stream.first_chunk_s, 2)} s`;
  const factor = stream.real_time_factor;
  $("f-speed").textContent = factor === null ? "–" : `${number(factor)} × real time`;
  $("f-frames").textContent = factor === null ? "–" : `${number(factor * FRAME_RATE, 0)} per second`;
  $("f-underruns").textContent = `${stream.underruns} here, ${player.stalls} in this page`;
  $("f-viewers").textContent = String(stream.viewers);
}

function showReceipt(receipt) {
  if (receipt.kind === "camera") return showCamera(receipt);
  timeline.addReceipt(receipt);
  const id = `change-${receipt.id}`;
  const row = document.getElementById(id) ?? document.createElement("li");
  const [name, words] = [document.createElement("b"), document.createElement("span")];
  row.id = id;
  row.dataset.stage = receipt.stage;
  name.textContent = receipt.prompt;
  words.textContent = receiptWords(receipt);
  row.replaceChildren(name, words);
  if (!row.isConnected) $("changes").prepend(row);
}

function showCamera(receipt) {
  if (receipt.stage === "applied") camera.applied(receipt.camera ?? "");
  if (receipt.stage !== "replaced") $("camera-words").textContent = receiptWords(receipt);
}

function receiptWords({ stage, received_s, second, block, delay_s, message }) {
  if (stage === "refused") return `refused: ${message}`;
  if (stage === "replaced") return "replaced by a later prompt";
  const received = `asked at ${number(received_s)} s`;
  if (stage === "received") return `${received}, waiting for the next block`;
  return `${received}, shown from ${number(second)} s (block ${block}), ready after ${number(delay_s, 2)} s`;
}

function forget() {
  clearTimeout(page.retry);
  page.line?.close();
  page.line = page.stream = null;
  player.reset();
  const url = new URL(location.href);
  url.searchParams.delete("stream");
  history.replaceState(null, "", url);
  $("state").textContent = "no stream";
  $("cover").hidden = $("start").hidden = false;
  $("cover-text").textContent = coverWords();
  camera.enable(false);
  $("send").textContent = "Start";
  for (const id of ["pause", "live", "fork", "save", "delete"]) $(id).disabled = true;
}

// -- what people do ---------------------------------------------------------------------------------------------

function optional(id) {
  return $(id).value === "" ? null : Number($(id).value);
}

async function begin() {
  const body = { prompt: $("prompt").value.trim(), seed: Number($("seed").value) };
  for (const id of ["height", "width", "seconds", "steps", "window", "compress"]) body[id] = optional(id);
  if (page.start) body.start = page.start;
  await sound.open();
  player.wantsToPlay = true;
  showPause();
  const stream = await attempt(() => ask("POST", "/v1/streams", body));
  if (stream) watch(stream);
}

async function submitPrompt() {
  const isAlive = page.stream && !["ended", "failed"].includes(page.stream.state);
  if (!isAlive) return begin();
  await sound.open();
  const body = { prompt: $("prompt").value.trim() };
  const receipt = await attempt(() => ask("POST", `/v1/streams/${page.stream.id}/prompt`, body));
  if (receipt) showReceipt(receipt);
  $("prompt").select();
}

function moveCamera(path) {
  const id = page.stream?.id;
  return async () => {
    if (!id || page.stream?.id !== id) return;
    try {
      const receipt = await ask("POST", `/v1/streams/${id}/camera`, { camera: path });
      if (page.stream?.id === id) showReceipt(receipt);
    } catch (error) {
      showError(error); // what is shown already stays where all is well: this comes every few seconds
    }
  };
}

function showPause() {
  $("pause").textContent = player.wantsToPlay ? "Pause" : "Play";
}

function togglePause() {
  if (player.wantsToPlay) player.pause();
  else player.play();
  showPause();
  report();
}

function showMute() {
  $("mute").setAttribute("aria-pressed", String(video.muted));
  $("mute").textContent = video.muted ? "Unmute" : "Mute";
}

async function setMuted(muted) {
  video.muted = muted;
  $("unmute").hidden = true;
  if (!muted) await sound.open();
  showMute();
}

function report() {
  if (player.hasBegun) page.line?.report(video.currentTime, !video.paused);
}

async function offer(file) {
  $("drop-text").textContent = `Reading ${file.name} …`;
  const upload = await attempt(() => ask("POST", "/v1/uploads", file));
  page.start = upload?.id ?? null;
  $("undrop").hidden = !upload;
  $("drop-text").textContent = upload ? dropWords(upload) : "Drop an image, a clip or a sound to begin with";
}

function dropWords({ kind, seconds }) {
  return kind === "image" ? "The next stream begins with your image. " : `The next stream begins with ${seconds} s of your ${kind}. `;
}

function undrop(event) {
  event.stopPropagation();
  page.start = null;
  $("undrop").hidden = true;
  $("file").value = "";
  $("drop-text").textContent = "Drop an image, a clip or a sound to begin with";
}

function wire() {
  $("prompt-form").onsubmit = (event) => {
    event.preventDefault();
    submitPrompt();
  };
  $("new-form").onsubmit = (event) => {
    event.preventDefault();
    begin();
  };
  $("token-form").onsubmit = async (event) => {
    event.preventDefault();
    setToken($("token").value);
    if (await meetServer()) join();
  };
  $("start").onclick = begin;
  $("pause").onclick = togglePause;
  $("live").onclick = () => player.goLive(1);
  $("mute").onclick = () => setMuted(!video.muted);
  $("unmute").onclick = () => setMuted(false);
  $("volume").oninput = () => (video.volume = Number($("volume").value));
  $("smooth").onchange = () => $("stage").classList.toggle("smooth", $("smooth").checked);
  $("full").onclick = () => (document.fullscreenElement ? document.exitFullscreen() : $("stage").requestFullscreen());
  $("dice").onclick = () => ($("seed").value = Math.floor(Math.random() * 2 ** 32));
  $("fork").onclick = async () => {
    const stream = await attempt(() => ask("POST", `/v1/streams/${page.stream.id}/fork`));
    if (stream) watch(stream);
  };
  $("save").onclick = () => attempt(() => ask("POST", `/v1/streams/${page.stream.id}/save`));
  $("delete").onclick = async () => {
    const { id } = page.stream;
    forget();
    await attempt(() => ask("DELETE", `/v1/streams/${id}`));
    refresh();
  };
  wireDrop();
  document.addEventListener("keydown", onKey);
  document.addEventListener("keyup", (event) => camera.keyUp(event));
  window.addEventListener("blur", () => camera.release(true)); // where keys go up is not known any more
  window.addEventListener("popstate", () => join());
  video.volume = Number($("volume").value);
}

function wireDrop() {
  const drop = $("drop");
  drop.onclick = () => $("file").click();
  drop.onkeydown = (event) => {
    if (event.key === "Enter" && event.target === drop) $("file").click();
  };
  $("file").onclick = (event) => event.stopPropagation();
  $("file").onchange = () => $("file").files[0] && offer($("file").files[0]);
  $("undrop").onclick = undrop;
  for (const name of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files[0]) offer(event.dataTransfer.files[0]);
    });
  }
}

function onKey(event) {
  if (camera.keyDown(event)) return event.preventDefault();
  if (event.target.closest("input, textarea, button, summary, a, [role=button]") || event.ctrlKey || event.metaKey) return;
  const keys = {
    " ": () => !$("pause").disabled && togglePause(),
    m: () => setMuted(!video.muted),
    l: () => player.goLive(1),
    f: () => $("full").click(),
    n: begin,
    "/": () => $("prompt").focus(),
  };
  const act = keys[event.key.toLowerCase()];
  if (act) {
    event.preventDefault();
    act();
  }
}

function draw() {
  sound.draw();
  timeline.draw({ playhead: video.currentTime, edge: page.edge, bufferEnd: player.end_s });
  requestAnimationFrame(draw);
}

async function join() {
  const id = new URL(location.href).searchParams.get("stream");
  if (!id) return;
  const stream = await attempt(() => ask("GET", `/v1/streams/${id}`));
  if (!stream) return forget();
  $("prompt").value = stream.prompt;
  $("seed").value = stream.seed;
  watch(stream);
}

takeToken();
wire();
requestAnimationFrame(draw);
if (await meetServer()) {
  await join();
  refresh();
}
setInterval(refresh, 2000);
setInterval(() => {
  player.stepOverGaps();
  report();
  showFigures();
}, 500);
