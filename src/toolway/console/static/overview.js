/* The overview: is all well, what is wrong, and how a client gets here. */

import { useEffect, useState } from "preact/hooks";
import { follow, get } from "./api.js";
import { Ago, Card, Code, count, Empty, Heading, html, Panel, plural, State, Tabs, Text, useLoaded, Wrong } from "./ui.js";

const EVERY = 15000;

export default function Overview() {
  const { value, error, reload } = useLoaded(() => get("overview"), [], EVERY);
  useEffect(() => {
    let due = 0;
    const soon = () => { clearTimeout(due); due = setTimeout(reload, 250); };
    const stops = [follow("state", soon), follow("conversations", soon)];
    return () => { stops.forEach((stop) => stop()); clearTimeout(due); };
  }, []);
  if (value === null) return html`<div class="page"><${Heading} title="Overview" /><${Wrong} error=${error} /></div>`;
  const wrong = value.findings.filter((finding) => !finding.ok || finding.advice);
  const failed = wrong.filter((finding) => !finding.ok);
  const look = failed.length ? "error" : wrong.length ? "waiting" : "ready";
  const isNew = value.servers.length === 0;
  return html`<div class="page">
    <${Heading} title="Overview" state=${html`<${State} of=${look}
      word=${wrong.length ? `${plural(wrong.length, "thing")} to look at` : "all is well"} />`} />
    <${Wrong} error=${error} />
    ${isNew && html`<${FirstSteps} value=${value} />`}
    ${wrong.length > 0 && html`<${Card} title=${failed.length ? "What is wrong" : "What could be better"} id="wrong" flush>
      ${[...failed, ...wrong.filter((finding) => finding.ok)].map((finding) => html`<${Finding} key=${finding.check + finding.detail} finding=${finding} servers=${value.servers} />`)}<//>`}
    <div class="grid">
      <${ModelServer} value=${value} />
      <${Servers} servers=${value.servers} tools=${value.tools} />
    </div>
    <${Conversations} conversations=${value.conversations} />
    <${Connect} value=${value} />
  </div>`;
}

/* what is wrong and what to do about it; of what works, what would be better stands first */
function Finding({ finding, servers }) {
  const { check, ok, detail, advice } = finding;
  const [text, below] = ok ? [advice, detail] : [detail, advice];
  return html`<div class="finding"><span class=${`mark ${ok ? "is-warn" : ""}`} aria-hidden="true"></span>
    <div class="grow"><p><strong><${Check} of=${check} servers=${servers} /></strong>${": "}<${Text}>${text}<//></p>
      ${below && html`<p class="advice"><${Text}>${below}<//></p>`}</div></div>`;
}

/* what was looked at; a tool server leads to its page */
function Check({ of: check, servers }) {
  const server = servers.find(({ label }) => check === `tool server ${label}` || check.startsWith(`tool server ${label} through `));
  return server ? html`<a href=${`#/servers/${encodeURIComponent(server.label)}`}><${Text}>${check}<//></a>` : html`<${Text}>${check}<//>`;
}

function ModelServer({ value }) {
  const server = value.model_server;
  const [first] = server.models;
  return html`<${Card} title="Model server" id="model-server"
      actions=${html`<${State} of=${server.is_reachable ? "ready" : "failed"}
        word=${server.is_reachable ? "reachable" : "not reachable"} />`}>
    <dl class="facts">
      <dt>Address</dt><dd class="mono"><${Text}>${server.url}<//></dd>
      ${server.reason && html`<dt>Trouble</dt><dd class="bad"><${Text}>${server.reason}<//></dd>`}
      ${first && html`<dt>${server.models.length === 1 ? "Model" : "Models"}</dt>
        <dd><${Text} class="mono">${first.id}<//>${server.models.length > 1 ? ` and ${count(server.models.length - 1)} more` : ""}</dd>
        <dt>Context</dt><dd>${first.context ? `${count(first.context)} tokens` : "not told"}</dd>`}
      <dt>Tools take</dt><dd><a href="#/tools?order=tokens">${count(value.tools.tokens)} tokens</a> of each request${first?.context && value.tools.tokens
        ? `, ${Math.round(value.tools.tokens / first.context * 100)} % of the context` : ""}</dd>
      <dt>Schemas as for</dt><dd>${server.schema_target}</dd>
    </dl>
  <//>`;
}

