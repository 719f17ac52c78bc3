/* The tools: all of them, and one with its schema, what the model sees, and a form to try it. */

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { at, follow, get, open } from "./api.js";
import { Card, Code, count, Empty, Heading, html, Panel, plural, seconds, State, Tabs, Text, useLoaded, visible, Wrong } from "./ui.js";
import { Progress } from "./conversation.js";
import { Json, SchemaForm, startValue } from "./schema-form.js";
import { first } from "./servers.js";

export default function Tools({ names, query }) {
  return names[0] ? html`<${Tool} name=${names[0]} key=${names[0]} />` : html`<${List} query=${query} />`;
}

function List({ query }) {
  const { value, error, reload } = useLoaded(() => get("tools"));
  const [text, setText] = useState(query.get("text") ?? "");
  const [order, setOrder] = useState(query.get("order") ?? "name");
  useEffect(() => {
    let due = 0;
    const stop = follow("state", () => { clearTimeout(due); due = setTimeout(reload, 200); });
    return () => { clearTimeout(due); stop(); };
  }, []);
  const shown = useMemo(() => {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const found = (value?.tools ?? []).filter((tool) => {
      const all = `${tool.name} ${tool.server} ${tool.description}`.toLowerCase();
      return words.every((word) => all.includes(word));
    });
    return order === "tokens" ? found.sort((one, other) => other.tokens - one.tokens) : found;
  }, [value, text, order]);
  return html`<div class="page">
    <${Heading} title="Tools">
      <input type="search" aria-label="Find tools by name, server or description" placeholder="Name, server, description" value=${text}
        onInput=${(event) => setText(event.target.value)} />
      <select aria-label="Order" value=${order} onChange=${(event) => setOrder(event.target.value)}>
        <option value="name">by name</option><option value="tokens">by tokens</option></select>
    <//>
    <${Wrong} error=${error} />
    ${value && html`<p class="soft">${plural(value.tools.length, "tool")}; their definitions take about ${count(value.tokens)} tokens of each request,
      written as ${value.target} takes them.</p>
    <section class="card" aria-label="Tools">${shown.length === 0 ? html`<${Empty}>${value.tools.length ? "Nothing found." : html`No tools. <a href="#/servers">Servers</a> bring them.`}<//>`
      : html`<div class="scroll"><table><thead><tr><th>Tool</th><th class="narrow-off">Server</th><th>What it does</th><th class="number">Tokens</th></tr></thead>
      <tbody>${shown.map((tool) => html`<tr class="go" key=${tool.name}>
        <td class="name"><a class="whole mono" href=${`#/tools/${at(tool.name)}`}><${Text}>${tool.name}<//></a></td>
        <td class="narrow-off soft name"><${Text}>${tool.server}<//></td>
        <td class="small long"><${Text} class="soft">${first(tool.description)}<//>${tool.reason && html` <span class="tag warn" title=${visible(tool.reason)}>${
          tool.reason === "its server is away" ? "away" : "left out"}</span>`}</td>
        <td class="number">${tool.is_offered ? count(tool.tokens) : "–"}</td></tr>`)}</tbody></table></div>`}
    </section>`}
  </div>`;
}

function Tool({ name }) {
  const { value: tool, error } = useLoaded(() => get(`tools/${at(name)}`), [name]);
  const [tab, setTab] = useState("try");
  if (!tool) return html`<div class="page"><p class="small"><a href="#/tools">Tools</a></p><${Heading} title=${name} /><${Wrong} error=${error} /></div>`;
  return html`<div class="page">
    <p class="small"><a href="#/tools">Tools</a></p>
    <${Heading} title=${name} state=${html`<${State} of=${tool.is_offered ? "ready" : "failed"} word=${tool.is_offered ? "offered" : "not offered"} />`}>
      <a class="button" href=${`#/conversations?tool=${encodeURIComponent(name)}`}>Its calls</a><//>
    ${tool.reason && html`<div class="notice warn"><${Text}>${tool.reason}<//></div>`}
    <div class="description"><${Text}>${tool.description || "It has no description."}<//></div>
    <dl class="facts line">
      <div><dt>Server</dt><dd><a href=${`#/servers/${at(tool.server)}`}><${Text}>${tool.server}<//></a></dd></div>
      ${tool.original_name !== name && html`<div><dt>Its server calls it</dt><dd class="mono"><${Text}>${tool.original_name}<//></dd></div>`}
      <div><dt>Takes</dt><dd>${count(tool.tokens)} tokens of each request</dd></div>
      <div><dt>Time</dt><dd>${count(tool.timeout)} s at most</dd></div>
      ${tool.keys && html`<div><dt>Keys of the file that may use it</dt><dd>${tool.keys.length ? visible(tool.keys.join(", ")) : "none"}</dd></div>`}
    </dl>
    <section class="card" aria-label="Tool">
      <${Tabs} label="Tool" tabs=${[["try", "Try it"], ["schema", "Arguments"], ["model", "What the model sees"]]} chosen=${tab} onChoose=${setTab} />
      <${Panel} name=${tab} class="body">
        ${tab === "try" && html`<${Try} tool=${tool} name=${name} />`}
        ${tab === "schema" && html`<${Schema} schema=${tool.schema} />`}
        ${tab === "model" && (tool.definition ? html`<p class="soft">As ${tool.target} takes it, ${count(tool.tokens)} tokens.</p>
          <${Code} text=${JSON.stringify(tool.definition, null, 2)} what="the definition" />` : html`<p class="soft">Nothing: it is left out.</p>`)}
      <//>
    </section>
  </div>`;
}

function Try({ tool, name }) {
  const [value, setValue] = useState(() => startValue(tool.schema) ?? {});
  const [asJson, setAsJson] = useState(false);
  const [unread, setUnread] = useState(false);
  const [result, setResult] = useState(null);
  const [error, setError] = useState(null);
  const running = useRef(null);
  const [busy, setBusy] = useState(false);
  const [progress, setProgress] = useState(null);
  useEffect(() => () => running.current?.abort(), []);
  const run = async (event) => {
    event?.preventDefault();
    if (unread) return;
    running.current = new AbortController();
    setBusy(true);
    setError(null);
    setProgress(null);
    const watch = crypto.getRandomValues(new Uint32Array(4)).join("-");
    const leave = follow(`call:${watch}`, setProgress);
    try {
      const response = await open("POST", `tools/${at(name)}/call`, { arguments: value ?? {}, watch }, running.current.signal);
      setResult(await response.json());
    } catch (refusal) {
      if (refusal.name !== "AbortError") setError(refusal);
    }
    leave();
    setBusy(false);
  };
  const press = (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(event); };
  return html`<form class="column" onSubmit=${run} onKeyDown=${press}>
    <div class="row"><button type="button" class="quiet compact" aria-pressed=${String(asJson)} onClick=${() => { setUnread(false); setAsJson(!asJson); }}>${asJson ? "As a form" : "As JSON"}</button></div>
    ${asJson ? html`<${Json} common=${{ "aria-label": "Arguments" }} rows=${10} value=${value} onChange=${(changed, wrong) => { setUnread(Boolean(wrong)); if (!wrong) setValue(changed ?? {}); }} />`
      : html`<${SchemaForm} schema=${tool.schema} value=${value} onChange=${setValue} />`}
    <div class="row"><button type="submit" class="primary" disabled=${busy || unread}>${busy ? "Running…" : "Run"}</button>
      ${busy && html`<button type="button" onClick=${() => running.current.abort()}>Stop</button>`}
      ${busy && progress && html`<${Progress} progress=${progress} />`}</div>
    <${Wrong} error=${error} />
    ${result && html`<${Result} result=${result} />`}
  </form>`;
}

const BASE64 = /^[A-Za-z0-9+/=\s]+$/;

export function Result({ result }) {
  let parsed;
  try {
    parsed = result.structured ?? JSON.parse(result.text);
  } catch {
    parsed = undefined;
  }
  const isTree = parsed !== null && typeof parsed === "object";
  const [wanted, setWanted] = useState(isTree ? "tree" : "text");
  const shown = wanted === "tree" && !isTree ? "text" : wanted;
  return html`<section class="column" aria-label="Result" aria-live="polite">
    <div class="row"><${State} of=${result.is_error ? "error" : "done"} word=${result.is_error ? "failed" : "done"} />
      <span class="soft small">in ${seconds(result.seconds)}, ${count(result.text.length)} characters</span>
      ${isTree && html`<button type="button" class="quiet compact" onClick=${() => setWanted(shown === "tree" ? "text" : "tree")}>${shown === "tree" ? "As text" : "As a tree"}</button>`}</div>
    ${result.images.map((image, index) => /^image\/[\w.+-]+$/.test(image.media_type) && BASE64.test(image.data)
      ? html`<img key=${index} class="image" alt=${`picture ${index + 1} of the result`} src=${`data:${image.media_type};base64,${image.data}`} />` : null)}
    ${result.audio.map((audio, index) => /^audio\/[\w.+-]+$/.test(audio.media_type) && BASE64.test(audio.data)
      ? html`<audio key=${index} controls aria-label=${`sound ${index + 1} of the result`} src=${`data:${audio.media_type};base64,${audio.data}`}></audio>` : null)}
    ${shown === "tree" ? html`<div class="tree"><${Tree} value=${parsed} /></div>` : html`<${Code} text=${result.text} what="the result" />`}
  </section>`;
}

function Tree({ value, name }) {
  const label = name === undefined ? null : html`<span class="key"><${Text}>${name}<//></span> `;
  if (value === null || typeof value !== "object") {
    return html`<div class="leaf">${label}<span class=${`is-${value === null ? "null" : typeof value}`}><${Text}>${typeof value === "string" ? JSON.stringify(value) : String(value)}<//></span></div>`;
  }
  const entries = Object.entries(value);
  const [all, setAll] = useState(false);
  const shown = all ? entries : entries.slice(0, 100);
  return html`<details open=${name === undefined || entries.length <= 12}><summary>${label}<span class="soft">${
    Array.isArray(value) ? `[${entries.length}]` : `{${entries.length}}`}</span></summary>
    <div class="inner">${shown.map(([key, one]) => html`<${Tree} key=${key} name=${key} value=${one} />`)}
      ${shown.length < entries.length && html`<button type="button" class="link" onClick=${() => setAll(true)}>${count(entries.length - shown.length)} more</button>`}</div></details>`;
}

