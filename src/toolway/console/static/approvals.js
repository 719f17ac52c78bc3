/* The approvals: calls that wait for a person, with exactly what would run, and standing yeses. */

import { useEffect, useState } from "preact/hooks";
import { at, follow, get, remove } from "./api.js";
import { Approval } from "./approval.js";
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
      : value.waiting.map((one) => html`<${Approval} key=${one.id} one=${one} onAnswered=${reload} />`)}</section>
    ${value.grants.length > 0 && html`<${Card} title="Standing yeses" id="grants" flush><div class="scroll"><table>
      <thead><tr><th>Tool</th><th>For</th><th class="narrow-off">Since</th><th><span class="hidden">End</span></th></tr></thead>
      <tbody>${value.grants.map((grant) => html`<tr key=${grant.id}><td class="name"><span class="mono"><${Text}>${grant.name}<//></span> <span class="soft small"><${Text}>${grant.server}<//></span></td>
        <td>${grant.scope === "key" ? html`the key <${Text}>${grant.key || "of nobody"}<//>` : "one conversation"}</td>
        <td class="narrow-off"><${Ago} at=${grant.created} /> <span class="soft small">by <${Text}>${grant.by}<//></span></td>
        <td class="right"><button type="button" class="compact danger" aria-label=${`End the yes for ${visible(grant.name)}`}
          onClick=${() => act(() => remove(`grants/${at(grant.id)}`), "Ended")}>End</button></td></tr>`)}</tbody></table></div><//>`}`}
  </div>`;
}
