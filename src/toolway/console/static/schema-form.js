/* A form made from a JSON Schema: nested objects, lists, choices, files. What is left empty is left out. */

import { useState } from "preact/hooks";
import { html, Text, visible } from "./ui.js";

const DEEP = 6;
let next = 0;
const useId = () => useState(() => `f${++next}`)[0];

/* a schema without its references and with one variant chosen */
function resolved(schema, root, seen = 0) {
  if (schema === true || schema == null || typeof schema !== "object") return {};
  if (typeof schema.$ref === "string" && seen < 20) {
    const target = schema.$ref.startsWith("#/")
      ? schema.$ref.slice(2).split("/").reduce((at, key) => at?.[key.replaceAll("~1", "/").replaceAll("~0", "~")], root) : undefined;
    const { $ref, ...rest } = schema;
    return { ...resolved(target ?? {}, root, seen + 1), ...rest };
  }
  if (Array.isArray(schema.allOf) && schema.allOf.length && seen < 20) {
    const { allOf, ...rest } = schema;
    return allOf.reduce((all, part) => {
      const one = resolved(part, root, seen + 1);
      return { ...all, ...one, properties: { ...all.properties, ...one.properties }, required: [...all.required ?? [], ...one.required ?? []] };
    }, rest);
  }
  return schema;
}

const typesOf = (schema) => [schema.type ?? []].flat().filter((type) => type !== "null");

function kindOf(schema) {
  const [type] = typesOf(schema);
  if (Array.isArray(schema.enum)) return "enum";
  if ("const" in schema) return "const";
  const variants = (schema.anyOf ?? schema.oneOf ?? []).filter((one) => one?.type !== "null");
  const types = variants.map((one) => one?.type);
  if (types.includes("string") && types.every((one) => ["string", "number", "integer", "boolean"].includes(one))) return "string";
  if (variants.length > 1 && !schema.properties) return "variants";
  if (variants.length === 1) return "single";
  if (typesOf(schema).length > 1) return "types";
  if (type) return type;
  return schema.properties ? "object" : schema.items ? "array" : "any";
}

const isFile = (schema) => schema.format === "binary" || schema.format === "byte" || schema.contentEncoding === "base64";

export function startValue(schema, root = schema) {
  const known = resolved(schema, root);
  if ("default" in known && known.default !== null) return known.default;
  if ("const" in known) return known.const;
  return { object: {}, array: [], boolean: false }[kindOf(known)];
}

export function SchemaForm({ schema, value, onChange, root = schema }) {
  return html`<${Members} schema=${resolved(schema, root)} root=${root} value=${value ?? {}} onChange=${onChange} depth=${0} />`;
}

function Members({ schema, root, value, onChange, depth, skip = [] }) {
  const required = new Set(schema.required ?? []);
  const names = Object.keys(schema.properties ?? {}).filter((name) => !skip.includes(name));
  names.sort((one, other) => required.has(other) - required.has(one));
  const set = (name) => (changed) => {
    const { [name]: old, ...rest } = value;
    onChange(changed === undefined ? rest : { ...value, [name]: changed });
  };
  const extra = schema.additionalProperties;
  return html`<div class="members">
    ${names.map((name) => html`<${Field} key=${name} name=${name} schema=${schema.properties[name]} root=${root}
      value=${value[name]} required=${required.has(name)} onChange=${set(name)} depth=${depth} />`)}
    ${(extra || names.length === 0) && extra !== false && (extra || depth > 0) && html`<${Extra} schema=${extra === true || !extra ? {} : extra} root=${root}
      known=${names} value=${value} onChange=${onChange} depth=${depth} />`}
    ${names.length === 0 && depth === 0 && !extra && html`<p class="soft">No arguments.</p>`}
  </div>`;
}