/* a schema as a person reads it */
function Schema({ schema }) {
  const [asJson, setAsJson] = useState(false);
  return html`<div class="column">
    <div class="row"><button type="button" class="quiet compact" onClick=${() => setAsJson(!asJson)}>${asJson ? "In words" : "As JSON"}</button></div>
    ${asJson ? html`<${Code} text=${JSON.stringify(schema, null, 2)} what="the schema" />` : html`<${Properties} schema=${schema} root=${schema} depth=${0} />`}
  </div>`;
}

const refOf = (schema, root) => typeof schema?.$ref === "string" && schema.$ref.startsWith("#/")
  ? schema.$ref.slice(2).split("/").reduce((found, key) => found?.[key], root) ?? {} : schema ?? {};

function typeOf(schema, root) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.enum) return `one of ${schema.enum.slice(0, 12).map((one) => JSON.stringify(one)).join(", ")}${schema.enum.length > 12 ? " …" : ""}`;
  if ("const" in schema) return `always ${JSON.stringify(schema.const)}`;
  const variants = schema.anyOf ?? schema.oneOf;
  if (Array.isArray(variants)) return variants.map((one) => typeOf(one ?? {}, root)).join(" or ");
  const type = [schema.type ?? "anything"].flat().join(" or ");
  return type === "array" ? `list of ${typeOf(refOf(schema.items, root), root)}` : `${type}${schema.format ? ` (${schema.format})` : ""}`;
}

