// @anthropic-ai/sdk: `create`, the helper `stream`, and `toolRunner`; what it is told and prints is in case.py.
import Anthropic from "@anthropic-ai/sdk";

const [url, , mode, tools, manner, ...questions] = process.argv.slice(2);
const told = { text: "", tools: [], asked: [], ran: [], usage: null, error: null };
const client = new Anthropic({ baseURL: url.replace(/\/v1$/, ""), apiKey: "unused", maxRetries: 0 });
const schema = { type: "object", properties: { x: { type: "integer" } }, required: ["x"] };
const double = { name: "double", description: "Double a number.", input_schema: schema };
const run = ({ x }) => (told.ran.push(x), String(2 * x));
const note = (message) => {
  told.text += message.content.filter((block) => block.type === "text").map((block) => block.text).join("");
  told.tools.push(...message.content.filter((block) => block.type === "tool_use").map((block) => block.name));
  told.usage = message.usage.input_tokens + message.usage.output_tokens;
};

async function byHand(messages) {
  const request = { model: "mock", max_tokens: 2000, ...(tools === "own" ? { tools: [double] } : {}) };
  for (;;) {
    const message =
      mode === "streamed"
        ? await client.messages.stream({ ...request, messages }).finalMessage()
        : await client.messages.create({ ...request, messages });
    note(message);
    messages.push({ role: "assistant", content: message.content });
    if (message.stop_reason !== "tool_use") return;
    const uses = message.content.filter((block) => block.type === "tool_use");
    const results = uses.map((use) => ({ type: "tool_result", tool_use_id: use.id, content: run(use.input) }));
    messages.push({ role: "user", content: results });
  }
}

async function toolRunner(messages) {
  const own = { ...double, run, parse: (input) => input };
  const runner = client.beta.messages.toolRunner({
    model: "mock", max_tokens: 2000, messages, tools: tools === "own" ? [own] : [], stream: mode === "streamed",
  });
  for await (const turn of runner) note(mode === "streamed" ? await turn.finalMessage() : turn);
}

try {
  const messages = [];
  for (const content of questions.length ? questions : ["What is the weather in Paris?"]) {
    messages.push({ role: "user", content });
    await { create: byHand, toolRunner }[manner](messages);
  }
} catch (error) {
  told.error = { type: error.constructor.name, status: error.status ?? null, message: String(error.message) };
}
console.log(JSON.stringify(told));
