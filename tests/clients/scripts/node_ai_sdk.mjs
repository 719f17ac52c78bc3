// AI SDK: generateText and streamText, with the provider for compatible servers or OpenAI's own.
// Arguments and output are those of case.py.

import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';

const [url, api, mode, tools, manner] = process.argv.slice(2);
const told = { text: '', tools: [], ran: [], usage: null, error: null };

const models = {
  compatible: {
    chat: () =>
      createOpenAICompatible({ name: 'toolway', baseURL: url, apiKey: 'unused', includeUsage: true }).chatModel('mock'),
  },
  openai: { chat: () => createOpenAI({ baseURL: url, apiKey: 'unused' }).chat('mock') },
};

const double = tool({
  description: 'Double a number.',
  inputSchema: z.object({ x: z.number() }),
  execute: async ({ x }) => {
    told.ran.push(x);
    return 2 * x;
  },
});

const request = {
  model: models[manner][api](),
  prompt: 'What is the weather in Paris?',
  stopWhen: stepCountIs(5),
  ...(tools === 'own' ? { tools: { double } } : {}),
};

function note(error) {
  const cause = error.lastError ?? error;
  told.error = { type: error.constructor.name, status: cause.statusCode ?? null, message: error.message ?? String(error) };
}

async function whole() {
  const result = await generateText(request);
  told.text = result.steps.map((step) => step.text).join('');
  told.tools = result.steps.flatMap((step) => step.toolCalls.map((call) => call.toolName));
  told.usage = result.steps.at(-1).usage.totalTokens ?? null;
}

async function streamed() {
  const result = streamText({ ...request, onError: () => {} });
  for await (const part of result.fullStream) {
    if (part.type === 'text-delta') told.text += part.text;
    if (part.type === 'tool-call') told.tools.push(part.toolName);
    if (part.type === 'finish-step') told.usage = part.usage.totalTokens ?? null;
    if (part.type === 'error') note(part.error);
  }
}

try {
  await { whole, streamed }[mode]();
} catch (error) {
  note(error);
}
console.log(JSON.stringify(told));
