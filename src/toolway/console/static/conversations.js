/* The list of conversations, live, and the time line of one. */

import { useEffect, useRef, useState } from "preact/hooks";
import { at, follow, get } from "./api.js";
import { Ago, count, Empty, Heading, html, seconds, State, Text, useLoading, Wrong } from "./ui.js";
import Conversation from "./conversation.js";

const STATES = [["", "any state"], ["running", "running"], ["done", "done"], ["waiting", "waits for approval"],
  ["error", "failed"], ["left", "client left"]];

const CHOSEN = [["tool", "tool"], ["caller", "key"], ["conversation", "requests of conversation"]];

export default function Conversations({ names, query }) {
  return names[0] ? html`<${Conversation} id=${names[0]} key=${names[0]} />` : html`<${List} query=${query} />`;
}

function List({ query }) {
  const [wanted, setWanted] = useState({ text: query.get("text") ?? "", state: query.get("state") ?? "",
    tool: query.get("tool") ?? "", caller: query.get("caller") ?? "", conversation: query.get("conversation") ?? "" });
  const [found, setFound] = useState(null);
  const [fresh, setFresh] = useState([]);
  const [error, setError] = useState(null);
  const turn = useRef(0);
  useLoading(!found && !error);
  const isPlain = Object.values(wanted).every((value) => !value);

  const load = async (before = "") => {
    const mine = ++turn.current;
    try {
      const answer = await get(`conversations?${new URLSearchParams({ ...wanted, before })}`);
      if (mine !== turn.current) return;
      setError(null);
      setFound((old) => before && old
        ? { ...answer, conversations: [...old.conversations, ...answer.conversations] } : answer);
      if (!before) setFresh([]);
    } catch (refusal) {
      if (mine === turn.current) setError(refusal);
    }
  };
  useEffect(() => {
    const timer = setTimeout(load, wanted.text ? 250 : 0);
    return () => clearTimeout(timer);
  }, [wanted]);

  useEffect(() => follow("conversations", (lines) => {
    if (lines === null) { load(); return; }
    setFound((old) => {
      if (!old) return old;
      const known = new Map(lines.map((line) => [line.id, line]));
      const there = new Set(old.conversations.map((one) => one.id));
      const added = isPlain ? lines.filter((line) => !there.has(line.id)) : [];
      const changed = old.conversations.map((one) => known.get(one.id) ?? one);
      if (added.length && scrollY > 160) {
        setFresh((waiting) => [...added.filter((line) => !waiting.some((one) => one.id === line.id)).reverse(), ...waiting]
          .map((one) => known.get(one.id) ?? one));
        return { ...old, conversations: changed };
      }
      return { ...old, conversations: [...added.reverse(), ...changed] };
    });
  }), [wanted]);

  const show = () => {
    setFound((old) => ({ ...old, conversations: [...fresh.filter((line) =>
      !old.conversations.some((one) => one.id === line.id)), ...old.conversations] }));
    setFresh([]);
    scrollTo(0, 0);
  };
  const set = (name) => (event) => setWanted({ ...wanted, [name]: event.target.value });
  return html`<div class="page">
    <${Heading} title="Conversations">
      <input type="search" aria-label="Find by text, tool or error" placeholder="Text, tool, model, error"
        value=${wanted.text} onInput=${set("text")} />
      <select aria-label="State" value=${wanted.state} onChange=${set("state")}>
        ${STATES.map(([value, title]) => html`<option key=${value} value=${value}>${title}</option>`)}
      </select>
    <//>
    <${Wrong} error=${error} />
    ${CHOSEN.some(([name]) => wanted[name]) && html`<div class="row">${CHOSEN.filter(([name]) => wanted[name]).map(([name, said]) => html`<button type="button" class="compact" key=${name}
      onClick=${() => setWanted({ ...wanted, [name]: "" })}>${said} <${Text}>${wanted[name]}<//> ×</button>`)}</div>`}
    ${found && !found.shows_contents && html`<p class="notice">What is said is not kept here;${" "}
      <code>TOOLWAY_CONSOLE_CONTENTS=on</code> changes that.</p>`}
    ${fresh.length > 0 && html`<button type="button" class="fresh" onClick=${show}>${fresh.length} new – show</button>`}
    ${found && html`<section class="card" aria-label="Conversations">
      ${found.conversations.length === 0
        ? html`<${Empty}>${isPlain ? "No conversations yet. They show up here as they happen." : "Nothing found."}<//>`
        : html`<div class="scroll"><table class="list">
          <thead><tr><th>Conversation</th><th>State</th><th class="narrow-off">Tools called</th>
            <th class="number narrow-off">Rounds</th><th class="number narrow-off">Tokens</th>
            <th class="number narrow-off">Took</th><th class="right narrow-off">When</th></tr></thead>
          <tbody>${found.conversations.map((one) => html`<${Line} key=${one.id} one=${one} />`)}</tbody></table></div>`}
    </section>`}
    ${found?.more && html`<div class="row"><button type="button"
      onClick=${() => load(found.conversations.at(-1).id)}>Show older ones</button></div>`}
    ${found?.left_out > 0 && html`<p class="soft small">${count(found.left_out)} were not kept: there were too many at once.</p>`}
  </div>`;
}

function Line({ one }) {
  return html`<tr class="go">
    <td class="what"><a class="whole" href=${`#/conversations/${at(one.id)}`}><${Text}>${one.title || one.side || "(not kept)"}<//></a>
      <div class="row tight small soft"><span class="narrow-only"><${Ago} at=${one.began} /> ·</span><${Text}>${one.model}<//>${one.client && html`<span class="narrow-off">·</span><${Text} class="narrow-off cut">${one.client}<//>`}
        ${one.caller && html`<span class="tag"><${Text}>${one.caller}<//></span>`}
        ${one.side && html`<span class="tag" title="Asked by the client for itself; gets no tools">side request</span>`}
        ${one.failed_calls > 0 && html`<span class="tag bad">${one.failed_calls} failed</span>`}
        ${one.asked_again > 0 && html`<span class="tag warn">asked again</span>`}</div></td>
    <td><${State} of=${one.state} /></td>
    <td class="narrow-off tools">${one.tools.slice(0, 3).map((name) => html`<span class="tag" key=${name}><${Text}>${name}<//></span> `)}
      ${one.tools.length > 3 && html`<span class="soft small">+${one.tools.length - 3}</span>`}</td>
    <td class="number narrow-off">${one.rounds}</td>
    <td class="number narrow-off">${one.usage.prompt + one.usage.completion ? count(one.usage.prompt + one.usage.completion) : "–"}</td>
    <td class="number narrow-off">${one.state === "running" ? "…" : seconds(one.seconds)}</td>
    <td class="right narrow-off"><${Ago} at=${one.began} /></td>
  </tr>`;
}