function Servers({ servers, tools }) {
  return html`<${Card} title="Tool servers" id="tool-servers" flush
      actions=${html`<span class="soft">${plural(tools.offered, "tool")}</span>`}>
    ${servers.length === 0 ? html`<${Empty}>No tool servers yet.<//>` : html`<div class="scroll"><table>
      <thead class="hidden"><tr><th>Server</th><th>State</th><th>Tools</th></tr></thead>
      <tbody>${servers.map((server) => html`<tr key=${server.label} class="go">
        <td class="name"><a class="whole" href=${`#/servers/${encodeURIComponent(server.label)}`}><${Text}>${server.label}<//></a></td>
        <td><${State} of=${server.state} /></td>
        <td class="number">${count(server.tools)}</td></tr>`)}</tbody></table></div>`}
  <//>`;
}

function Conversations({ conversations }) {
  return html`<${Card} title="Last conversations" id="last-conversations" flush>
    ${conversations.length === 0 ? html`<${Empty}>None yet. They show up here as they happen.<//>`
      : html`<div class="scroll"><table>
      <thead class="hidden"><tr><th>Conversation</th><th>State</th><th>When</th></tr></thead>
      <tbody>${conversations.map((one) => html`<tr key=${one.id} class="go">
        <td class="what"><a class="whole" href=${`#/conversations/${one.id}`}><${Text}>${one.title || one.model || "(no text)"}<//></a></td>
        <td><${State} of=${one.state} /></td>
        <td class="right"><${Ago} at=${one.began} /></td></tr>`)}</tbody></table></div>`}
  <//>`;
}

function FirstSteps({ value }) {
  const has = value.model_server.is_reachable;
  return html`<${Card} title="Three steps to the first tool call" id="first-steps">
    <ol class="steps">
      <li><span class=${`number ${has ? "is-done" : ""}`}>1</span><div><h3>${has ? "The model server answers" : "Start your model server"}</h3>
        <p class="soft">${has ? html`It is at <code><${Text}>${value.model_server.url}<//></code>.`
          : html`Toolway looks for it at <code><${Text}>${value.model_server.url}<//></code>. Is it elsewhere? Set${" "}
            <code>OPENAI_BASE_URL</code>, for LM Studio to <code>http://localhost:1234/v1</code>, for Ollama to${" "}
            <code>http://localhost:11434/v1</code>, and start Toolway anew.`}</p></div></li>
      <li><span class="number">2</span><div><h3>Add a tool server</h3>
        <p class="soft">A program or a URL that speaks MCP, or a service with an <code>openapi.json</code>. The${" "}
          <code>mcp.json</code> of Claude, Cursor or VS Code works as it is.</p>
        ${value.may_edit && html`<p class="row"><a class="button primary" href="#/servers/add">Add a server</a>
          <a class="button" href="#/servers/file">Write the file</a></p>`}</div></li>
      <li><span class="number">3</span><div><h3>Ask something</h3>
        <p class="soft">Point any OpenAI client here, as below, and ask for what the tools can do.</p></div></li>
    </ol>
  <//>`;
}

export function snippets(value) {
  const base = `${location.origin}/v1`;
  const model = value.model_server.models[0]?.id ?? "MODEL";
  const key = value.needs_key ? "YOUR_KEY" : "unused";
  const question = { model, messages: [{ role: "user", content: "Which tools do you have?" }] };
  const quoted = JSON.stringify(question).replaceAll("'", "'\\''");
  const all = [
    ["curl", "curl", `curl ${base}/chat/completions \\\n  -H 'Content-Type: application/json' \\\n${
      value.needs_key ? `  -H 'Authorization: Bearer ${key}' \\\n` : ""}  -d '${quoted}'`],
    ["python", "openai", `from openai import OpenAI\n\nclient = OpenAI(base_url="${base}", api_key="${key}")\nanswer = client.chat.completions.create(\n    model=${JSON.stringify(model)},\n    messages=[{"role": "user", "content": "Which tools do you have?"}],\n)\nprint(answer.choices[0].message.content)`],
    ["webui", "Open WebUI", `Admin Panel > Settings > Connections > OpenAI API > +\n\nURL  ${base}\nKey  ${key}`],
  ];
  if (value.paths.includes("/v1/messages")) {
    all.push(["claude", "Claude Code", `ANTHROPIC_BASE_URL=${location.origin} \\\nANTHROPIC_AUTH_TOKEN=${key} \\\nANTHROPIC_MODEL='${model}' \\\nclaude`]);
  }
  if (value.paths.includes("/mcp")) {
    const entry = { url: `${location.origin}/mcp`, ...(value.needs_key ? { headers: { Authorization: `Bearer ${key}` } } : {}) };
    all.push(["mcp", "mcp.json", JSON.stringify({ mcpServers: { toolway: entry } }, null, 2)]);
  }
  return all;
}

function Connect({ value }) {
  const all = snippets(value);
  const [chosen, choose] = useState(all[0][0]);
  const [, title, text] = all.find(([name]) => name === chosen);
  return html`<${Card} title="Connect a client" id="connect" flush>
    <${Tabs} label="Clients" tabs=${all.map(([name, label]) => [name, label])} chosen=${chosen} onChoose=${choose} />
    <${Panel} name=${chosen} class="body"><${Code} text=${text} what=${title} /><//>
  <//>`;
}
