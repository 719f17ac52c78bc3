/* The pieces that all pages are made of. */

import { h } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { signal } from "@preact/signals";
import htm from "htm";

export const html = htm.bind(h);

/* text from elsewhere: what would steer a terminal, hide, or turn the writing around is shown as what it is */
const INVISIBLE = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\ufff9-\ufffb]|[\udb40][\udc00-\udfff]/g;
export const visible = (text) =>
  String(text ?? "").replace(INVISIBLE, (c) => `\u27e8${c.codePointAt(0).toString(16).padStart(4, "0")}\u27e9`);

export const Text = ({ children, class: look }) => html`<bdi class=${look}>${visible([children].flat().join(""))}</bdi>`;

export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
export const count = (number) => Number(number ?? 0).toLocaleString("en");
export const seconds = (value) =>
  value == null ? "" : value < 0.0095 ? `${Math.round(value * 1000)} ms`
    : value < 1 ? `${Math.round(value * 100) * 10} ms`
      : value < 100 ? `${value.toFixed(1)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
export const bytes = (value) =>
  value < 1000 ? `${value} bytes` : value < 1e6 ? `${(value / 1000).toFixed(1)} kB` : `${(value / 1e6).toFixed(1)} MB`;

const now = signal(Date.now());
setInterval(() => { if (!document.hidden) now.value = Date.now(); }, 5000);

export function Ago({ at }) {
  if (at == null) return null;
  const then = new Date(at * 1000);
  const passed = Math.max(0, now.value / 1000 - at);
  const text = passed < 8 ? "now"
    : passed < 60 ? `${Math.floor(passed)} s ago`
      : passed < 3600 ? `${Math.floor(passed / 60)} min ago`
        : passed < 86400 ? `${Math.floor(passed / 3600)} h ago` : then.toLocaleDateString();
  return html`<time class="soft nowrap" dateTime=${then.toISOString()} title=${then.toLocaleString()}>${text}</time>`;
}

export const clock = (at) => new Date(at * 1000).toLocaleTimeString([], { hour12: false });

const PATHS = {
  overview: "M3 12l9-8 9 8M6 10v10h12V10",
  conversations: "M4 5h16v11H9l-5 4z",
  servers: "M4 5h16v5H4zM4 14h16v5H4zM7.5 7.5h.01M7.5 16.5h.01",
  tools: "M14.5 6.5a4 4 0 0 0 3 5L20 14l-4 4-2.500-2.500a4 4 0 0 1-5-5L4 6.500 6.500 4l4 4z",
  playground: "M5 4l14 8-14 8z",
  approvals: "M5 12l5 5L20 6",
  keys: "M8 15a4 4 0 1 1 3.500-6H21v4h-3v3h-4v-3h-2.500A4 4 0 0 1 8 15zM8 11h.01",
  audit: "M6 3h9l4 4v14H6zM9 11h7M9 15h7",
  theme: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
  more: "M4 7h16M4 12h16M4 17h16",
  close: "M6 6l12 12M18 6L6 18",
};
export const Icon = ({ name }) =>
  html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;

const LOOKS = {
  ready: ["is-good", "ready"], starting: ["is-live", "starting"], failed: ["is-bad", "failed"],
  "needs auth": ["is-warn", "needs a login"], stopped: ["", "stopped"],
  running: ["is-live", "running"], done: ["is-good", "done"], error: ["is-bad", "failed"],
  refused: ["is-bad", "refused"], left: ["is-warn", "client left"], waiting: ["is-warn", "waits"],
};
export const State = ({ of, word }) => {
  const [look, said] = LOOKS[of] ?? ["", of];
  return html`<span class=${`state ${look}`}>${word ?? said}</span>`;
};

export const announced = signal("");
export function announce(text) {
  announced.value = "";
  setTimeout(() => { announced.value = text; }, 30);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  announce("Copied");
}

export function Copy({ text, label = "Copy", what = "" }) {
  const [done, setDone] = useState(false);
  const press = async () => {
    await copy(typeof text === "function" ? text() : text);
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return html`<button type="button" class="compact copy" onClick=${press}
    aria-label=${what ? `${label} ${what}` : undefined}>${done ? "Copied" : label}</button>`;
}

export const Code = ({ text, what }) =>
  html`<div class="code"><pre class="block" tabindex="0" role="region" aria-label=${what}>${visible(text)}</pre><${Copy} text=${text} what=${what} /></div>`;

export const Card = ({ title, actions, children, flush, id }) => html`
  <section class="card" aria-labelledby=${id}>
    ${title && html`<header><h2 id=${id}>${title}</h2>${actions && html`<div class="actions row">${actions}</div>`}</header>`}
    ${flush ? children : html`<div class="body">${children}</div>`}
  </section>`;

export const Empty = ({ children }) => html`<p class="empty">${children}</p>`;

export const Wrong = ({ error }) =>
  error ? html`<div class="notice bad" role="alert"><${Text}>${error.message ?? error}<//></div>` : null;

