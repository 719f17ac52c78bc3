/* The API of the console: requests, the session, and the feed of events. */

import { signal } from "@preact/signals";

const BASE = new URL("./api/", import.meta.url);

export const session = signal(null); /* { is_in, can_sign_in, reason, token } */
export const offline = signal(false);

export class Refused extends Error {
  constructor(status, error) {
    super(error.message || `The server answered ${status}.`);
    this.status = status;
    this.code = error.code;
    this.details = error;
  }
}

export const at = (...names) => names.map(encodeURIComponent).join("/");

/* While a key is made or changed, nothing else is asked: what brought the page in may be over before the answer brings
   the next session. */
let renewed = Promise.resolve();

export async function open(method, path, body, signal) {
  await renewed;
  return accepted(await send(method, path, body, signal));
}

async function send(method, path, body, signal) {
  const headers = { accept: "application/json" };
  if (method !== "GET") headers["x-toolway-console"] = session.value?.token ?? "open";
  if (body !== undefined) headers["content-type"] = "application/json";
  try {
    const response = await fetch(new URL(path, BASE), {
      method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body),
    });
    offline.value = false;
    return response;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    offline.value = true;
    throw new Refused(0, { message: "Toolway does not answer. Does it run?" });
  }
}

async function accepted(response) {
  if (response.ok) return response;
  const refusal = await response.json().catch(() => ({}));
  if (response.status === 401) await loadSession();
  throw new Refused(response.status, refusal.error ?? {});
}

async function ask(method, path, body) {
  const response = await open(method, path, body);
  return response.json();
}

export const get = (path) => ask("GET", path);
export const post = (path, body = {}) => ask("POST", path, body);
export const put = (path, body) => ask("PUT", path, body);
export const remove = (path, body) => ask("DELETE", path, body);

export async function loadSession() {
  session.value = await get("session");
}

export async function changeKey(path, body = {}) {
  const answer = renewed.then(() => send("POST", path, body));
  const key = answer.then(async (response) => {
    if (!response.ok) return null;
    const made = await response.json();
    if (made.token) session.value = { ...session.value, is_in: true, can_sign_in: true, token: made.token };
    return made;
  });
  renewed = key.catch(() => {});
  /* A refusal is read behind that: it may ask for the session. */
  return (await key) ?? accepted(await answer);
}

export async function signIn(key) {
  session.value = await post("session", { key });
}

export async function signOut() {
  await remove("session");
  await loadSession();
}

/* One stream for the whole page. It names the topics that are shown, goes on behind the last event that came, and is
   closed while nobody looks at the page. A topic's handler is called with each value, and with null when events were
   lost: then everything must be loaded anew. */

const handlers = new Map();
let stream = null;
let last = "";
let waiting = 0;
let failures = 0;

export function follow(topic, handler) {
  if (!handlers.has(topic)) handlers.set(topic, new Set());
  handlers.get(topic).add(handler);
  reopen();
  return () => {
    const left = handlers.get(topic);
    left?.delete(handler);
    if (left?.size === 0) handlers.delete(topic);
    reopen();
  };
}

function reopen(delay = 0) {
  clearTimeout(waiting);
  waiting = setTimeout(() => renewed.then(connect), delay);
}

function connect() {
  stream?.close();
  stream = null;
  if (document.hidden || handlers.size === 0 || !session.value?.is_in) return;
  const query = new URLSearchParams({ topics: [...handlers.keys()].join(","), after: last });
  stream = new EventSource(new URL(`events?${query}`, BASE));
  stream.onopen = () => { offline.value = false; failures = 0; };
  stream.onmessage = (event) => {
    last = event.lastEventId || last;
    const [topic, value] = JSON.parse(event.data);
    for (const handler of handlers.get(topic) ?? []) handler(value);
  };
  stream.addEventListener("hello", (event) => { last = event.lastEventId || last; });
  stream.addEventListener("reset", () => {
    for (const all of handlers.values()) for (const handler of all) handler(null);
  });
  stream.onerror = () => {
    stream?.close();
    stream = null;
    offline.value = failures++ > 0;
    reopen(Math.min(500 * 2 ** failures, 10000));
  };
}

document.addEventListener("visibilitychange", () => reopen());
session.subscribe(() => reopen());
