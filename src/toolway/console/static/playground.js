/* The playground: a chat with the model, in which each call is seen. */

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { get, open, Refused } from "./api.js";
import { announce, Copy, count, Empty, Heading, html, plural, State, Text, useLoaded, visible, Wrong } from "./ui.js";
import { Approval } from "./approval.js";
import { Call } from "./conversation.js";
import { Markdown } from "./markdown.js";

const KEPT = "toolway-playground";

/* a turn of the chat: { role: "user", text, images } or { role: "assistant", parts, end } with parts text, thought, call */
const asMessages = (turns) => turns.flatMap((turn) => {
  if (turn.role === "user") {
    const content = turn.images.length ? [{ type: "text", text: turn.text },
      ...turn.images.map((url) => ({ type: "image_url", image_url: { url } }))] : turn.text;
    return [{ role: "user", content }];
  }
  const said = turn.parts.filter((part) => part.kind === "text").map((part) => part.text).join("\n\n");
  return said ? [{ role: "assistant", content: said }] : [];
});

/* keeps the end of a growing page in view until its reader scrolls up, and again once he is back there */
function useEndInView(isUrgent, growing) {
  const follows = useRef(true);
  const height = useRef(0); /* of the page before it grew */
  const isAt = (end) => innerHeight + scrollY > end - 60;
  useEffect(() => {
    let before = scrollY;
    const scrolled = () => {
      follows.current = isAt(document.documentElement.scrollHeight) || (follows.current && scrollY >= before);
      before = scrollY;
    };
    addEventListener("scroll", scrolled, { passive: true });
    return () => removeEventListener("scroll", scrolled);
  }, []);
  useLayoutEffect(() => {
    follows.current ||= isAt(height.current);
    height.current = document.documentElement.scrollHeight;
    if (follows.current || isUrgent) scrollTo(0, height.current);
  }, growing);
  return () => { follows.current = true; };
}

/* brings the first call that waits into view, and the focus to it, unless somebody writes meanwhile; is there one? */
function lookAtQuestion() {
  const card = document.querySelector(".turn .approval");
  card?.scrollIntoView({ block: "nearest" });
  const { activeElement } = document;
  const isWriting = card?.contains(activeElement) || (activeElement?.id === "draft" && activeElement.value);
  if (!isWriting) card?.focus({ preventScroll: true });
  return Boolean(card);
}

const BROKEN = "The connection to Toolway broke off before the end of the answer.";

