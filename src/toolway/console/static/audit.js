/* The audit log: who called which tool, what was decided, who changed what; the newest first. */

import { useEffect, useRef, useState } from "preact/hooks";
import { get } from "./api.js";
import { Empty, Heading, html, seconds, Text, useLoading, visible, Wrong } from "./ui.js";

const NAMES = ["since", "until", "key", "tool", "decision", "event"];
const DECISIONS = [["", "any decision"], ["allow", "allowed"], ["ask", "asked"], ["deny", "denied"]];
const EVENTS = [["", "any event"], ["call", "calls"], ["approval.*", "approvals"], ["refused", "refused requests"], ["key.*", "keys"], ["config.*", "configuration"], ["pin.*", "pins"], ["grant.*", "standing yeses"], ["lost", "lost lines"]];

/* what people type is a part of a name, unless it is a pattern */
const pattern = (text) => /[*?[]/.test(text) || !text ? text : `*${text}*`;
const inUtc = (local) => local ? new Date(local).toISOString() : "";

export default function Audit({ query }) {
  const [wanted, setWanted] = useState(() => Object.fromEntries(NAMES.map((name) => [name, query.get(name) ?? ""])));
  const [found, setFound] = useState(null);
  const [error, setError] = useState(null);
  const turn = useRef(0);
  useLoading(!found && !error);
  const load = async (before = "") => {
    const mine = ++turn.current;
    const asked = { ...wanted, key: pattern(wanted.key), tool: pattern(wanted.tool), since: inUtc(wanted.since), until: inUtc(wanted.until), before };
    try {
      const answer = await get(`audit?${new URLSearchParams(Object.entries(asked).filter(([, value]) => value))}`);
      if (mine !== turn.current) return;
      setError(null);
      setFound((old) => before && old ? { ...answer, entries: [...old.entries, ...answer.entries] } : answer);
    } catch (refusal) {
      if (mine === turn.current) setError(refusal);
    }
  };
  useEffect(() => {
    const timer = setTimeout(load, 200);
    return () => clearTimeout(timer);
  }, [wanted]);
  const set = (name) => (event) => setWanted({ ...wanted, [name]: event.target.value });
  const isPlain = NAMES.every((name) => !wanted[name]);
  const choice = (name, label, options) => html`<select aria-label=${label} value=${wanted[name]} onChange=${set(name)}>
    ${options.map(([value, title]) => html`<option key=${value} value=${value}>${title}</option>`)}</select>`;
  return html`<div class="page">
    <${Heading} title="Audit"><button type="button" onClick=${() => load()}>Look again</button><//>
    <div class="row filters" role="search" aria-label="Audit log">
      <input type="search" aria-label="Key" placeholder="Key" value=${wanted.key} onInput=${set("key")} />
      <input type="search" aria-label="Tool" placeholder="Tool" value=${wanted.tool} onInput=${set("tool")} />
      ${choice("decision", "Decision", DECISIONS)}${choice("event", "Event", EVENTS)}
      <div class="row period"><label class="check soft">from <input type="datetime-local" value=${wanted.since} onInput=${set("since")} /></label>
      <label class="check soft">to <input type="datetime-local" value=${wanted.until} onInput=${set("until")} /></label></div>
    </div>
    <${Wrong} error=${error} />
    ${found && (found.file === null || found.file === "-" ? html`<div class="card"><${Empty}>${found.file === "-" ? "The audit log goes to the standard output of Toolway."
        : html`There is no audit log. <code>TOOLWAY_AUDIT=audit.jsonl</code> writes one: a line for each call, each answer of a person, each change made here.`}<//></div>`
      : html`<section class="card" aria-label="Entries">
      ${found.entries.length === 0 ? html`<${Empty}>${found.next ? "Nothing found yet." : isPlain ? "Nothing happened yet." : "Nothing found."}<//>`
        : html`<div class="scroll"><table class="list"><thead><tr><th>When</th><th>What</th><th>Decision</th><th class="narrow-off">Who</th><th class="number narrow-off">Took</th></tr></thead>
          <tbody>${found.entries.map((entry, index) => html`<${Entry} key=${entry.time + index} entry=${entry} />`)}</tbody></table></div>`}
    </section>
    ${found.next && html`<div class="row"><button type="button" onClick=${() => load(found.next)}>Show older ones</button>
      ${found.reached && html`<span class="soft small">Looked through back to ${when(found.reached)}.</span>`}</div>`}
    <p class="soft small"><${Text} class="mono">${found.file}<//></p>`)}
  </div>`;
}

function when(time) {
  const at = new Date(time);
  if (Number.isNaN(at.getTime())) return visible(time);
  const isToday = at.toDateString() === new Date().toDateString();
  return at.toLocaleString([], { ...(isToday ? {} : { dateStyle: "short" }), timeStyle: "medium", hour12: false });
}
const LOOK = { allow: "accent", deny: "bad", ask: "warn" };
const WORD = { allow: "allowed", deny: "denied", ask: "asked" };
const SHOWN = ["time", "event", "gen_ai.operation.name"];

function Entry({ entry }) {
  const [open, setOpen] = useState(false);
  const decision = entry["toolway.decision"];
  const subject = entry["gen_ai.tool.name"] ?? entry["toolway.changed"] ?? entry["url.path"] ?? (entry.lines ? `${entry.lines} lines` : "");
  const by = entry["toolway.approval.by"] ?? entry["toolway.by"] ?? entry["toolway.key.name"];
  return html`<tr>
      <td class="small soft nowrap"><time dateTime=${visible(entry.time)} title=${visible(entry.time)}>${when(entry.time)}</time></td>
      <td class="long"><button type="button" class="link" aria-expanded=${String(open)} onClick=${() => setOpen(!open)}><span class="soft"><${Text}>${entry.event}<//></span> <${Text} class="mono">${subject}<//></button>
        ${entry["toolway.server"] && html` <span class="soft small narrow-off"><${Text}>${entry["toolway.server"]}<//></span>`}
        ${entry["toolway.reason"] && html`<div class="small soft"><${Text}>${entry["toolway.reason"]}<//></div>`}</td>
      <td>${decision && html`<span class=${`tag ${LOOK[decision] ?? ""}`}><${Text}>${WORD[decision] ?? decision}<//></span>`}
        ${entry["error.type"] && decision !== "deny" && html` <span class="tag bad"><${Text}>${entry["error.type"]}<//></span>`}
        ${entry["toolway.rule"] && html`<div class="small soft"><${Text}>${entry["toolway.rule"]}<//></div>`}</td>
      <td class="narrow-off name">${by && html`<${Text}>${by}<//>`} ${entry["toolway.dialect"] && html`<span class="soft small"><${Text}>${entry["toolway.dialect"]}<//></span>`}</td>
      <td class="number narrow-off">${seconds(entry.duration)}</td></tr>
    ${open && html`<tr class="more"><td class="long" colspan="5"><dl class="facts">${Object.entries(entry).filter(([name]) => !SHOWN.includes(name)).map(([name, value]) =>
      html`<dt key=${name} class="small"><${Text}>${name}<//></dt><dd class="mono small"><${Text}>${typeof value === "object" ? JSON.stringify(value) : value}<//></dd>`)}</dl>
      ${entry["gen_ai.conversation.id"] && html`<p class="small"><a href=${`#/conversations?conversation=${encodeURIComponent(entry["gen_ai.conversation.id"])}`}>Its conversation</a></p>`}</td></tr>`}`;
}
