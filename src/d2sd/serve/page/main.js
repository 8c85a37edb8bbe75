/** Wires the page: the settings and a question go to the server, what comes back to the views. */

import { listModels, streamChat } from "./api.js";
import { Conversation } from "./chat.js";
import { byId } from "./dom.js";
import { Figures } from "./figures.js";
import { isAsking, wireKeyDialog, withKey } from "./key.js";
import { Legend } from "./legend.js";
import { Settings } from "./settings.js";
import { Steps } from "./steps.js";
import { showTree } from "./tree.js";

const legend = new Legend(byId("legend"));
const settings = new Settings(() => figures.setPlainRate(settings.plainRate));
const steps = new Steps(showStep, showFollowing);
const figures = new Figures((index) => steps.pinIndex(index));
const conversation = new Conversation(byId("conversation"), steps);
const question = byId("question");
let shown = null; // the answer that has a step marked
let running = null; // the AbortController of the answer that is being made

function showStep(exchange, index) {
  if (shown && shown !== exchange) shown.light(null);
  shown = exchange;
  exchange?.light(index);
  const count = exchange?.steps.length ?? 0;
  byId("step-number").textContent = count ? `${index + 1} of ${count}` : "–";
  byId("previous").disabled = !count || index <= 0;
  byId("next").disabled = !count || index >= count - 1;
  showTree(byId("tree"), byId("step-words"), exchange?.steps[index]);
  figures.show(exchange, index);
}

function showFollowing(following) {
  byId("follow").setAttribute("aria-pressed", String(following));
}

const say = (words) => {
  byId("status").textContent = words;
};

function setRunning(controller) {
  running = controller;
  byId("send").hidden = Boolean(controller);
  byId("stop").hidden = !controller;
}

async function loadModels() {
  settings.load(await withKey(listModels));
  figures.setPlainRate(settings.plainRate);
}

async function start() {
  try {
    await loadModels();
    say("Ready.");
  } catch (error) {
    say(error.message);
  }
}

/** Whether a question can be sent now; if not, the reader is told why. */
function isReady() {
  if (running) say("Still answering: Esc or Stop ends it.");
  return !running && settings.check();
}

async function send(text) {
  const controller = new AbortController();
  setRunning(controller);
  byId("welcome").hidden = true;
  const exchange = conversation.begin(text);
  steps.begin(exchange);
  await answer(exchange, controller);
  if (running !== controller) return; // a new chat has begun meanwhile
  const hadFocus = document.activeElement === byId("stop");
  setRunning(null);
  if (hadFocus) question.focus();
}

/** Streams the answer into its exchange; whatever happens, the exchange says how it ended. */
async function answer(exchange, controller) {
  try {
    say("Waiting for the server …");
    if (!settings.loaded) await loadModels();
    await withKey(() => receive(exchange, controller.signal));
    exchange.close(summary(exchange));
    settings.noteRate(exchange.request, exchange.steps.at(-1)?.tokens_per_second);
    figures.setPlainRate(settings.plainRate);
    say(`Done: ${counted(exchange)}.`);
  } catch (error) {
    if (controller.signal.aborted) {
      exchange.close("stopped");
      say("Stopped.");
    } else {
      exchange.fail(error.message, () => sendAgain(exchange));
      say("");
      if (error.name !== "ApiError") console.error(error);
    }
  }
  conversation.keepInSight();
}

async function receive(exchange, signal) {
  exchange.request = settings.request(conversation.messages());
  for await (const chunk of streamChat(exchange.request, signal)) {
    signal.throwIfAborted();
    if (!exchange.text) say("Answering …");
    legend.reveal(exchange.append(chunk));
    if (exchange.steps.length) steps.advance(exchange);
    conversation.keepInSight();
  }
}

/** How long an answer became. */
function counted({ usage, steps: made }) {
  const tokens = usage?.completion_tokens;
  const passes = usage?.steps ?? made.length;
  if (!tokens) return "answered";
  return passes ? `${tokens} tokens in ${passes} steps` : `${tokens} tokens`;
}

/** How an answer ended, in figures. */
function summary(exchange) {
  const { request, usage, steps: made, finishReason } = exchange;
  const parts = request.policy ? [`policy ${request.policy}`] : [];
  parts.push(counted(exchange));
  const length = usage?.acceptance_length ?? made.at(-1)?.acceptance_length;
  if (length) parts.push(`acceptance length ${length.toFixed(2)}`);
  const rate = made.at(-1)?.tokens_per_second;
  if (rate) parts.push(`${rate.toFixed(1)} tokens per second`);
  if (finishReason === "length") parts.push("cut at max tokens");
  return parts.join(", ");
}

function sendAgain(exchange) {
  if (!isReady()) return;
  conversation.remove(exchange);
  steps.forget(exchange);
  question.focus();
  send(exchange.question);
}

function newChat() {
  running?.abort();
  setRunning(null);
  conversation.clear();
  steps.forget();
  byId("welcome").hidden = false;
  say("");
  question.focus();
}

function ask() {
  const text = question.value.trim();
  if (!text || !isReady()) return;
  question.value = "";
  send(text);
}

function onQuestionKey(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask();
}

function onKey(event) {
  if (event.key === "Escape" && running && !isAsking()) {
    event.preventDefault();
    running.abort();
  }
}

function wire() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  question.addEventListener("keydown", onQuestionKey);
  document.addEventListener("keydown", onKey);
  byId("stop").addEventListener("click", () => running?.abort());
  byId("new-chat").addEventListener("click", newChat);
  byId("previous").addEventListener("click", () => steps.walk(-1));
  byId("next").addEventListener("click", () => steps.walk(1));
  byId("follow").addEventListener("click", () => steps.setFollowing(!steps.following));
  for (const example of document.querySelectorAll(".example")) {
    example.addEventListener("click", () => {
      if (!isReady()) return;
      question.focus();
      send(example.textContent);
    });
  }
  wireKeyDialog();
}

wire();
question.focus();
start();
