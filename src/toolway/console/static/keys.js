/* The keys of the file: who has one, what it may do, when it was used; adding, rotating, revoking. */

import { useState } from "preact/hooks";
import { at, changeKey, get, remove } from "./api.js";
import { Ago, announce, Code, Dialog, Empty, Heading, html, plural, Text, useLoaded, visible, Wrong } from "./ui.js";
import { SchemaForm } from "./schema-form.js";

export default function Keys({ names }) {
  return names[0] === "add" ? html`<${Add} key="add" />` : html`<${List} />`;
}

const EVERY = 5000; /* when a key was used is told by nobody */

/* the secret that is shown once; it stays while the session changes */
let shown = null;

function List() {
  const { value, error, reload } = useLoaded(() => get("keys"), [], EVERY);
  const [secret, setSecret] = useState(shown);
  const [asking, setAsking] = useState(null);
  const [failure, setFailure] = useState(null);
  const act = async () => {
    const { name, what } = asking;
    setAsking(null);
    setFailure(null);
    try {
      if (what === "revoke") {
        await remove(`keys/${at(name)}`);
        announce(`${name} is revoked`);
      } else {
        shown = await changeKey(`keys/${at(name)}/rotate`);
        setSecret(shown);
      }
    } catch (refusal) {
      setFailure(refusal);
    }
    reload();
  };
  const close = () => { shown = null; setSecret(null); };
  return html`<div class="page">
    <${Heading} title="Keys">${value?.may_edit && html`<a class="button primary" href="#/keys/add">Add a key</a>`}<//>
    <${Wrong} error=${failure ?? error} />
    ${value && html`<section class="card" aria-label="Keys">
      ${value.keys.length === 0 ? html`<${Empty}>${value.is_open ? "There are no keys: who can reach Toolway may use it." : "There are no keys in the file."}<//>`
        : html`<div class="scroll"><table><thead><tr><th>Key</th><th class="narrow-off">May ask</th><th class="narrow-off">Limits</th><th>Valid</th><th class="right narrow-off">Last used</th>
          ${value.may_edit && html`<th><span class="hidden">Change</span></th>`}</tr></thead>
        <tbody>${value.keys.map((key) => html`<tr key=${key.name}>
          <td class="name"><strong><${Text}>${key.name}<//></strong>${key.group && html` <span class="tag">group <${Text}>${key.group}<//></span>`}</td>
          <td class="narrow-off small soft">${key.routes ? visible(key.routes.join(", ") || "nothing") : "all but the console"}</td>
          <td class="narrow-off small soft">${[...limits(key), ...limits(value.groups[key.group] ?? {}).map((one) => `group: ${one}`)].map((one) => html`<div key=${one}><${Text}>${one}<//></div>`)}</td>
          <td class="nowrap ${key.state.startsWith("expired") ? "bad" : "soft"}">${key.state === "valid" ? "without end" : key.state}</td>
          <td class="right narrow-off nowrap">${key.used_at ? html`<${Ago} at=${key.used_at} />` : html`<span class="soft">never</span>`}</td>
          ${value.may_edit && html`<td class="right"><span class="row tight still end">
            <button type="button" class="compact" aria-label=${`Rotate ${visible(key.name)}`} onClick=${() => setAsking({ name: key.name, what: "rotate" })}>Rotate</button>
            <button type="button" class="compact danger" aria-label=${`Revoke ${visible(key.name)}`} onClick=${() => setAsking({ name: key.name, what: "revoke" })}>Revoke</button></span></td>`}
        </tr>`)}</tbody></table></div>`}
    </section>
    <p class="soft small">The file <${Text} class="mono">${value.file}<//> keeps the digest of each, never the key.
      ${value.of_environment > 0 && ` ${plural(value.of_environment, "key")} more in TOOLWAY_API_KEYS, which may use everything but the console.`}
      ${!value.may_edit && " TOOLWAY_CONSOLE_EDIT=false: they are not changed here."}</p>`}
    <${Dialog} title=${secret ? `The key of ${visible(secret.name)}` : ""} open=${secret !== null} onClose=${close}>
      <p>It is shown only now. Give it to its owner, and keep it like a password.</p>
      <${Code} text=${secret?.key} what="the key" />
      <div class="row"><button type="button" class="primary" onClick=${close}>Done</button></div><//>
    <${Dialog} title=${asking ? `${asking.what === "revoke" ? "Revoke" : "Rotate"} ${visible(asking.name)}?` : ""} open=${asking !== null} onClose=${() => setAsking(null)}>
      <p>${asking?.what === "revoke" ? "It opens nothing any more, at once; who has it is refused." : "It gets another secret; the one that its owner has opens nothing any more, at once."}</p>
      <div class="row"><button type="button" class=${asking?.what === "revoke" ? "danger" : "primary"} onClick=${act}>${asking?.what === "revoke" ? "Revoke" : "Rotate"}</button>
        <button type="button" onClick=${() => setAsking(null)}>Keep</button></div><//>
  </div>`;
}