export function Tabs({ tabs, label, chosen, onChoose }) {
  const list = useRef(null);
  const press = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const position = tabs.findIndex(([name]) => name === chosen);
    const next = tabs[(position + step + tabs.length) % tabs.length][0];
    onChoose(next);
    requestAnimationFrame(() => list.current?.querySelector("[aria-selected=true]")?.focus());
  };
  return html`<div class="tabs" role="tablist" aria-label=${label} ref=${list} onKeyDown=${press}>
    ${tabs.map(([name, title]) => html`<button type="button" role="tab" key=${name} id=${`tab-${name}`}
      aria-selected=${String(name === chosen)} tabindex=${name === chosen ? 0 : -1}
      aria-controls=${name === chosen ? `panel-${name}` : undefined} onClick=${() => onChoose(name)}>${title}</button>`)}
  </div>`;
}

export const Panel = ({ name, children, class: look }) =>
  html`<div role="tabpanel" id=${`panel-${name}`} aria-labelledby=${`tab-${name}`} class=${look}>${children}</div>`;

export function Heading({ title, children, state }) {
  const heading = useRef(null);
  useEffect(() => {
    document.title = `${visible(title)} – Toolway`;
    if (document.activeElement === document.body) heading.current?.focus({ preventScroll: true });
  }, [title]);
  return html`<div class="head"><h1 tabindex="-1" ref=${heading}><${Text}>${title}<//></h1>${state}
    <div class="actions">${children}</div></div>`;
}

export function Dialog({ title, open, onClose, children }) {
  const element = useRef(null);
  useEffect(() => {
    if (open && !element.current.open) element.current.showModal();
    if (!open && element.current.open) element.current.close();
  }, [open]);
  return html`<dialog ref=${element} aria-label=${title} onClose=${onClose}>
    ${open && html`<div class="card"><header><h2>${title}</h2><div class="actions">
      <button type="button" class="quiet compact" aria-label="Close" onClick=${onClose}><${Icon} name="close" /></button>
    </div></header><div class="body">${children}</div></div>`}</dialog>`;
}

export const loading = signal(0); /* how many things a page waits for that it cannot do without */
export function useLoading(isLoading) {
  useLayoutEffect(() => { /* gone before what was loaded is painted */
    if (!isLoading) return undefined;
    loading.value++;
    return () => { loading.value--; };
  }, [isLoading]);
}

/* loads a value, again whenever `again` changes and after so many milliseconds; keeps showing the old one meanwhile */
export function useLoaded(load, again = [], every = 0) {
  const [state, setState] = useState({ value: null, error: null });
  const newest = useRef(0);
  const reload = () => {
    const turn = ++newest.current;
    return load().then(
      (value) => turn === newest.current && setState({ value, error: null }),
      (error) => turn === newest.current && setState((old) => ({ value: old.value, error })),
    );
  };
  useEffect(() => { reload(); }, again);
  useEffect(() => {
    if (!every) return undefined;
    const timer = setInterval(() => document.hidden || reload(), every);
    return () => clearInterval(timer);
  }, again);
  useLoading(state.value === null && state.error === null);
  return { ...state, reload };
}