function Field({ name, schema, root, value, required, onChange, depth }) {
  const id = useId();
  const known = resolved(schema, root);
  const label = html`<${Text}>${name}<//>${required && html`<span class="soft" title="required"> *</span>`}`;
  const hint = known.description && html`<span class="hint" id=${`${id}h`}><${Text}>${String(known.description).slice(0, 600)}<//></span>`;
  const props = { id, schema: known, root, value, onChange, depth, required, name, described: known.description ? `${id}h` : undefined };
  const kind = kindOf(known);
  if (kind === "object" && depth < DEEP) {
    return html`<fieldset class="field"><legend>${label}</legend>${hint}
      ${value === undefined && !required ? html`<div><button type="button" class="compact" onClick=${() => onChange(startValue(known, root))}>Fill in</button></div>`
        : html`<${Members} schema=${known} root=${root} value=${value ?? {}} onChange=${onChange} depth=${depth + 1} />
          ${!required && html`<div><button type="button" class="quiet compact" onClick=${() => onChange(undefined)}>Leave out</button></div>`}`}
    </fieldset>`;
  }
  if (kind === "array" && depth < DEEP) {
    return html`<fieldset class="field"><legend>${label}</legend>${hint}<${List} ...${props} /></fieldset>`;
  }
  if (kind === "variants" || kind === "types" || kind === "single") return html`<${Variants} ...${props} label=${label} hint=${hint} />`;
  return html`<div class="field"><label for=${id}>${label}</label>${hint}<${Input} ...${props} /></div>`;
}

function Variants({ schema, root, value, onChange, depth, required, name, label, hint, id }) {
  const variants = (kindOf(schema) === "types" ? typesOf(schema).map((type) => ({ ...schema, type, anyOf: undefined, oneOf: undefined }))
    : (schema.anyOf ?? schema.oneOf).filter((one) => one?.type !== "null").map((one) => resolved(one, root)))
    .map((one) => one.description ? one : { ...one, description: undefined });
  const [chosen, choose] = useState(() => Math.max(0, variants.findIndex((one) => fits(one, value))));
  const titles = variants.map((one, index) => one.title ?? (typesOf(one)[0] ?? `form ${index + 1}`));
  if (variants.length === 1) {
    return html`<${Field} name=${name} schema=${{ ...variants[0], description: schema.description ?? variants[0].description }} root=${root}
      value=${value} required=${required} onChange=${onChange} depth=${depth} />`;
  }
  return html`<fieldset class="field"><legend>${label}</legend>${hint}
    <select id=${id} aria-label=${`Form of ${visible(name)}`} value=${chosen} onChange=${(event) => { choose(Number(event.target.value)); onChange(undefined); }}>
      ${titles.map((title, index) => html`<option key=${index} value=${index}>${visible(title)}</option>`)}</select>
    <${Field} key=${chosen} name=${name} schema=${variants[chosen]} root=${root} value=${value} required=${required}
      onChange=${onChange} depth=${depth + 1} /></fieldset>`;
}

function fits(schema, value) {
  const kind = kindOf(schema);
  if (value === undefined) return false;
  if (Array.isArray(value)) return kind === "array";
  if (kind === "integer") return Number.isInteger(value);
  return kind === typeof value || (kind === "enum" && schema.enum.includes(value));
}

function List({ schema, root, value, onChange, depth, name }) {
  const items = Array.isArray(value) ? value : [];
  const item = resolved(Array.isArray(schema.items) ? schema.items[0] : schema.prefixItems?.[0] ?? schema.items ?? {}, root);
  const start = startValue(item, root);
  const set = (index) => (changed) => onChange(items.map((old, at) => at === index ? changed ?? (kindOf(item) === "string" ? "" : null) : old));
  return html`<div class="column items">
    ${items.map((one, index) => html`<div class="row top still" key=${index}>
      <div class="grow"><${Field} name=${`${name} ${index + 1}`} schema=${{ ...item, description: undefined }} root=${root} value=${one} required onChange=${set(index)} depth=${depth + 1} /></div>
      <button type="button" class="quiet compact" aria-label=${`Remove ${visible(name)} ${index + 1}`} onClick=${() => {
        const left = items.filter((_, at) => at !== index);
        onChange(left.length ? left : undefined);
      }}>Remove</button></div>`)}
    <div><button type="button" class="compact" onClick=${() => onChange([...items, start === undefined ? (kindOf(item) === "string" ? "" : null) : start])}>Add</button></div>
  </div>`;
}

