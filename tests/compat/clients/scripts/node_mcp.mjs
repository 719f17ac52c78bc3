// The TypeScript SDK of MCP: what it lists and what a call returns, at a URL or from a program.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [place, ...args] = process.argv.slice(2);
const transport = place.startsWith("http")
  ? new StreamableHTTPClientTransport(new URL(place))
  : new StdioClientTransport({ command: place, args });
const client = new Client({ name: "test", version: "1" });
await client.connect(transport);
const { tools } = await client.listTools();
const called = await client.callTool({ name: "measure", arguments: { what: "room" } });
const prompts = (await client.listPrompts()).prompts.map((prompt) => prompt.name);
const resources = (await client.listResources()).resources.map((resource) => resource.uri);
console.log(JSON.stringify({ tools: tools.map((tool) => tool.name), called, prompts, resources }));
await client.close();
