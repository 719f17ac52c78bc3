/* Markdown as elements, never as HTML: what a model writes cannot run, load or look like anything else. */

import { html, Text, visible } from "./ui.js";

const INLINE = /(`+)([\s\S]*?[^`])\1(?!`)|\*\*([^*\n][\s\S]*?)\*\*|__([^_\n][\s\S]*?)__|(?<![\w*])\*([^*\s][^*\n]*?)\*(?!\w)|(?<!\w)_([^_\s][^_\n]*?)_(?!\w)|~~([^~\n]+)~~|!\[([^\]\n]*)\]\(((?:[^()\s]|\([^()\s]*\))*)(?:[ \t][^)\n]*)?\)|\[([^\]\n]+)\]\(((?:[^()\s]|\([^()\s]*\))+)(?:[ \t][^)\n]*)?\)|(https?:\/\/[^\s<>()[\]"'`]+)/;

function inline(text, depth = 0) {
  const found = [];
  let rest = text;
  while (rest && depth < 8) {
    const match = INLINE.exec(rest);
    if (!match) break;
    if (match.index) found.push(visible(rest.slice(0, match.index)));
    const [, , code, bold, bold2, italic, italic2, struck, alt, source, label, target, bare] = match;
    if (code !== undefined) found.push(html`<code>${visible(code)}</code>`);
    else if (bold ?? bold2) found.push(html`<strong>${inline(bold ?? bold2, depth + 1)}</strong>`);
    else if (italic ?? italic2) found.push(html`<em>${inline(italic ?? italic2, depth + 1)}</em>`);
    else if (struck) found.push(html`<del>${inline(struck, depth + 1)}</del>`);
    else if (source !== undefined) found.push(html`<span class="soft">[picture: ${visible(alt || source)}]</span>`);
    else found.push(html`<${Link} label=${label ?? bare} target=${target ?? bare} />`);
    rest = rest.slice(match.index + match[0].length);
  }
  if (rest) found.push(visible(rest));
  return found;
}

/* nothing is opened unasked, and where a link leads stands beside it */
function Link({ label, target }) {
  let url;
  try {
    url = new URL(target);
  } catch {
    url = null;
  }
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) return html`<span>${visible(label)} <span class="soft small">(${visible(target)})</span></span>`;
  return html`<a href=${url.href} target="_blank" rel="noopener noreferrer nofollow">${visible(label)}</a>${
    label === target ? null : html` <span class="soft small">(${visible(url.host || target)})</span>`}`;
}

const LIST = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const FENCE = /^\s*(`{3,}|~{3,})\s*([\w+#.-]*)/;
const RULE = /^\s*([-*_])\s*(\1\s*){2,}$/;
const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim());

export function Markdown({ text }) {
  return html`<div class="markdown">${blocks(text.split("\n"), 0)}</div>`;
}

function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    if (fence) {
      let end = at + 1;
      while (end < lines.length && !lines[end].trim().startsWith(fence[1])) end++;
      found.push(html`<pre class="block" tabindex="0" role="region" aria-label=${fence[2] || "code"}>${visible(lines.slice(at + 1, end).join("\n"))}</pre>`);
      at = end + 1;
    } else if (!line.trim()) {
      at++;
    } else if (/^#{1,6}\s/.test(line)) {
      found.push(html`<p class="heading">${inline(line.replace(/^#+\s*/, "").replace(/\s*#+\s*$/, ""))}</p>`);
      at++;
    } else if (RULE.test(line)) {
      found.push(html`<hr />`);
      at++;
    } else if (/^\s*>/.test(line) && depth < 6) {
      let end = at;
      while (end < lines.length && /^\s*>/.test(lines[end])) end++;
      found.push(html`<blockquote>${blocks(lines.slice(at, end).map((one) => one.replace(/^\s*> ?/, "")), depth + 1)}</blockquote>`);
      at = end;
    } else if (LIST.test(line) && depth < 6) {
      const [items, end] = listItems(lines, at);
      const inner = items.map((item) => html`<li>${item.length === 1 ? inline(item[0]) : blocks(item, depth + 1)}</li>`);
      found.push(/\d/.test(LIST.exec(line)[2]) ? html`<ol start=${parseInt(LIST.exec(line)[2], 10)}>${inner}</ol>` : html`<ul>${inner}</ul>`);
      at = end;
    } else if (line.includes("|") && /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/.test(lines[at + 1] ?? "") && lines[at + 1].includes("-")) {
      let end = at + 2;
      while (end < lines.length && lines[end].includes("|")) end++;
      found.push(html`<div class="scroll"><table><thead><tr>${cells(line).map((cell) => html`<th>${inline(cell)}</th>`)}</tr></thead>
        <tbody>${lines.slice(at + 2, end).map((row) => html`<tr>${cells(row).map((cell) => html`<td>${inline(cell)}</td>`)}</tr>`)}</tbody></table></div>`);
      at = end;
    } else {
      let end = at + 1;
      while (end < lines.length && lines[end].trim() && !FENCE.test(lines[end]) && !LIST.test(lines[end]) && !/^(#{1,6}\s|\s*>)/.test(lines[end])) end++;
      found.push(html`<p>${inline(lines.slice(at, end).join("\n"))}</p>`);
      at = end;
    }
  }
  return found;
}

function listItems(lines, at) {
  const indent = LIST.exec(lines[at])[1].length;
  const items = [];
  while (at < lines.length) {
    const found = LIST.exec(lines[at]);
    if (found && found[1].length <= indent + 1) {
      if (found[1].length < indent) break;
      items.push([found[3]]);
    } else if (lines[at].trim() && (found || /^\s{2,}/.test(lines[at]))) items.at(-1).push(lines[at].slice(Math.min(indent + 2, lines[at].search(/\S/))));
    else if (lines[at].trim() || !LIST.test(lines[at + 1] ?? "")) break;
    at++;
  }
  return [items, at];
}
