"""A stdio MCP server that misbehaves: argv[1] is the fault at start, the tool is the fault of a call."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

FAULT = sys.argv[1] if len(sys.argv) > 1 else ""
OUT = sys.stdout.buffer
TOOLS = [
    *(
        "ok",
        "pid",
        "noise",
        "bad_utf8",
        "partial",
        "huge",
        "exit",
        "whisper",
        "big_stderr",
        "storm",
        "unknown_notification",
    ),
    *("sampling", "elicitation", "roots", "double", "crlf", "batch", "hold", "malformed", "child", "echo"),
    *("cancelled", "grow", "progress", "env", "nameless_error", "close_output", "listed", "gate"),
    *(
        "deep",
        "digits",
        "surrogate",
        "bad_json",
        "null_id",
        "foreign_error",
        "foreign_result",
        "pretty",
        "flood",
    ),
]
CANCELLED = []
LISTED = []


def send(message):
    OUT.write(json.dumps(message).encode() + b"\n")
    OUT.flush()


def notify(method, **params):
    send({"jsonrpc": "2.0", "method": method, "params": params})


def answer(request, result):
    send({"jsonrpc": "2.0", "id": request["id"], "result": result})


def raw(request, result):
    OUT.write(b'{"jsonrpc":"2.0","id":%d,"result":%s}\n' % (request["id"], result))
    OUT.flush()


def flood(stream, line):
    while True:
        try:
            os.write(stream, line * 100)
        except BlockingIOError:
            time.sleep(0.001)


def text(said):
    return {"content": [{"type": "text", "text": said}]}


def tool(name, **more):
    return {"name": name, "inputSchema": {"type": "object"}, **more}


def ask(method, params):
    send({"jsonrpc": "2.0", "id": "srv1", "method": method, "params": params})
    reply = json.loads(sys.stdin.buffer.readline())
    return text(json.dumps(reply.get("error") or reply.get("result")))


def list_tools(request):
    tools = [tool(name) for name in TOOLS]
    extra = {
        "empty_schema": {"name": "broken", "inputSchema": {}},
        "null_schema": {"name": "broken", "inputSchema": None},
        "nulls": tool("broken", description=None, annotations=None, title=None, outputSchema=None),
        "double_tool": tool("ok"),
        "weird_name": tool("a b/c:é" * 20),
        "bad_output_schema": tool("broken", outputSchema={"type": "array"}),
        "nameless": {"inputSchema": {"type": "object"}},
    }
    if FAULT in extra:
        tools.insert(1, extra[FAULT])
    cursor = (request.get("params") or {}).get("cursor")
    if FAULT == "cursor_loop":
        return {"tools": tools, "nextCursor": "again"}
    if FAULT == "pages":
        page = int(cursor or 0)
        more = {"nextCursor": str(page + 1)} if page < 4 else {}
        return {"tools": [tool(f"page{page}_{n}") for n in range(3)], **more}
    return {"tools": tools}


def call(request):
    name, arguments = request["params"]["name"], request["params"].get("arguments")
    good = {"jsonrpc": "2.0", "id": request["id"], "result": text("fine")}
    match name:
        case "pid":
            answer(request, text(str(os.getpid())))
        case "echo":
            answer(request, text(json.dumps(arguments)))
        case "env":
            answer(request, text(json.dumps(dict(os.environ))))
        case "noise":
            print('DEBUG: something\n{"a":1}\n[1]\n{not json', flush=True)
            send(good)
        case "bad_utf8":
            OUT.write(b"\xff\xfe garbage\n")
            good["result"] = text("X")
            OUT.write(json.dumps(good).encode().replace(b"X", b"\xff") + b"\n")
            OUT.flush()
        case "partial":
            OUT.write(b'{"jsonrpc":"2.0","id":')
            OUT.flush()
            os._exit(1)
        case "huge":
            answer(request, text("x" * int(arguments["bytes"])))
        case "exit":
            print("about to fail", file=sys.stderr, flush=True)
            os._exit(9)
        case "whisper":
            print("of the call before", file=sys.stderr, flush=True)
            send(good)
        case "big_stderr":
            sys.stderr.write("e" * 5_000_000)
            sys.stderr.flush()
            send(good)
        case "storm":
            line = b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}\n'
            OUT.write(line * int(arguments["times"]))
            send(good)
        case "grow":
            TOOLS.append("grown")
            notify("notifications/tools/list_changed")
            send(good)
        case "unknown_notification":
            notify("notifications/foo", x=1)
            send(good)
        case "sampling":
            message = {"role": "user", "content": {"type": "text", "text": "hi"}}
            answer(request, ask("sampling/createMessage", {"messages": [message], "maxTokens": 5}))
        case "elicitation":
            schema = {"type": "object", "properties": {}}
            answer(request, ask("elicitation/create", {"message": "?", "requestedSchema": schema}))
        case "roots":
            answer(request, ask("roots/list", {}))
        case "double":
            send(good)
            send(good)
        case "deep":
            raw(request, b'{"structuredContent":%s}' % (b'{"a":' * 3000 + b"1" + b"}" * 3000))
        case "digits":
            raw(request, b'{"structuredContent":{"n":%s}}' % (b"9" * 5000))
        case "surrogate":
            raw(request, b'{"content":[{"type":"text","text":"a\\ud83cb"}]}')
        case "bad_json":
            raw(request, b"{oops")
        case "null_id":
            send({"jsonrpc": "2.0", "id": None, "error": {"code": -32603, "message": "no idea who asked"}})
        case "foreign_error":
            send({"jsonrpc": "2.0", "id": "x9", "error": {"code": -32603, "message": "no idea who asked"}})
        case "foreign_result":
            send({**good, "id": 987654})
        case "pretty":
            OUT.write(json.dumps(good, indent=2).encode() + b"\n")
            OUT.flush()
        case "flood":
            send(good)
            log = json.dumps(
                {"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "x" * 50}}
            )
            lines = {
                "stderr": b"e" * 60,
                "output": b"blah",
                "log": log.encode(),
                "changes": b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}',
                "answers": b'{"jsonrpc":"2.0","id":999999,"result":{}}',
                "late": b'{"jsonrpc":"2.0","id":1,"result":{}}',
            }
            line = lines[arguments["of"]] + b"\n"
            stream = 2 if arguments["of"] == "stderr" else 1
            threading.Thread(target=flood, args=(stream, line), daemon=True).start()
        case "gate":
            folder = Path(arguments["folder"])
            folder.joinpath("started.tmp").write_text(str(os.getpid()))
            folder.joinpath("started.tmp").rename(folder / "started")
            while not folder.joinpath("go").exists():
                time.sleep(0.01)
            send(good)
        case "listed":
            answer(request, text(str(len(LISTED))))
        case "close_output":
            os.close(1)
        case "crlf":
            OUT.write(json.dumps(good).encode() + b"\r\n")
            OUT.flush()
        case "batch":
            send([good])
        case "malformed":
            send({"id": request["id"], "result": "not an object"})
        case "nameless_error":
            send({"id": request["id"], "error": {"message": "went wrong"}})
        case "child":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
            answer(request, text(str(child.pid)))
        case "progress":
            token = request["params"]["_meta"]["progressToken"]
            notify("notifications/progress", progressToken=token, progress=1, total=2, message="half")
            send(good)
        case "cancelled":
            answer(request, text(json.dumps(CANCELLED)))
        case "hold":
            token = request["params"]["_meta"]["progressToken"]
            notify("notifications/progress", progressToken=token, progress=1)
        case _:
            send(good)


def handle(message):
    if message.get("method") == "notifications/cancelled":
        CANCELLED.append(message["params"]["requestId"])
        print("cancelled", file=sys.stderr, flush=True)
    if "id" not in message or "method" not in message:
        return
    match message["method"]:
        case "server/discover" if FAULT == "discover_hangs":
            print("asked for its era", file=sys.stderr, flush=True)
        case "server/discover" if FAULT == "discover_kills":
            os._exit(7)
        case "initialize" if FAULT == "initialize_hangs":
            pass
        case "initialize":
            info = {"name": "bad", "version": "1"}
            version = "1999-01-01" if FAULT == "bad_version" else "2025-06-18"
            result = {"protocolVersion": version, "capabilities": {"tools": {"listChanged": True}}}
            answer(message, result if FAULT == "no_info" else {**result, "serverInfo": info})
        case "tools/list" if FAULT == "surrogate_tool":
            whole = json.dumps({"tools": [tool("ok", description="a\ud83cb"), tool("echo")]})
            raw(message, whole.encode())
        case "tools/list":
            LISTED.append(1)
            answer(message, list_tools(message))
            if FAULT == "dies_when_listed":
                sys.exit("my database is gone")
        case "tools/call":
            call(message)
        case method:
            error = {"code": -32601, "message": f"Method not found: {method}"}
            send({"jsonrpc": "2.0", "id": message["id"], "error": error})


if FAULT == "dies_like_node":
    print("node:internal/modules/cjs/loader:1215", "  throw err;", "  ^", "", sep="\n", file=sys.stderr)
    print("Error: Cannot find module '/srv/index.js'", file=sys.stderr)
    print(*(f"    at Module._load (node:internal/{n})" for n in range(8)), "}", sep="\n", file=sys.stderr)
    sys.exit("\nNode.js v22.11.0")
if FAULT == "dies":
    sys.exit("no configuration given")
if FAULT.startswith("meet:"):
    _, place, number = FAULT.split(":")
    Path(place, str(os.getpid())).touch()
    while len(list(Path(place).iterdir())) < int(number):
        time.sleep(0.01)
if FAULT == "banner":
    print("Welcome to FooServer v1.2!\n" * 3, flush=True)
if FAULT == "ignores_sigterm":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if FAULT == "stderr_flood":
    sys.stderr.write("e" * 5_000_000)
    sys.stderr.flush()
for line in sys.stdin.buffer:
    handle(json.loads(line))
if FAULT == "ignores_sigterm":
    time.sleep(1000)
