// The TypeScript SDK of MCP: what it lists and what a call returns, at a URL or from a program.
// Its first generation (2025-11-25 and older), or its second in its newest version (2026-07-28).
const [generation, place, ...args] = process.argv.slice(2);
const packages = {
  first: ["sdk/client/index.js", "sdk/client/stdio.js", "sdk/client/streamableHttp.js"],
  second: ["client", "client/stdio"],
}[generation];
const loaded = await Promise.all(packages.map((name) => import(`@modelcontextprotocol/${name}`)));
const { Client, StdioClientTransport, StreamableHTTPClientTransport } = Object.assign({}, ...loaded);

const transport = place.startsWith("http")
  ? new StreamableHTTPClientTransport(new URL(place))
  : new StdioClientTransport({ command: place, args });
const newest = { versionNegotiation: { mode: { pin: "2026-07-28" } } };
const client = new Client({ name: "test", version: "1" }, generation === "second" ? newest : {});
await client.connect(transport);
const { tools } = await client.listTools();
const called = await client.callTool({ name: "measure", arguments: { what: "room" } });
const prompts = (await client.listPrompts()).prompts.map((prompt) => prompt.name);
const resources = (await client.listResources()).resources.map((resource) => resource.uri);
console.log(JSON.stringify({ tools: tools.map((tool) => tool.name), called, prompts, resources }));
await client.close();
