/* The approvals: calls that wait for a person, with exactly what would run, and standing yeses. */

import { useEffect, useState } from "preact/hooks";
import { at, follow, get, post, remove } from "./api.js";
import { Ago, announce, Card, Empty, Heading, html, Text, useLoaded, visible, Wrong } from "./ui.js";

async function load() {
  const [{ approvals }, { grants }] = await Promise.all([get("approvals"), get("grants")]);
  return { waiting: approvals, grants };
}

export default function Approvals() {
  const { value, error, reload } = useLoaded(load);
  const [failure, setFailure] = useState(null);
  useEffect(() => follow("approvals", reload), []);
  const act = async (work, said) => {
    try {
      setFailure(null);
      await work();
      announce(said);
    } catch (refusal) {
      setFailure(refusal);
    }
    reload();
  };
  return html`<div class="page">
    <${Heading} title="Approvals" />
    <${Wrong} error=${failure ?? error} />
    ${value && html`<section class="column" aria-label="Waiting">${value.waiting.length === 0
      ? html`<div class="card"><${Empty}>No call waits for an approval.<//></div>`
      : value.waiting.map((one) => html`<${Waiting} key=${one.id} one=${one} onAnswer=${(body) =>
        act(() => post(`approvals/${at(one.id)}`, body), body.approve ? "Approved" : "Refused")} />`)}</section>
    ${value.grants.length > 0 && html`<${Card} title="Standing yeses" id="grants" flush><div class="scroll"><table>
      <thead><tr><th>Tool</th><th>For</th><th class="narrow-off">Since</th><th><span class="hidden">End</span></th></tr></thead>
      <tbody>${value.grants.map((grant) => html`<tr key=${grant.id}><td><span class="mono"><${Text}>${grant.name}<//></span> <span class="soft small"><${Text}>${grant.server}<//></span></td>
        <td>${grant.scope === "key" ? html`the key <${Text}>${grant.key || "of nobody"}<//>` : "one conversation"}</td>
        <td class="narrow-off"><${Ago} at=${grant.created} /> <span class="soft small">by <${Text}>${grant.by}<//></span></td>
        <td class="right"><button type="button" class="compact danger" aria-label=${`End the yes for ${visible(grant.name)}`}
          onClick=${() => act(() => remove(`grants/${at(grant.id)}`), "Ended")}>End</button></td></tr>`)}</tbody></table></div><//>`}`}
  </div>`;
}

function Waiting({ one, onAnswer }) {
  const [reason, setReason] = useState("");
  const [always, setAlways] = useState("");
  return html`<article class="card" aria-label=${`Call of ${visible(one.name)}`}><header>
      <h2 class="mono"><${Text}>${one.name}<//></h2><a class="soft small" href=${`#/servers/${at(one.server)}`}><${Text}>${one.server}<//></a>
      ${one.key && html`<span class="tag">key <${Text}>${one.key}<//></span>`}<span class="actions"><${Ago} at=${one.created} /></span></header>
    <div class="body column">
      <pre class="block" tabindex="0" role="region" aria-label="Arguments">${visible(JSON.stringify(one.arguments, null, 2))}</pre>
      ${(one.reason || one.rule) && html`<p class="soft"><${Text}>${one.reason || `the rule ${one.rule}`}<//></p>`}
      <div class="row"><label class="hidden" for=${`r${one.id}`}>Reason</label>
        <input id=${`r${one.id}`} placeholder="Reason, which the model reads" value=${reason} maxlength="1000" onInput=${(event) => setReason(event.target.value)} />
        <select aria-label="How far a yes reaches" value=${always} onChange=${(event) => setAlways(event.target.value)}>
          <option value="">this call</option><option value="conversation">this tool in this conversation</option>
          ${one.key && html`<option value="key">this tool with this key</option>`}</select>
        <button type="button" class="primary" onClick=${() => onAnswer({ approve: true, reason, always })}>Approve</button>
        <button type="button" class="danger" onClick=${() => onAnswer({ approve: false, reason })}>Refuse</button></div>
    </div></article>`;
}
