// openai-node: `responses.create`, or the helper `responses.stream`. Arguments and output are those of case.py, MANNER is
// that of python_openai_responses.py.

import OpenAI from 'openai';

const [url, , mode, tools, manner, ...asked] = process.argv.slice(2);
const [kind, label] = tools.split('=');
const [how, holds] = manner.split(' ');
const questions = asked.length ? asked : ['What is the weather in Paris?'];
const told = { text: '', tools: [], asked: [], ran: [], usage: null, error: null };
const client = new OpenAI({ baseURL: url, apiKey: 'unused' });

const double = {
  type: 'function',
  name: 'double',
  parameters: { type: 'object', properties: { x: { type: 'integer' } }, required: ['x'] },
  strict: false,
};
const server = { type: 'mcp', server_label: label, require_approval: kind === 'never' ? 'never' : 'always' };

async function create(request) {
  if (mode === 'whole') {
    const response = await client.responses.create(request);
    told.text += response.output_text;
    return response;
  }
  let last;
  for await (const event of await client.responses.create({ ...request, stream: true })) {
    if (event.type === 'response.output_text.delta') told.text += event.delta;
    last = event;
  }
  return last.response;
}

async function stream(request) {
  const events = client.responses.stream(request);
  events.on('response.output_text.delta', ({ delta }) => (told.text += delta));
  return events.finalResponse();
}

function answered(item) {
  if (item.type === 'function_call') {
    const { x } = JSON.parse(item.arguments);
    told.tools.push(item.name);
    told.ran.push(x);
    return [{ type: 'function_call_output', call_id: item.call_id, output: String(2 * x) }];
  }
  if (item.type === 'mcp_approval_request') {
    told.asked.push(item.name);
    return [{ type: 'mcp_approval_response', approval_request_id: item.id, approve: kind === 'approve' }];
  }
  if (item.type === 'mcp_call') told.tools.push(item.name);
  return [];
}

async function play() {
  const request = {
    model: 'mock',
    tools: [...(kind === 'own' ? [double] : []), ...(label ? [server] : [])],
    ...(holds === 'items' ? { store: false, include: ['reasoning.encrypted_content'] } : {}),
  };
  let items = [];
  for (const question of questions) {
    items.push({ role: 'user', content: question });
    for (let more = null; more === null || more.length; ) {
      const response = await { create, stream }[how]({ ...request, input: items });
      told.usage = response.usage.total_tokens;
      more = response.output.flatMap(answered);
      if (holds === 'previous') request.previous_response_id = response.id;
      items = holds === 'previous' ? [...more] : [...items, ...response.output, ...more];
    }
  }
}

try {
  await play();
} catch (error) {
  told.error = { type: error.constructor.name, status: error.status ?? null, message: error.message };
}
console.log(JSON.stringify(told));
