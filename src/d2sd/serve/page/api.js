/** The server: its models, and answers as they are made. Failures come as `ApiError`, in words. */

import { keep, kept } from "./storage.js";

const KEY = "d2sd-api-key";
let given = null; // where the browser keeps nothing

/** What went wrong, worded for the reader; `status` is HTTP's, 0 if there was no answer. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.name = "ApiError";
    this.status = status;
  }
}

/** Keeps the API key until the tab is closed. */
export function saveKey(key) {
  given = key;
  keep(KEY, key);
}

/** The models that the server offers. */
export async function listModels() {
  const response = await request("v1/models", {});
  const body = await response.json().catch(() => null);
  if (!Array.isArray(body?.data) || body.data.length === 0) {
    throw new ApiError("The server names no model.");
  }
  return body.data;
}

/** The chunks of an answer, one by one; aborting the signal ends it and frees the server. */
export async function* streamChat(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    body: JSON.stringify(body),
    signal,
  });
  let finished = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = chunkOf(data);
    finished ||= Boolean(chunk.choices?.[0]?.finish_reason);
    yield chunk;
  }
  if (!finished) throw new ApiError("The connection ended before the answer did.");
}

async function request(path, options) {
  const key = given ?? kept(KEY);
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is “d2sd serve” still running?");
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

/** The error of an answer that is none. */
export async function failureOf(response) {
  const body = await response.json().catch(() => null);
  const said = body?.error?.message;
  const status = response.status;
  if (status === 429) {
    const wait = secondsToWait(response.headers.get("Retry-After"));
    const when = wait === null ? "in a moment" : `in ${wait} ${wait === 1 ? "second" : "seconds"}`;
    return new ApiError(`The server is busy${said ? ` (${said})` : ""}. Try again ${when}.`, 429);
  }
  if (!said) return new ApiError(`The server answered ${status} ${response.statusText}.`, status);
  return new ApiError(sentence(said), status);
}

/** The server's words with a capital and a full stop. */
const sentence = (words) =>
  words.charAt(0).toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) ? "" : ".");

/** Seconds of a Retry-After header, which may also be a date; null if it says nothing. */
export function secondsToWait(header, now = Date.now()) {
  if (!header) return null;
  const seconds = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - now) / 1000;
  return Number.isFinite(seconds) ? Math.max(1, Math.ceil(seconds)) : null;
}

function chunkOf(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new ApiError("The server sent something that is not JSON.");
  }
  if (chunk.error) throw new ApiError(sentence(chunk.error.message ?? "the server failed"));
  return chunk;
}

/** The data of every server-sent event of a body. */
async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      const text = done ? `${decoder.decode()}\n\n` : decoder.decode(value, { stream: true });
      yield* parser.feed(text);
      if (done) return;
    }
  } catch (error) {
    if (error instanceof TypeError) {
      throw new ApiError("The connection broke before the answer was complete.");
    }
    throw error;
  } finally {
    reader.cancel().catch(() => {}); // what is left is of no interest
  }
}

/** Server-sent events from text that comes in pieces, cut anywhere. */
export class EventParser {
  #rest = "";
  #data = [];

  /** The data of the events that `text` completes. */
  feed(text) {
    const complete = [];
    const all = this.#rest + text;
    const held = all.endsWith("\r") ? 1 : 0; // its \n may be in the next piece
    const lines = all.slice(0, all.length - held).split(/\r\n|\r|\n/);
    this.#rest = lines.pop() + all.slice(all.length - held);
    for (const line of lines) {
      if (line.startsWith("data:")) this.#data.push(line.slice(5).replace(/^ /, ""));
      else if (line === "" && this.#data.length > 0) complete.push(this.#data.splice(0).join("\n"));
    }
    return complete;
  }
}