const LIMITS = { tools: "tools", exclude: "not", models: "models", requests: "requests", tool_calls: "calls", concurrent_requests: "requests at once",
  concurrent_tool_calls: "calls at once", tokens_per_day: "tokens a day", max_rounds: "rounds", max_calls: "calls in a request", max_seconds: "seconds of tools", tool_search: "search of tools" };
const limits = (key) => Object.entries(LIMITS).filter(([name]) => key[name] !== undefined)
  .map(([name, said]) => `${said}: ${[key[name]].flat().join(", ") || "none"}`);

const OWN = ["group", "expires", "routes"];

function Add() {
  const { value, error } = useLoaded(() => get("keys"));
  const [name, setName] = useState("");
  const [rights, setRights] = useState({});
  const [chosen, setChosen] = useState(null);
  const [failure, setFailure] = useState(null);
  const [busy, setBusy] = useState(false);
  if (!value) return html`<div class="page"><${Heading} title="Add a key" /><${Wrong} error=${error} /></div>`;
  const { properties } = value.schema;
  const every = properties.routes.items.enum;
  const usual = every.filter((route) => value.is_open || route !== "console");
  const routes = chosen ?? usual;
  const set = (key) => (event) => setRights({ ...rights, [key]: event.target.value || undefined });
  const save = async (event) => {
    event.preventDefault();
    setBusy(true);
    setFailure(null);
    try {
      const isUsual = routes.length === every.length - 1 && !routes.includes("console");
      shown = await changeKey("keys", { name: name.trim(), rights: isUsual ? rights : { ...rights, routes } });
      location.hash = "#/keys";
    } catch (refusal) {
      setFailure(refusal);
      setBusy(false);
    }
  };
  const rest = Object.fromEntries(Object.entries(properties).filter(([key]) => !OWN.includes(key)));
  return html`<div class="page narrow">
    <p class="small"><a href="#/keys">Keys</a></p>
    <${Heading} title="Add a key" />
    <form class="card" onSubmit=${save}><div class="body column">
      <${Wrong} error=${failure} />
      ${value.is_open && html`<p class="notice warn">It is the first key: from now on nobody gets in without one, also not to this console, which it therefore opens.</p>`}
      <div class="field"><label for="name">Name</label><span class="hint">Who has it; any words.</span>
        <input id="name" required maxlength="100" pattern=".*\\S.*" value=${name} onInput=${(event) => setName(event.target.value)} /></div>
      ${Object.keys(value.groups).length > 0 && html`<div class="field"><label for="group">Group</label><span class="hint">Its rights and quotas hold for the key too.</span>
        <select id="group" value=${rights.group ?? ""} onChange=${set("group")}><option value="">none</option>
          ${Object.keys(value.groups).map((group) => html`<option key=${group} value=${group}>${visible(group)}</option>`)}</select></div>`}
      <div class="field"><label for="expires">Last day</label><span class="hint">Left empty, it is valid without end.</span>
        <input id="expires" type="date" min=${new Date().toISOString().slice(0, 10)} value=${rights.expires ?? ""} onInput=${set("expires")} /></div>
      <fieldset class="kinds"><legend>May ask</legend>${every.map((route) => html`<label class="check" key=${route}>
        <input type="checkbox" checked=${routes.includes(route)} onChange=${(event) => setChosen(every.filter((one) => one === route ? event.target.checked : routes.includes(one)))} />${route}</label>`)}</fieldset>
      <details><summary>Tools, models, quotas</summary><${SchemaForm} schema=${{ type: "object", properties: rest, additionalProperties: false }} value=${rights} onChange=${setRights} /></details>
      <div class="row"><button type="submit" class="primary" disabled=${busy}>Make the key</button><a class="button" href="#/keys">Cancel</a></div>
    </div></form>
  </div>`;
}