export default function Playground() {
  const { value: overview, error: failure } = useLoaded(() => get("overview"));
  const [model, setModel] = useState("");
  const [profile, setProfile] = useState("");
  const [turns, setTurns] = useState([]);
  const [draft, setDraft] = useState(sessionStorage.getItem(KEPT) ?? "");
  const [images, setImages] = useState([]);
  const [busy, setBusy] = useState(false);
  const [isHeld, setHeld] = useState(false); /* Enter was pressed while the answer was not over */
  const running = useRef(null);
  const models = overview?.model_server.models ?? [];
  const chosen = model || models[0]?.id || "";
  useEffect(() => () => running.current?.abort(), []);
  useEffect(() => sessionStorage.setItem(KEPT, draft), [draft]);
  const waits = busy && waitingIn(turns.at(-1)).length > 0;
  const showEnd = useEndInView(Boolean(turns.at(-1)?.end?.error), [turns, busy]);

  const ask = async (before) => {
    running.current = new AbortController();
    setBusy(true);
    setHeld(false);
    showEnd();
    setTurns([...before, { role: "assistant", parts: [], end: null }]);
    const change = (work) => setTurns((old) => {
      const last = old.at(-1);
      return [...old.slice(0, -1), { ...last, ...work(last) }];
    });
    try {
      const body = { model: profile ? `${chosen}@${profile}` : chosen, messages: asMessages(before) };
      const response = await open("POST", "chat", body, running.current.signal);
      await read(response, (told) => change((turn) => after(turn, told)));
      announce("The answer is complete");
    } catch (refusal) {
      if (refusal.name === "AbortError") change(() => ({ end: { stopped: true } }));
      else change(() => ({ end: { error: refusal instanceof Refused ? refusal.message : BROKEN } }));
    }
    setBusy(false);
  };
  const send = (event) => {
    event?.preventDefault();
    if (!(draft.trim() || images.length)) return;
    if (busy) {
      setHeld(true);
      if (waits) lookAtQuestion();
      return;
    }
    const turn = { role: "user", text: draft, images };
    setDraft("");
    setImages([]);
    ask([...turns, turn]);
  };
  const answered = (one, counts) => {
    setHeld(false);
    setTurns((old) => [...old.slice(0, -1), { ...old.at(-1), parts: old.at(-1).parts.map((part) => part.id === one.id && part.kind === "approval" ? { ...part, counts } : part) }]);
  };
  const edit = (index) => {
    setDraft(turns[index].text);
    setImages(turns[index].images);
    setTurns(turns.slice(0, index));
    document.getElementById("draft")?.focus();
  };
  const attach = (event) => {
    for (const file of event.target.files) {
      const reader = new FileReader();
      reader.onload = () => setImages((old) => [...old, String(reader.result)].slice(-8));
      reader.readAsDataURL(file);
    }
    event.target.value = "";
  };
  return html`<div class="page chat">
    <${Heading} title="Playground">
      <select aria-label="Model" value=${chosen} onChange=${(event) => setModel(event.target.value)}>
        ${models.length === 0 && html`<option value="">no model</option>`}
        ${models.map((one) => html`<option key=${one.id} value=${one.id}>${visible(one.id)}</option>`)}</select>
      ${overview?.profiles.length > 0 && html`<select aria-label="Profile" value=${profile} onChange=${(event) => setProfile(event.target.value)}>
        <option value="">all tools</option>${overview.profiles.map((name) => html`<option key=${name} value=${name}>${visible(name)}</option>`)}</select>`}
      <button type="button" disabled=${turns.length === 0 || busy} onClick=${() => setTurns([])}>New chat</button>
    <//>
    <${Wrong} error=${failure} />
    ${overview?.model_server.reason && html`<div class="notice bad">There is no model to ask: the model server at <code><${Text}>${overview.model_server.url}<//></code> cannot be used.${" "}
      <${Text}>${overview.model_server.reason}<//>. The <a href="#/">overview</a> tells what to do.</div>`}
    <div class="turns" aria-label="Chat" role="region">
      ${turns.length === 0 && overview && html`<${Empty}>${overview.tools.offered === 0 ? html`There are no tools yet; <a href="#/servers">servers</a> bring them.`
        : `Ask something that needs one of your ${plural(overview.tools.offered, "tool")}.`}<//>`}
      ${turns.map((turn, index) => turn.role === "user"
        ? html`<div class="turn is-user" key=${index}><div class="bubble"><div class="said"><${Text}>${turn.text}<//></div>
            ${turn.images.map((url, at) => html`<img key=${at} class="image" src=${url} alt=${`attached picture ${at + 1}`} />`)}</div>
            <div class="row tight tools">${!busy && html`<button type="button" class="quiet compact" onClick=${() => edit(index)}>Edit</button>`}</div></div>`
        : html`<${Answer} key=${index} turn=${turn} isLast=${index === turns.length - 1} busy=${busy}
            onAgain=${() => ask(turns.slice(0, index))} onAnswered=${answered} />`)}
    </div>
    <form class="ask card" onSubmit=${send}>
      ${images.length > 0 && html`<div class="row">${images.map((url, at) => html`<button type="button" class="thumb" key=${at} aria-label=${`Remove picture ${at + 1}`}
        onClick=${() => setImages(images.filter((_, other) => other !== at))}><img src=${url} alt="" /></button>`)}</div>`}
      <label class="hidden" for="draft">Message</label>
      <textarea id="draft" rows="3" placeholder="Message" value=${draft} onInput=${(event) => setDraft(event.target.value)}
        onKeyDown=${(event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event); }}></textarea>
      <div role="status">${busy && isHeld && html`<p class="small warn">${waits ? "Not sent: answer the question above first, or stop."
        : "Not sent: the answer is not complete yet. Wait for its end, or stop it."}</p>`}</div>
      <div class="row"><label class="button compact attach">Attach a picture<input class="hidden" type="file" accept="image/*" multiple onChange=${attach} /></label>
        <span class="soft small narrow-off">Enter sends, Shift+Enter makes a new line</span>
        <span class="end">${busy ? html`<button type="button" onClick=${() => running.current.abort()}>Stop</button>`
          : html`<button type="submit" class="primary" disabled=${!(draft.trim() || images.length)}>Send</button>`}</span></div>
    </form>
  </div>`;
}

/* the calls of a turn that wait: those that the chat has not gone on behind, and that are not answered here */
function waitingIn(turn) {
  const parts = turn?.parts ?? [];
  return parts.slice(parts.findLastIndex((part) => part.kind !== "approval") + 1).filter((part) => !part.counts);
}

/* a call that waits, or the answer that it was given here */
function Waiting({ one, isOpen, onAnswered }) {
  const { counts } = one;
  const answer = useRef(null);
  useEffect(() => {
    if (isOpen) announce(`A call of ${visible(one.name)} waits for your answer`);
    if ((isOpen || counts) && !lookAtQuestion()) answer.current?.focus({ preventScroll: true });
  }, [counts]);
  if (isOpen) return html`<${Approval} one=${one} isHere onAnswered=${onAnswered} />`;
  return counts && html`<p class="soft small" tabindex="-1" ref=${answer}>${counts.approve ? "Approved" : "Refused"}: <${Text} class="mono">${one.name}<//></p>`;
}