const BOUNDS = { minimum: "at least", maximum: "at most", exclusiveMinimum: "above", exclusiveMaximum: "below", minLength: "characters, at least",
  maxLength: "characters, at most", minItems: "items, at least", maxItems: "items, at most", pattern: "matches", default: "default" };

function Properties({ schema, root, depth }) {
  const required = new Set(schema.required ?? []);
  const names = Object.keys(schema.properties ?? {});
  if (names.length === 0) return depth ? null : html`<p class="soft">It takes no arguments.</p>`;
  return html`<dl class="schema">${names.map((name) => {
    const one = refOf(schema.properties[name], root);
    const inner = one.type === "array" ? refOf(one.items, root) : one;
    return html`<div key=${name}><dt><span class="mono"><${Text}>${name}<//></span> <span class="soft small"><${Text}>${typeOf(schema.properties[name] ?? {}, root)}<//></span>
        ${required.has(name) && html` <span class="tag accent">required</span>`}</dt>
      <dd>${one.description && html`<p><${Text}>${one.description}<//></p>`}
        ${Object.entries(BOUNDS).filter(([key]) => key in one).map(([key, said]) => html`<span class="soft small bound" key=${key}><${Text}>${said} ${JSON.stringify(one[key])}<//></span>`)}
        ${depth < 5 && html`<${Properties} schema=${inner} root=${root} depth=${depth + 1} />`}</dd></div>`;
  })}</dl>`;
}
