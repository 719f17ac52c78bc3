// AI SDK: generateText and streamText, with the provider for compatible servers, OpenAI's own or Anthropic's.
// Arguments and output are those of case.py. MANNER `unstored` is OpenAI's provider with `store: false`.

import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';

const [url, api, mode, tools, manner, ...asked] = process.argv.slice(2);
const [kind, serverLabel] = tools.split('=');
const questions = asked.length ? asked : ['What is the weather in Paris?'];
const told = { text: '', tools: [], asked: [], ran: [], usage: null, error: null };

const openai = createOpenAI({ baseURL: url, apiKey: 'unused' });
const models = {
  chat: {
    compatible: () =>
      createOpenAICompatible({ name: 'toolway', baseURL: url, apiKey: 'unused', includeUsage: true }).chatModel('mock'),
    openai: () => openai.chat('mock'),
  },
  responses: { openai: () => openai('mock'), unstored: () => openai('mock') },
  messages: { anthropic: () => createAnthropic({ baseURL: url, apiKey: 'unused' })('mock') },
};

const double = tool({
  description: 'Double a number.',
  inputSchema: z.object({ x: z.number() }),
  execute: async ({ x }) => {
    told.ran.push(x);
    return 2 * x;
  },
});
const server = () =>
  openai.tools.mcp({ serverLabel, serverUrl: 'toolway:', requireApproval: kind === 'never' ? 'never' : 'always' });

const request = {
  model: models[api][manner](),
  stopWhen: stepCountIs(5),
  ...(kind === 'own' ? { tools: { double } } : {}),
  ...(serverLabel ? { tools: { mcp: server() } } : {}),
  ...(manner === 'unstored'
    ? { providerOptions: { openai: { store: false, include: ['reasoning.encrypted_content'] } } }
    : {}),
};

function note(error) {
  const cause = error.lastError ?? error;
  told.error = { type: error.constructor.name, status: cause.statusCode ?? null, message: error.message ?? String(error) };
}

async function whole(messages) {
  const result = await generateText({ ...request, messages });
  told.text += result.steps.map((step) => step.text).join('');
  return result;
}

async function streamed(messages) {
  const result = streamText({ ...request, messages, onError: () => {} });
  for await (const part of result.fullStream) {
    if (part.type === 'text-delta') told.text += part.text;
    if (part.type === 'error') note(part.error);
  }
  return told.error ? null : { steps: await result.steps, responseMessages: await result.responseMessages, content: await result.content };
}

async function play() {
  const messages = [];
  for (const question of questions) {
    messages.push({ role: 'user', content: question });
    for (let waits = true; waits; ) {
      const result = await { whole, streamed }[mode](messages);
      if (!result) return;
      const parts = result.steps.flatMap((step) => step.content);
      const requests = parts.filter((part) => part.type === 'tool-approval-request');
      told.asked.push(...requests.map((part) => part.toolCall.toolName));
      told.tools.push(...parts.filter((part) => part.type === 'tool-result').map((part) => part.toolName));
      told.usage = result.steps.at(-1).usage.totalTokens ?? null;
      messages.push(...result.responseMessages);
      const approved = kind === 'approve';
      const answer = { type: 'tool-approval-response', approved, providerExecuted: true };
      const content = requests.map(({ approvalId }) => ({ ...answer, approvalId }));
      if (content.length) messages.push({ role: 'tool', content });
      waits = content.length > 0;
    }
  }
}

try {
  await play();
} catch (error) {
  note(error);
}
console.log(JSON.stringify(told));