function Answer({ turn, isLast, busy, onAgain, onAnswered }) {
  const working = isLast && busy;
  const said = turn.parts.filter((part) => part.kind === "text").map((part) => part.text).join("\n\n");
  const groups = [];
  const waiting = waitingIn(turn);
  for (const part of turn.parts) {
    if (part.kind === "call" && groups.at(-1)?.calls) groups.at(-1).calls.push(part);
    else groups.push(part.kind === "call" ? { calls: [part] } : part);
  }
  return html`<div class="turn">
    ${groups.map((group, index) => group.calls ? html`<div class="calls" key=${index}>${group.calls.map((call) => html`<${Call} key=${call.id} call=${call} shown=${call.shown} isRunning=${working} />`)}</div>`
      : group.kind === "approval" ? html`<${Waiting} key=${group.id} one=${group} isOpen=${working && waiting.includes(group)} onAnswered=${(counts) => onAnswered(group, counts)} />`
      : group.kind === "thought" ? html`<details key=${index}><summary>Thought</summary><pre class="block">${visible(group.text)}</pre></details>`
        : html`<${Markdown} key=${index} text=${group.text} />`)}
    ${working && html`<${State} of=${waiting.length ? "waiting" : "running"} word=${waiting.length ? "waits for your answer" : turn.parts.length ? "at work" : "the model is at work"} />`}
    ${!working && html`<div class="row small soft">
      ${turn.end?.stopped && html`<span class="warn">stopped</span>`}
      ${turn.end?.error && html`<div class="notice bad" role="alert"><${Text}>${turn.end.error}<//></div>`}
      ${turn.end?.waiting?.length > 0 && html`<span class="warn">waits for an approval: ${visible(turn.end.waiting.join(", "))}</span>`}
      ${turn.end?.usage && html`<span>${count(turn.end.usage.prompt_tokens)} tokens read, ${count(turn.end.usage.completion_tokens)} written</span>`}
      ${turn.end?.finish && !["stop", "tool_calls"].includes(turn.end.finish) && html`<span class="tag warn"><${Text}>${turn.end.finish}<//></span>`}
      ${said && html`<${Copy} text=${said} what="the answer" />`}
      ${isLast && html`<button type="button" class="compact" onClick=${onAgain}>Repeat</button>`}
      <a href="#/conversations">What happened</a></div>`}
  </div>`;
}

/* a turn after one more event */
function after(turn, told) {
  const last = turn.parts.at(-1);
  for (const kind of ["text", "thought"]) {
    if (told[kind] !== undefined) {
      return last?.kind === kind ? { parts: [...turn.parts.slice(0, -1), { ...last, text: last.text + told[kind] }] }
        : { parts: [...turn.parts, { kind, text: told[kind] }] };
    }
  }
  if (told.approval) return { parts: [...turn.parts, { ...told.approval, kind: "approval" }] };
  if (told.call) return { parts: [...turn.parts, { kind: "call", ...told.call, result: null, progress: null }] };
  const mend = (id, more) => ({ parts: turn.parts.map((part) => part.kind === "call" && part.id === id && !part.result ? { ...part, ...more } : part) });
  if (told.progress) return mend(told.progress.id, { progress: told.progress });
  if (told.result) return mend(told.result.id, { result: told.result });
  if (told.read) {
    const read = new Map(told.read.map((one) => [one.id, one]));
    return { parts: turn.parts.map((part) => part.kind === "call" && !part.shown && read.has(part.id) ? { ...part, shown: read.get(part.id) } : part) };
  }
  if (told.end) return { end: told.end };
  if (told.error) return { end: { error: told.error } };
  return {};
}

async function read(response, tell) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let isOver = false;
  for (;;) {
    const { value, done } = await reader.read();
    if (done && isOver) return;
    if (done) throw new Error(BROKEN);
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events.filter((one) => one.startsWith("data: "))) {
      const told = JSON.parse(event.slice(6));
      isOver ||= Boolean(told.end ?? told.error);
      tell(told);
    }
  }
}
