/* The frame: who may come in, the pages, which one is shown. */

import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { signal } from "@preact/signals";
import { loadSession, offline, session, signIn, signOut } from "./api.js";
import { waiting, watchApprovals } from "./waiting.js";
import { announced, html, Icon, loading, Wrong } from "./ui.js";

const PAGES = [
  ["", "overview", "Overview", () => import("./overview.js")],
  ["conversations", "conversations", "Conversations", () => import("./conversations.js")],
  ["servers", "servers", "Servers", () => import("./servers.js")],
  ["tools", "tools", "Tools", () => import("./tools.js")],
  ["playground", "playground", "Playground", () => import("./playground.js")],
  ["approvals", "approvals", "Approvals", () => import("./approvals.js")],
  ["keys", "keys", "Keys", () => import("./keys.js")],
  ["audit", "audit", "Audit", () => import("./audit.js")],
];
const ON_PHONE = ["overview", "conversations", "playground", "approvals"]; /* the others come with one press more */

const theme = signal(localStorage.getItem("toolway-theme") ?? "auto");
theme.subscribe((value) => {
  localStorage.setItem("toolway-theme", value);
  if (value === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = value;
});

const here = signal(parse());
addEventListener("hashchange", () => { here.value = parse(); });

function parse() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { names: path.split("/").map(decodeURIComponent), query: new URLSearchParams(query) };
}

function Theme() {
  const next = { auto: "light", light: "dark", dark: "auto" }[theme.value];
  return html`<button type="button" class="quiet compact" onClick=${() => { theme.value = next; }}
    aria-label=${`Colours: ${theme.value}. Change to ${next}`} title=${`Colours: ${theme.value}`}>
    <${Icon} name="theme" /></button>`;
}

function Nav({ name }) {
  const [open, setOpen] = useState(false);
  useEffect(() => setOpen(false), [name]);
  return html`<nav class=${`nav ${open ? "is-open" : ""}`} aria-label="Pages"><ul>
    ${PAGES.map(([path, key, title]) => html`<li key=${key} class=${ON_PHONE.includes(key) ? "" : "second"}><a href=${`#/${path}`}
      aria-current=${path === name ? "page" : undefined}><${Icon} name=${key} />${title}
      ${key === "approvals" && waiting.value > 0 && html`<span class="count" aria-label=${`${waiting.value} wait`}>${waiting.value}</span>`}</a></li>`)}
    <li class="more"><button type="button" aria-expanded=${String(open)} onClick=${() => setOpen(!open)}><${Icon} name="more" />${open ? "Less" : "More"}</button></li>
  </ul></nav>`;
}

function Frame() {
  const [page, setPage] = useState(null);
  const { names, query } = here.value;
  const [name, id, , load] = PAGES.find(([path]) => path === names[0]) ?? PAGES[0];
  useEffect(() => {
    let wanted = true;
    load().then((module) => wanted && setPage({ id, component: module.default }));
    return () => { wanted = false; };
  }, [id]);
  useEffect(watchApprovals, []);
  const rest = names.slice(1).join("/");
  useEffect(() => {
    scrollTo(0, 0);
    if (page && document.activeElement?.closest("nav") === null) document.querySelector("h1")?.focus();
  }, [id, rest]);
  return html`<div class="shell">
    <a class="skip" href="#main" onClick=${(event) => {
      event.preventDefault();
      document.getElementById("main").focus();
    }}>Skip to the page</a>
    <header class="side">
      <a class="brand" href="#/"><img src="console/icon.svg" alt="" /> Toolway</a>
      <${Nav} name=${name} />
      <div class="foot row">
        <${Theme} />
        ${session.value.can_sign_in && html`<button type="button" class="quiet compact" onClick=${signOut}>Sign out</button>`}
      </div>
    </header>
    <main id="main" tabindex="-1">
      ${page?.id === id ? html`<${page.component} key=${id} names=${names.slice(1)} query=${query} />` : null}
      ${(page?.id !== id || loading.value > 0) && html`<p class="loading soft" role="status">Loading…</p>`}
    </main>
    ${offline.value && html`<div class="offline" role="status">No connection to Toolway; trying again</div>`}
    <div class="hidden" role="status" aria-live="polite">${announced.value}</div>
  </div>`;
}

function SignIn() {
  const [key, setKey] = useState("");
  const [error, setError] = useState(null);
  const submit = async (event) => {
    event.preventDefault();
    try {
      await signIn(key);
    } catch (refusal) {
      setError(refusal);
    }
  };
  return html`<main class="sign-in"><div class="card">
    ${session.value.can_sign_in ? html`<form onSubmit=${submit}>
      <h1 class="row"><img src="console/icon.svg" alt="" width="28" height="28" /> Toolway</h1>
      <${Wrong} error=${error} />
      <input class="hidden" type="text" autocomplete="username" value="console" tabindex="-1" aria-hidden="true" readonly />
      <div class="field"><label for="key">Key of the console</label>
        <input id="key" type="password" autocomplete="current-password" required value=${key}
          onInput=${(event) => setKey(event.target.value)} /></div>
      <button class="primary" type="submit">Sign in</button>
    </form>` : html`<h1>The console is closed</h1><p class="soft">${session.value.reason}</p>`}
  </div></main>`;
}

const App = () => session.value === null ? null : session.value.is_in ? html`<${Frame} />` : html`<${SignIn} />`;

loadSession().catch((error) => {
  session.value = { is_in: false, can_sign_in: false, reason: error.message };
}).finally(() => render(html`<${App} />`, document.getElementById("app")));
