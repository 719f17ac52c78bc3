/* The tool servers: their states, what became of them, what they write; adding and changing them. */

import { useEffect, useRef, useState } from "preact/hooks";
import { at, follow, get, post, put, remove } from "./api.js";
import { Ago, announce, Card, clock, count, Dialog, Empty, Heading, html, Panel, plural, State, Tabs, Text, useLoaded, visible, Wrong } from "./ui.js";
import { Pins } from "./pins.js";
import { Json, SchemaForm } from "./schema-form.js";

export default function Servers({ names }) {
  if (names[0] === "add") return html`<${Edit} key="add" />`;
  if (names[0] === "file") return html`<${File} key="file" />`;
  if (names[1] === "edit") return html`<${Edit} label=${names[0]} key=${`edit-${names[0]}`} />`;
  return names[0] ? html`<${Server} label=${names[0]} key=${names[0]} />` : html`<${List} />`;
}

function useFollowed(load, again = []) {
  const loaded = useLoaded(load, again);
  useEffect(() => {
    let due = 0;
    const stop = follow("state", () => { clearTimeout(due); due = setTimeout(loaded.reload, 150); });
    return () => { clearTimeout(due); stop(); };
  }, again);
  return loaded;
}

function List() {
  const { value, error } = useFollowed(() => get("servers"));
  return html`<div class="page">
    <${Heading} title="Servers">${value?.may_edit && html`
      <a class="button" href="#/servers/file">Edit the file</a><a class="button primary" href="#/servers/add">Add a server</a>`}<//>
    <${Wrong} error=${error} />
    ${value && html`<section class="card" aria-label="Servers">
      ${value.servers.length === 0 ? html`<${Empty}>No tool servers yet.${value.may_edit && html` <a href="#/servers/add">Add one</a>`}<//>`
        : html`<div class="scroll"><table><thead><tr><th>Server</th><th>State</th><th class="narrow-off">Protocol</th><th class="number">Tools</th><th class="narrow-off">Last trouble</th></tr></thead>
        <tbody>${value.servers.map((server) => html`<tr class="go" key=${server.label}>
          <td class="name"><a class="whole" href=${`#/servers/${at(server.label)}`}><${Text}>${server.label}<//></a></td>
          <td><${State} of=${server.state} /></td>
          <td class="narrow-off soft nowrap"><${Text}>${server.protocol ?? server.kind}<//></td>
          <td class="number">${count(server.tools)}</td>
          <td class="narrow-off small long">${server.error ? html`<${Ago} at=${server.error_at} /> <${Text} class="soft">${server.error}<//>`
            : server.warnings[0] && html`<${Text} class="soft">${server.warnings[0]}<//>`}</td></tr>`)}
        </tbody></table></div>`}
    </section>
    ${value.disabled.length > 0 && html`<p class="soft">Disabled in the file: ${visible(value.disabled.join(", "))}</p>`}`}
  </div>`;
}

