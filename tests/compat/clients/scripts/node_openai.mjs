// openai-node: `create`, or the helper `runTools`, which runs the client's own tools by itself.
// Arguments and output are those of case.py.

import OpenAI from 'openai';

const [url, api, mode, tools, manner, ...asked] = process.argv.slice(2);
const questions = asked.length ? asked : ['What is the weather in Paris?'];
const told = { text: '', tools: [], ran: [], usage: null, error: null };
let messages = [];
const stream = mode === 'streamed' ? { stream: true, stream_options: { include_usage: true } } : {};
const client = new OpenAI({ baseURL: url, apiKey: 'unused' });

const double = {
  type: 'function',
  function: {
    name: 'double',
    parameters: { type: 'object', properties: { x: { type: 'integer' } }, required: ['x'] },
    parse: JSON.parse,
    function: ({ x }) => {
      told.ran.push(x);
      return String(2 * x);
    },
  },
};

async function runTools() {
  const runner = client.chat.completions.runTools({
    model: 'mock',
    messages,
    tools: tools === 'own' ? [double] : [],
    ...stream,
  });
  runner.on('content', (text) => (told.text += text));
  runner.on('message', (message) => {
    told.tools.push(...(message.tool_calls ?? []).map((call) => call.function.name));
  });
  const completion = await runner.finalChatCompletion();
  told.usage = completion.usage?.total_tokens ?? null;
  messages = runner.messages;
}

async function create() {
  const answer = await client.chat.completions.create({ model: 'mock', messages, ...stream });
  const parts = mode === 'streamed' ? answer : [answer];
  for await (const part of parts) {
    told.usage = part.usage?.total_tokens ?? told.usage;
    for (const { delta, message } of part.choices) {
      const said = delta ?? message;
      told.text += said.content ?? '';
      told.tools.push(...(said.tool_calls ?? []).map((call) => call.function.name));
    }
  }
}

try {
  for (const content of questions) {
    messages.push({ role: 'user', content });
    await { chat: { create, runTools } }[api][manner]();
  }
} catch (error) {
  told.error = { type: error.constructor.name, status: error.status ?? null, message: error.message };
}
console.log(JSON.stringify(told));