/* members that no schema names: a name and a value each */
function Extra({ schema, root, known, value, onChange, depth }) {
  const [name, setName] = useState("");
  const id = useId();
  const mine = Object.keys(value).filter((key) => !known.includes(key));
  const add = () => {
    if (!name || name in value) return;
    onChange({ ...value, [name]: startValue(schema, root) ?? "" });
    setName("");
  };
  return html`<div class="column items">
    ${mine.map((key) => html`<div class="row top still" key=${key}>
      <div class="grow"><${Field} name=${key} schema=${schema} root=${root} value=${value[key]} required depth=${depth + 1}
        onChange=${(changed) => onChange({ ...value, [key]: changed ?? "" })} /></div>
      <button type="button" class="quiet compact" aria-label=${`Remove ${visible(key)}`} onClick=${() => {
        const { [key]: gone, ...rest } = value;
        onChange(rest);
      }}>Remove</button></div>`)}
    <div class="row still"><input id=${id} aria-label="Name" placeholder="Name" value=${name} onInput=${(event) => setName(event.target.value)}
      onKeyDown=${(event) => { if (event.key === "Enter") { event.preventDefault(); add(); } }} />
      <button type="button" class="compact" onClick=${add}>Add</button></div>
  </div>`;
}

function Input({ id, schema, value, onChange, required, described }) {
  const kind = kindOf(schema);
  const common = { id, "aria-describedby": described, required };
  if (kind === "enum") {
    return html`<select ...${common} value=${value === undefined ? "" : JSON.stringify(value)}
      onChange=${(event) => onChange(event.target.value === "" ? undefined : JSON.parse(event.target.value))}>
      <option value="">${required ? "choose" : "(left out)"}</option>
      ${schema.enum.map((one) => html`<option key=${JSON.stringify(one)} value=${JSON.stringify(one)}>${visible(typeof one === "string" ? one : JSON.stringify(one))}</option>`)}</select>`;
  }
  if (kind === "const") return html`<input ...${common} value=${String(schema.const)} readonly />`;
  if (kind === "boolean") {
    return html`<select ...${common} value=${value === undefined ? "" : String(value)}
      onChange=${(event) => onChange({ "": undefined, true: true, false: false }[event.target.value])}>
      <option value="">${"default" in schema ? `(left out: ${schema.default})` : "(left out)"}</option><option value="true">true</option><option value="false">false</option></select>`;
  }
  if (kind === "integer" || kind === "number") {
    return html`<input ...${common} type="number" step=${kind === "integer" ? 1 : "any"} min=${schema.minimum} max=${schema.maximum}
      placeholder=${schema.default ?? ""} value=${value ?? ""} onInput=${(event) => onChange(event.target.value === "" ? undefined : Number(event.target.value))} />`;
  }
  if (kind === "string" && isFile(schema)) return html`<${File} common=${common} value=${value} onChange=${onChange} />`;
  if (kind === "string") {
    const long = (schema.maxLength ?? 0) > 200 || /\n/.test(value ?? "") || ["text", "content", "body", "code"].includes(id);
    const type = { date: "date", time: "text", email: "email", uri: "text" }[schema.format] ?? "text";
    const input = (event) => onChange(event.target.value === "" && !required ? undefined : event.target.value);
    return long ? html`<textarea ...${common} rows="5" value=${value ?? ""} onInput=${input}></textarea>`
      : html`<input ...${common} type=${type} placeholder=${schema.default ?? schema.examples?.[0] ?? ""} value=${value ?? ""} onInput=${input} />`;
  }
  return html`<${Json} common=${common} value=${value} onChange=${onChange} />`;
}

function File({ common, value, onChange }) {
  const read = (event) => {
    const [file] = event.target.files;
    if (!file) { onChange(undefined); return; }
    const reader = new FileReader();
    reader.onload = () => onChange(String(reader.result).split(",")[1] ?? "");
    reader.readAsDataURL(file);
  };
  return html`<input ...${common} required=${common.required && !value} type="file" onChange=${read} />`;
}

export function Json({ common = {}, value, onChange, rows = 4 }) {
  const [text, setText] = useState(value === undefined ? "" : JSON.stringify(value, null, 2));
  const [wrong, setWrong] = useState("");
  const input = (event) => {
    setText(event.target.value);
    try {
      onChange(event.target.value.trim() ? JSON.parse(event.target.value) : undefined);
      setWrong("");
    } catch (error) {
      setWrong(error.message);
      onChange(undefined, error.message);
    }
  };
  return html`<textarea ...${common} class="code" rows=${rows} placeholder="JSON" value=${text} onInput=${input}
    aria-invalid=${wrong ? "true" : undefined}></textarea>${wrong && html`<span class="wrong">${wrong}</span>`}`;
}