function Server({ label }) {
  const gone = useRef(false);
  const { value, error, reload } = useFollowed(() => gone.current ? new Promise(() => {}) : get(`servers/${at(label)}`), [label]);
  const [failure, setFailure] = useState(null);
  const [leaving, setLeaving] = useState(false);
  const [login, setLogin] = useState(null);
  const act = (work, said) => async () => {
    try {
      setFailure(null);
      await work();
      announce(said);
      reload();
    } catch (refusal) {
      setFailure(refusal);
    }
  };
  const ask = act(async () => setLogin((await post(`servers/${at(label)}/login`)).page), "The page of the login is ready");
  const takeOut = act(async () => {
    const file = await get("config");
    gone.current = true;
    try {
      await remove(`config/servers/${at(label)}`, { digest: file.digest });
      location.hash = "#/servers";
    } catch (refusal) {
      gone.current = false;
      throw refusal;
    }
  }, "Removed");
  if (!value) return html`<div class="page"><p class="small"><a href="#/servers">Servers</a></p><${Heading} title=${label} /><${Wrong} error=${error} /></div>`;
  const stopped = value.state === "stopped";
  const warnings = value.warnings.filter((one) => !(value.is_pinned && one.startsWith("not offered, since not pinned"))); /* those are below, to be accepted */
  return html`<div class="page">
    <p class="small"><a href="#/servers">Servers</a></p>
    <${Heading} title=${label} state=${html`<${State} of=${value.state} />`}>
      ${value.can_login && html`<button type="button" class=${value.state === "needs auth" ? "primary" : ""} onClick=${ask}>Log in</button>`}
      <button type="button" onClick=${act(() => post(`servers/${at(label)}/restart`), stopped ? "Started" : "Restarted")}>${stopped ? "Start" : "Restart"}</button>
      ${!stopped && html`<button type="button" onClick=${act(() => post(`servers/${at(label)}/stop`), "Stopped")}>Stop</button>`}
      ${value.is_in_file && html`<a class="button" href=${`#/servers/${at(label)}/edit`}>Edit</a>
        <button type="button" class="danger" onClick=${() => setLeaving(true)}>Remove</button>`}
    <//>
    <${Wrong} error=${failure ?? error} />
    ${login && value.state !== "ready" && (/^https?:\/\//.test(login) ? html`<div class="notice">Allow Toolway to use this server:${" "}
      <a href=${login} target="_blank" rel="noopener noreferrer">open the page of <${Text}>${new URL(login).host}<//></a>. It comes back to this machine.</div>`
      : html`<div class="notice bad">The server names a page that is no web page.</div>`)}
    ${value.error && html`<div class="notice bad"><strong><${Text}>${value.error_stage ?? value.state}<//></strong> <${Ago} at=${value.error_at} />
      <p><${Text}>${value.error}<//></p></div>`}
    ${warnings.length > 0 && html`<div class="notice warn"><ul>${warnings.map((one) => html`<li key=${one}><${Text}>${one}<//></li>`)}</ul></div>`}
    ${value.is_pinned && html`<${Pins} label=${label} again=${value} />`}
    ${value.has_output && html`<${Card} title="Output" id="output"><${Log} label=${label} first=${value.output} /><//>`}
    <div class="grid">
      <${Card} title="History" id="history" flush><div class="scroll"><table><thead class="hidden"><tr><th>When</th><th>State</th><th>Why</th></tr></thead>
        <tbody>${[...value.changes].reverse().map((change, index) => html`<tr key=${value.changes.length - index}>
          <td class="nowrap soft small">${clock(change.at)}</td><td><${State} of=${change.state} /></td>
          <td class="small long">${change.error ? html`<${Text}>${change.stage ? `${change.stage}: ` : ""}${change.error}<//>`
            : change.state === "ready" ? plural(change.tools, "tool") : ""}</td></tr>`)}</tbody></table></div><//>
      <${Card} title=${plural(value.offers.length, "tool")} id="offers" flush>
        ${value.offers.length === 0 ? html`<${Empty}>It has no tools now.<//>` : html`<div class="scroll tall"><table><thead class="hidden"><tr><th>Tool</th><th>Description</th></tr></thead>
        <tbody>${value.offers.map((tool) => html`<tr class="go" key=${tool.name}><td class="name"><a class="whole mono" href=${`#/tools/${at(tool.name)}`}><${Text}>${tool.name}<//></a></td>
          <td class="soft small long"><${Text}>${first(tool.description)}<//></td></tr>`)}</tbody></table></div>`}<//>
    </div>
    <${Dialog} title=${`Remove ${visible(label)}?`} open=${leaving} onClose=${() => setLeaving(false)}>
      <p>Its entry is taken out of the file, and it is stopped.</p>
      <div class="row"><button type="button" class="danger" onClick=${takeOut}>Remove</button><button type="button" onClick=${() => setLeaving(false)}>Keep</button></div><//>
  </div>`;
}

export const first = (text) => (text ?? "").split(/(?<=[.!?])\s|\n/)[0].slice(0, 200);

function Log({ label, first: lines }) {
  const [shown, setShown] = useState(lines);
  const box = useRef(null);
  const atEnd = useRef(true);
  useEffect(() => setShown(lines), [lines]);
  useEffect(() => follow(`log:${label}`, (line) => {
    if (line === null) { get(`servers/${at(label)}`).then((value) => setShown(value.output)); return; }
    setShown((old) => [...old.slice(-499), line]);
  }), [label]);
  useEffect(() => { if (atEnd.current) box.current.scrollTop = box.current.scrollHeight; }, [shown]);
  const scrolled = () => { atEnd.current = box.current.scrollHeight - box.current.scrollTop - box.current.clientHeight < 30; };
  return html`<div class=${`log ${shown.length ? "" : "is-empty"}`} ref=${box} tabindex="0" role="log" aria-live="off" aria-label=${`Output of ${visible(label)}`} onScroll=${scrolled}>
    ${shown.length === 0 ? html`<span class="soft">Nothing yet.</span>` : shown.map((line, index) => html`<div key=${index}><time>${clock(line.at)}</time><${Text}>${line.text}<//></div>`)}</div>`;
}

const KINDS = [["stdio", "A program"], ["http", "An MCP server at a URL"], ["openapi", "An OpenAPI service"]];
const MAIN = { stdio: ["command", "args", "env"], http: ["url", "headers"], openapi: ["url", "spec", "headers"] };

function Edit({ label = "" }) {
  const { value: file, error } = useLoaded(() => get("config"));
  const [name, setName] = useState(label);
  const [kind, setKind] = useState(null);
  const [entry, setEntry] = useState(null);
  const [failure, setFailure] = useState(null);
  const [busy, setBusy] = useState(false);
  const [version, setVersion] = useState(0); /* of the entry, as far as the form changed it */
  const [unread, setUnread] = useState(false);
  const take = (known) => {
    setKind(known.type === "openapi" ? "openapi" : known.url || known.serverUrl || known.httpUrl ? "http" : "stdio");
    setEntry(known);
  };
  useEffect(() => { if (file && !entry) take(file.entries[label] ?? {}); }, [file]);
  const whole = () => {
    const { type, ...rest } = entry;
    return kind === "openapi" ? { type: "openapi", ...rest } : label ? entry : rest;
  };
  const fill = (changed) => { setEntry(changed); setVersion(version + 1); setUnread(false); };
  const read = (changed, wrong) => {
    setUnread(Boolean(wrong));
    if (!wrong && changed && typeof changed === "object" && !Array.isArray(changed)) take(changed);
  };
  const save = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await put(`config/servers/${at(name.trim())}`, { entry: whole(), digest: file.digest, new: !label });
      announce("Saved");
      location.hash = `#/servers/${at(name.trim())}`;
    } catch (refusal) {
      setFailure(refusal);
      setBusy(false);
    }
  };
  const title = label ? `Edit ${label}` : "Add a server";
  if (!file || !entry) return html`<div class="page"><${Heading} title=${title} /><${Wrong} error=${error} /></div>`;
  const properties = file.schema.$defs.server.properties;
  const pick = (keys) => Object.fromEntries(keys.filter((key) => properties[key]).map((key) => [key, properties[key]]));
  const rest = file.kinds[kind].filter((key) => !MAIN[kind].includes(key) && key !== "enabled");
  const part = (keys, required = []) => ({ type: "object", properties: pick(keys), required, $defs: file.schema.$defs, additionalProperties: false });
  const needed = { stdio: ["command"], http: ["url"], openapi: [] }[kind];
  return html`<div class="page">
    <p class="small"><a href="#/servers">Servers</a></p>
    <${Heading} title=${title}><a class="button" href="#/servers/file">Edit the file</a><//>
    <div class="beside"><form class="card" onSubmit=${save}><div class="body column">
      <${Wrong} error=${failure} />
      ${!label && html`<fieldset class="kinds"><legend class="hidden">Kind</legend>${KINDS.map(([key, said]) => html`<label class="check" key=${key}>
        <input type="radio" name="kind" checked=${kind === key} onChange=${() => { setKind(key); setVersion(version + 1); }} />${said}</label>`)}</fieldset>`}
      <div class="field"><label for="name">Name</label><span class="hint">How it is called in lists, logs and the file.</span>
        <input id="name" required pattern=".*\\S.*" value=${name} readonly=${!!label} onInput=${(event) => setName(event.target.value)} /></div>
      <${SchemaForm} key=${kind} schema=${part(MAIN[kind], needed)} value=${entry} onChange=${fill} />
      <details><summary>More</summary><${SchemaForm} key=${kind} schema=${part(rest)} value=${entry} onChange=${fill} /></details>
      <p class="small soft">Values like <code>${"${TOKEN}"}</code> are taken from the environment of Toolway.</p>
      <div class="row"><button type="submit" class="primary" disabled=${busy || unread}>Save</button>
        <a class="button" href=${label ? `#/servers/${at(label)}` : "#/servers"}>Cancel</a></div>
    </div></form>
    <${Card} title="In the file" id="in-file"><p class="small soft"><${Text} class="mono">${file.path}<//></p>
      <${Json} key=${version} common=${{ "aria-label": "The entry as JSON", spellcheck: false }} rows=${14} value=${whole()} onChange=${read} /><//></div>
  </div>`;
}

function File() {
  const { value: file, error, reload } = useLoaded(() => get("config"));
  const [text, setText] = useState(null);
  const [failure, setFailure] = useState(null);
  const area = useRef(null);
  const shown = text ?? file?.text ?? "";
  const save = async () => {
    try {
      await put("config", { text: shown, digest: file.digest });
      setFailure(null);
      announce("Saved");
      await reload();
      setText(null);
    } catch (refusal) {
      setFailure(refusal);
    }
  };
  const go = (line) => {
    const start = shown.split("\n").slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
    area.current.focus();
    area.current.setSelectionRange(start, start + (shown.split("\n")[line - 1] ?? "").length);
  };
  const press = (event) => {
    if (event.key === "s" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); save(); }
  };
  const mistakes = failure?.code === "config_mistakes" ? failure.message.split("\n") : null;
  return html`<div class="page">
    <p class="small"><a href="#/servers">Servers</a></p>
    <${Heading} title="The file of the servers">
      ${failure?.code === "config_changed" && html`<button type="button" onClick=${() => { setText(null); setFailure(null); reload(); }}>Load again</button>`}
      <button type="button" class="primary" disabled=${text === null || text === file?.text} onClick=${save}>Save</button><//>
    ${file && html`<p class="soft"><${Text} class="mono">${file.path}<//>${file.exists ? "" : " (it is made when you save)"}. Comments stay, and what holds a mistake is not saved.</p>`}
    ${mistakes ? html`<div class="notice bad" role="alert"><strong>Not saved.</strong><ul>${mistakes.map((one) => {
      const line = Number(/^line (\d+)/.exec(one)?.[1]);
      return html`<li key=${one}>${line ? html`<button type="button" class="link" onClick=${() => go(line)}><${Text}>${one}<//></button>` : html`<${Text}>${one}<//>`}</li>`;
    })}</ul></div>` : html`<${Wrong} error=${failure ?? error} />`}
    ${file && html`<textarea class="code file" aria-label="Text of the file" ref=${area} spellcheck=${false} rows="28" value=${shown}
      onInput=${(event) => setText(event.target.value)} onKeyDown=${press}></textarea>`}
  </div>`;
}
