/* What differs in the tools of a server from those that were accepted, line by line, and accepting exactly that. */

import { useState } from "preact/hooks";
import { at, get, post } from "./api.js";
import { announce, Card, count, html, plural, Text, useLoaded, visible, Wrong } from "./ui.js";

const WORDS = { new: "new", changed: "changed", gone: "gone" };
const LOOKS = { new: "accent", changed: "warn", gone: "" };
const HIDDEN = /(<U\+[0-9A-F]{4,6}>)/;

export function Pins({ label, again }) {
  const { value, error, reload } = useLoaded(() => get(`servers/${at(label)}/pins`), [label, again]);
  const [failure, setFailure] = useState(null);
  const accept = async (changes) => {
    setFailure(null);
    try {
      await post(`servers/${at(label)}/pins`, { accept: Object.fromEntries(changes.map((one) => [one.tool, one.digest])) });
      announce("Accepted");
    } catch (refusal) {
      setFailure(refusal);
    }
    reload();
  };
  if (!value) return html`<${Wrong} error=${error} />`;
  if (value.changes.length === 0) return null;
  return html`<${Card} title=${`${plural(value.changes.length, "tool")} to accept`} id="pins" flush
      actions=${value.may_edit && value.changes.length > 1 && html`<button type="button" class="compact" onClick=${() => accept(value.changes)}>Accept all ${count(value.changes.length)}</button>`}>
    <p class="soft small pins-hint">A tool is offered only as a person has accepted it; what was accepted is in <${Text} class="mono">${value.file}<//>.</p>
    <${Wrong} error=${failure ?? error} />
    ${value.changes.map((one) => html`<${Change} key=${one.tool} one=${one} isOpen=${value.changes.length <= 5} onAccept=${value.may_edit && (() => accept([one]))} />`)}<//>`;
}

function Change({ one, isOpen, onAccept }) {
  return html`<article class="pin" aria-label=${visible(one.tool)}>
    <div class="row"><span class=${`tag ${LOOKS[one.kind]}`}>${WORDS[one.kind]}</span><strong class="mono grow"><${Text}>${one.tool}<//></strong>
      ${onAccept && html`<button type="button" class="compact" aria-label=${`Accept ${visible(one.tool)}`} onClick=${onAccept}>Accept</button>`}</div>
    ${one.suspicions.length > 0 && html`<div class="notice warn"><ul>${one.suspicions.map((said) => html`<li key=${said}>It <${Marked} text=${said} /></li>`)}</ul></div>`}
    <details open=${isOpen}><summary>${one.kind === "changed" ? "What changed" : "Its definition"}</summary>
      <pre class="block diff" tabindex="0" role="region" aria-label=${`Difference of ${visible(one.tool)}`}>${one.difference.map((line, index) => html`<${Line} key=${index} line=${line} />`)}</pre>
      ${one.lines > one.difference.length && html`<p class="soft small">${count(one.lines - one.difference.length)} more lines; <code>toolway pin --review</code> shows all.</p>`}</details>
  </article>`;
}

function Line({ line }) {
  const text = html`<${Marked} text=${line} />`;
  return line[0] === "+" ? html`<ins>${text}</ins>` : line[0] === "-" ? html`<del>${text}</del>` : html`<div>${text}</div>`;
}

const Marked = ({ text }) => text.split(HIDDEN).map((part, index) => index % 2
  ? html`<mark key=${index} title="a character that cannot be seen">${part}</mark>` : html`<${Text} key=${index}>${part}<//>`);
