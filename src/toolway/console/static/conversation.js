/* The time line of one conversation: what the model was sent, what it said, which tools ran. */

import { useEffect, useRef, useState } from "preact/hooks";
import { at, follow, get } from "./api.js";
import { bytes, clock, Code, Copy, count, Heading, html, plural, seconds, State, Text, useLoading, visible, Wrong } from "./ui.js";

export default function Conversation({ id }) {
  const [record, setRecord] = useState(null);
  const [text, setText] = useState("");
  const [error, setError] = useState(null);
  const turn = useRef(0);
  const load = async () => {
    const mine = ++turn.current;
    try {
      const found = await get(`conversations/${at(id)}`);
      if (mine !== turn.current) return;
      setRecord(found);
      setText(found.text ?? "");
      setError(null);
    } catch (refusal) {
      setError(refusal);
    }
  };
  const isRunning = record?.state === "running";
  useLoading(!record && !error);
  useEffect(() => { load(); }, [id]);
  useEffect(() => {
    if (record && !isRunning) return undefined;
    let due = 0;
    const stop = follow(`conversation:${id}`, (news) => {
      if (news?.text !== undefined) { setText((old) => old + news.text); return; }
      clearTimeout(due);
      due = setTimeout(load, 120);
    });
    return () => { clearTimeout(due); stop(); };
  }, [id, record === null, isRunning]);

  if (!record) return html`<div class="page"><${Heading} title="Conversation" /><${Wrong} error=${error} /></div>`;
  return html`<div class="page">
    <p class="small"><a href="#/conversations">Conversations</a></p>
    <${Heading} title=${record.title || record.side || "Conversation"} state=${html`<${State} of=${record.state} />`}>
      ${record.sent && record.shows_contents && html`<${Copy} text=${() => asCurl(record)} label="Copy as curl" />`}
    <//>
    <${Wrong} error=${error} />
    <${Facts} record=${record} />
    ${record.error && html`<div class="notice bad"><strong>The client got an error:</strong> <${Text}>${record.error.message}<//></div>`}
    ${!record.steps ? html`<p class="notice">Only this line of it is kept: there were many conversations at once, or its time is over.</p>`
      : html`<${TimeLine} record=${record} text=${text} />`}
    ${record.is_cut && html`<p class="soft small">This was too long to be kept whole.</p>`}
  </div>`;
}

function Facts({ record }) {
  const usage = record.usage;
  const facts = [
    ["Model", html`<${Text} class="mono">${record.model}<//>`],
    ["Client", record.client && html`<${Text}>${record.client}<//>`],
    ["Key", record.caller && html`<a href=${`#/conversations?caller=${encodeURIComponent(record.caller)}`}><${Text}>${record.caller}<//></a>`],
    ["Began", `${clock(record.began)}, ${record.streamed ? "streamed" : "whole"}`],
    ["Took", record.state === "running" ? "…" : `${seconds(record.seconds)}${record.first_text != null ? `, first word after ${seconds(record.first_text)}` : ""}`],
    ["Tokens", usage.prompt + usage.completion > 0 && `${count(usage.prompt)} read${
      usage.cached ? ` (${Math.round(usage.cached / usage.prompt * 100)} % from the cache)` : ""}, ${count(usage.completion)} written`],
    ["Tools", `${plural(record.offered, "tool")} of Toolway in it, ${plural(record.calls, "call")} in ${plural(record.rounds, "round")}`],
  ].filter(([, value]) => value);
  return html`<dl class="facts line">${facts.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

/* steps -> rounds, each with its requests, its answer and its calls */
export function roundsOf(record) {
  const rounds = [];
  let round = null;
  let ending = null;
  for (const step of record.steps) {
    if (step.kind === "round") rounds.push(round = { number: step.number, at: step.at, tries: [], calls: [], answer: null });
    else if (!round && step.kind !== "broken" && step.kind !== "left" && step.kind !== "ended") {
      rounds.push(round = { number: 0, at: step.at, tries: [], calls: [], answer: null });
    }
    if (step.kind === "asked") round.tries.push({ asked: step, error: null });
    else if (step.kind === "failed") { if (round.tries.length) round.tries.at(-1).error = step.error; }
    else if (step.kind === "text") round.textAt = step.at;
    else if (step.kind === "answered") round.answer = step;
    else if (step.kind === "call") round.calls.push({ ...step, result: null });
    else if (step.kind === "result") {
      const call = round.calls.findLast((one) => one.id === step.id && !one.result);
      if (call) call.result = step;
    } else if (["ended", "broken", "left"].includes(step.kind)) ending = step;
  }
  return { rounds, ending };
}

function TimeLine({ record, text }) {
  const { rounds, ending } = roundsOf(record);
  const [first] = rounds;
  return html`<ol class="line-of-time">
    ${rounds.map((round, index) => html`<${Round} key=${index} record=${record} round=${round} before=${rounds[index - 1]}
      next=${rounds[index + 1]} isLast=${index === rounds.length - 1} text=${text} first=${first} />`)}
    ${ending && html`<li class="moment"><span class="when">${seconds(ending.at)}</span>
      <div>${ending.kind === "ended" ? html`<strong>Done</strong> <span class="soft">(${ending.finish ?? "no reason given"})</span>
          ${ending.client_calls.length > 0 && html`<p>The client runs ${plural(ending.client_calls.length, "call")} of its own tools: ${
            ending.client_calls.map((call) => html`<${Name} name=${call.name} /> `)}</p>`}
          ${ending.waiting.length > 0 && html`<p class="warn">${plural(ending.waiting.length, "call")} wait for an approval: ${
            ending.waiting.map((call) => html`<${Name} name=${call.name} /> `)}</p>`}`
        : ending.kind === "left" ? html`<strong class="warn">The client left</strong><p class="soft">What ran for it was stopped.</p>`
          : html`<strong class="bad">Failed</strong><p><${Text}>${ending.error.message}<//></p>`}</div></li>`}
  </ol>`;
}

const Name = ({ name }) => html`<code><${Text}>${name}<//></code>`;

function Round({ record, round, before, next, isLast, text }) {
  const known = new Set(before?.tries.at(-1)?.asked.messages ?? record.sent);
  const clients = new Set(record.client_tools);
  const answer = round.answer;
  const called = new Set(round.calls.map((call) => call.id));
  const notRun = (answer?.calls ?? []).filter((call) => !called.has(call.id) && !clients.has(call.name));
  const results = new Map((next?.tries[0]?.asked.messages ?? []).map((place) => record.messages[place])
    .filter((message) => message.role === "tool").map((message) => [message.tool_call_id, message]));
  const isSpeaking = isLast && !answer && record.state === "running";
  const reasoning = answer?.said.reasoning_content ?? answer?.said.reasoning;
  return html`<li class="round">
    <h2 class="row">${round.number ? `Round ${round.number}` : "Before the first round"}
      <span class="soft small">${round.at > 0.005 ? `after ${seconds(round.at)}` : ""}</span></h2>
    <ol>
    ${round.tries.map(({ asked, error }, index) => html`
      <${Sent} key=${`s${index}`} record=${record} asked=${asked} known=${known} isFirst=${!before} again=${index > 0} />
      ${error && html`<li class="moment" key=${`e${index}`}><span class="when"></span><div class="notice bad">
        <strong>The model server refused${round.tries[index + 1] ? "; asked again in another way" : ""}:</strong> <${Text}>${error.message}<//></div></li>`}`)}
    ${isSpeaking && html`<li class="moment"><span class="when"></span><div class="column">
      ${text ? html`<div class="said"><${Text}>${text}<//><span class="caret" aria-hidden="true"></span></div>`
        : html`<${State} of="running" word="the model is at work" />`}</div></li>`}
    ${answer && html`<li class="moment"><span class="when">${seconds(answer.at)}</span><div class="column">
      ${reasoning && html`<details><summary>Thought</summary><pre class="block">${visible(reasoning)}</pre></details>`}
      ${answer.said.content ? html`<div class="said"><${Content} content=${answer.said.content} /></div>` : null}
      <p class="small soft row">${answer.usage && html`<${Usage} usage=${answer.usage} />`}
        ${answer.calls.length > 0 && html`<span>${plural(answer.calls.length, "call")}</span>`}
        ${answer.finish && !["stop", "tool_calls"].includes(answer.finish) && html`<span class="tag warn">${answer.finish}</span>`}</p>
    </div></li>`}
    ${(round.calls.length > 0 || notRun.length > 0) && html`<li class="moment"><span class="when"></span><div class="calls">
      ${round.calls.map((call, index) => html`<${Call} key=${index} call=${call} shown=${results.get(call.id)} isRunning=${record.state === "running"} />`)}
      ${notRun.map((call) => html`<${Call} key=${call.id} call=${call} shown=${results.get(call.id)} notRun />`)}
    </div></li>`}
    ${(answer?.calls ?? []).filter((call) => clients.has(call.name)).map((call) => html`<li class="moment" key=${`c${call.id}`}><span class="when"></span>
      <div class="call"><div class="row"><${Name} name=${call.name} /><span class="tag">the client's</span></div><${Arguments} text=${call.arguments} /></div></li>`)}
    </ol></li>`;
}

function Usage({ usage }) {
  const cached = usage.prompt_tokens_details?.cached_tokens;
  return html`<span>${count(usage.prompt_tokens)} tokens read${cached ? `, ${count(cached)} from the cache` : ""}; ${count(usage.completion_tokens)} written</span>`;
}

function Sent({ record, asked, known, isFirst, again }) {
  const [open, setOpen] = useState(false);
  const messages = asked.messages.map((place) => ({ ...record.messages[place], isNew: isFirst || !known.has(place) }));
  const added = messages.filter((message) => message.origin === "toolway" && message.isNew).length;
  const ours = new Map(record.our_tools.map((tool) => [tool.name, tool.server]));
  const clients = new Set(record.client_tools);
  return html`<li class="moment"><span class="when">${seconds(asked.at)}</span><div class="column">
    <div class="row"><button type="button" class="link" aria-expanded=${String(open)} onClick=${() => setOpen(!open)}>
      ${again ? "Sent again" : "Sent to the model"}: ${plural(messages.length, "message")}${added ? `, ${added} added by Toolway` : ""}; ${
        plural(asked.tools.length, "tool")}${asked.tool_bytes ? `, about ${count(Math.round(asked.tool_bytes / 4))} tokens` : ""}</button></div>
    ${open && html`<div class="column sent">
      ${messages.map((message, index) => html`<${Message} key=${index} message=${message} />`)}
      ${asked.tools.length > 0 && html`<div><h3>Tools</h3><p class="small soft">${bytes(asked.tool_bytes)} of definitions${
        asked.tool_choice ? html`; tool_choice <code><${Text}>${JSON.stringify(asked.tool_choice)}<//></code>` : ""}</p>
        <div class="row tight">${asked.tools.map((name, index) => html`<a key=${index} class=${`tag ${clients.has(name) ? "" : "added"}`}
          href=${clients.has(name) ? undefined : `#/tools/${at(name)}`} title=${clients.has(name) ? "the client's" : ours.get(name) ? `added by Toolway, of ${visible(ours.get(name))}` : "added by Toolway"}><${Text}>${name}<//></a>`)}</div></div>`}
    </div>`}
  </div></li>`;
}

function Message({ message }) {
  const { role, content, tool_calls: calls, origin } = message;
  return html`<div class=${`message ${origin === "toolway" ? "is-added" : ""}`}>
    <div class="row small"><span class="strong">${visible(role ?? "?")}</span>
      ${message.name && html`<${Text} class="soft">${message.name}<//>`}
      ${origin === "toolway" && html`<span class="tag added">added by Toolway</span>`}</div>
    ${content != null && content !== "" && html`<${Content} content=${content} />`}
    ${Array.isArray(calls) && calls.map((call, index) => html`<div key=${index} class="row small">
      <${Name} name=${call.function?.name} /><code class="soft cut"><${Text}>${call.function?.arguments}<//></code></div>`)}
  </div>`;
}

const LONG = 900;
const NOT_KEPT = /… \(([\d,]+) more characters\)$/; /* how the recorder ends a text that was too long to be kept */

export function Long({ text: recorded }) {
  const [all, setAll] = useState(false);
  const lost = NOT_KEPT.exec(recorded);
  const text = lost ? recorded.slice(0, lost.index) : recorded;
  const shown = all || text.length <= LONG * 1.3 ? text : text.slice(0, LONG);
  return html`<div class="pre">${visible(shown)}${(lost || shown.length < text.length) && "… "}${shown.length < text.length && html`<button type="button" class="link"
    onClick=${() => setAll(true)}>${lost ? `show the ${count(text.length)} characters that were kept` : `show all ${count(text.length)} characters`}</button>`}${
    lost && html`<span class="soft small"> (${lost[1]} more were not kept)</span>`}</div>`;
}

function Content({ content }) {
  if (!Array.isArray(content)) return html`<${Long} text=${typeof content === "string" ? content : JSON.stringify(content, null, 2)} />`;
  return content.map((part, index) => {
    const url = part?.image_url?.url ?? "";
    if (typeof part?.text === "string") return html`<${Long} key=${index} text=${part.text} />`;
    if (/^data:image\/(png|jpeg|gif|webp|avif);base64,[A-Za-z0-9+/=]+$/.test(url)) return html`<img key=${index} class="image" src=${url} alt="picture in the message" />`;
    return html`<pre key=${index} class="block">${visible(JSON.stringify(part, null, 2))}</pre>`;
  });
}

export function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

const Arguments = ({ text }) => {
  const shown = pretty(text ?? "");
  return shown === "{}" || shown === "" ? html`<p class="small soft">no arguments</p>` : html`<${Long} text=${shown} />`;
};

const NOT_SHOWN = /\[image \d+ \([^)\n]*\) is not shown: [^\]\n]*\]/g; /* what the model reads in place of an image */

export function Call({ call, shown, notRun, isRunning }) {
  const { result, progress } = call;
  const notes = typeof shown?.content === "string" && result?.images.length ? shown.content.match(NOT_SHOWN) ?? [] : [];
  const cut = result && shown?.length != null && shown.length < result.size;
  return html`<div class="call">
    <div class="row"><strong class="mono"><${Text}>${call.name}<//></strong>
      ${call.server && html`<a class="soft small" href=${`#/servers/${at(call.server)}`}><${Text}>${call.server}<//></a>`}
      ${!call.server && !notRun && html`<span class="tag warn">no such tool</span>`}
      <span class="end row tight">${notRun ? html`<${State} of="refused" word="not run" />`
        : result ? html`<${State} of=${result.is_error ? "error" : "done"} word=${result.is_error ? "failed" : "done"} />`
          : html`<${State} of=${isRunning ? "running" : "left"} word=${isRunning ? "running" : "stopped"} />`}
        ${result && html`<span class="soft small">${seconds(result.seconds)}</span>`}</span></div>
    <${Arguments} text=${call.arguments} />
    ${!result && progress && html`<${Progress} progress=${progress} />`}
    ${result && html`<div class=${`result ${result.is_error ? "is-bad" : ""}`}>
      ${result.text == null ? html`<p class="small soft">${count(result.size)} characters</p>` : html`<${Long} text=${pretty(result.text)} />`}
      ${result.images.map((image, index) => image.data && /^image\/[\w.+-]+$/.test(image.media_type) && /^[A-Za-z0-9+/=\s]+$/.test(image.data)
        ? html`<img key=${index} class="image" src=${`data:${image.media_type};base64,${image.data}`} alt=${`picture of ${visible(call.name)}`} />`
        : html`<p key=${index} class="small soft">a picture, ${bytes(image.size)}</p>`)}
      ${notes.map((note) => html`<p key=${note} class="small warn">The model read in its place: <${Text}>${note}<//></p>`)}
      ${cut && html`<p class="small warn">The model read ${count(shown.length)} of ${count(result.size)} characters.</p>`}</div>`}
    ${notRun && shown && html`<div class="result is-bad"><${Content} content=${shown.content} /></div>`}
  </div>`;
}

export function Progress({ progress }) {
  const share = progress.total ? Math.min(1, progress.progress / progress.total) : null;
  return html`<div class="row small"><progress aria-label="Progress" value=${share ?? undefined} max="1"></progress>
    <span class="soft">${share == null ? count(progress.progress) : `${Math.round(share * 100)} %`}</span>
    ${progress.message && html`<${Text} class="soft">${progress.message}<//>`}</div>`;
}

export function asCurl(record) {
  const messages = record.sent.map((place) => {
    const { origin, length, ...message } = record.messages[place];
    return message;
  });
  const body = JSON.stringify({ ...record.options, messages }, null, 2).replaceAll("'", "'\\''");
  return `curl ${location.origin}/v1/chat/completions \\\n  -H 'Content-Type: application/json' \\\n  -H 'Authorization: Bearer YOUR_KEY' \\\n  -d '${body}'`;
}
