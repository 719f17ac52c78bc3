/* One call that waits for a person: who calls what, from where and why it is asked; and the answer. */

import { useState } from "preact/hooks";
import { at, post } from "./api.js";
import { Ago, announce, html, Text, visible, Wrong } from "./ui.js";

const WAYS = { chat: "chat completions", messages: "messages", responses: "responses", mcp: "MCP", rest: "REST" };

export function Approval({ one, isHere, onAnswered }) {
  const [reason, setReason] = useState("");
  const [always, setAlways] = useState("");
  const [failure, setFailure] = useState(null);
  const answer = async (approve) => {
    try {
      setFailure(null);
      const counts = await post(`approvals/${at(one.id)}`, { approve, reason, always: approve ? always : "" });
      announce(counts.approve ? "Approved" : "Refused");
      onAnswered(counts);
    } catch (refusal) {
      setFailure(refusal);
    }
  };
  const who = one.key ? html`the key <strong><${Text}>${one.key}<//></strong>` : isHere ? "you, here" : "somebody without a key";
  return html`<article class="card approval" tabindex="-1" aria-label=${`Call of ${visible(one.name)}`}><header>
      <h2 class="mono"><${Text}>${one.name}<//></h2><a class="soft small" href=${`#/servers/${at(one.server)}`}><${Text}>${one.server}<//></a>
      <span class="actions"><${Ago} at=${one.created} /></span></header>
    <div class="body column">
      <pre class="block" tabindex="0" role="group" aria-label=${`Arguments of ${visible(one.name)}`}>${visible(JSON.stringify(one.arguments, null, 2))}</pre>
      <dl class="facts">
        <dt>Who</dt><dd>${who}${one.client && !isHere && html` <span class="soft">with <${Text}>${one.client}<//></span>`}</dd>
        ${!isHere && one.dialect && html`<dt>Where</dt><dd>${WAYS[one.dialect] ?? visible(one.dialect)}${one.conversation && html`, in <a href=${`#/conversations?conversation=${encodeURIComponent(one.conversation)}`}>this conversation</a>`}</dd>`}
        <dt>Why</dt><dd>${one.reason ? html`<${Text}>${one.reason}<//> ` : one.rule ? "" : "its client wants to be asked"}${one.rule && html`<span class=${one.reason ? "soft small" : ""}><${Text}>${one.rule}<//></span>`}</dd>
      </dl>
      <${Wrong} error=${failure} />
      <div class="row"><label class="hidden" for=${`r${one.id}`}>Reason</label>
        <input id=${`r${one.id}`} class="grow" placeholder="Reason, which the model reads" value=${reason} maxlength="1000" onInput=${(event) => setReason(event.target.value)} />
        <select aria-label="How far a yes reaches" value=${always} onChange=${(event) => setAlways(event.target.value)}>
          <option value="">this call</option><option value="conversation">this tool in this conversation</option>
          ${one.key && html`<option value="key">this tool with this key</option>`}</select>
        <button type="button" class="primary" onClick=${() => answer(true)}>Approve</button>
        <button type="button" class="danger" onClick=${() => answer(false)}>Refuse</button></div>
    </div></article>`;
}
