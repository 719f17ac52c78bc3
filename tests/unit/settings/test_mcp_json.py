"""`mcp.json`: the files of other programs as they are, and one message for each mistake."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolway.errors import ConfigError
from toolway.settings import jsonc
from toolway.settings.mcp_json import MODELS, McpConfig, keys_of, parse_config, read_config
from toolway.settings.mcp_server import (
    RemoteServerConfig,
    StdioServerConfig,
    UnusableServerConfig,
    expand,
)

KEYS = {key for kind in MODELS for key in keys_of(kind)}
ENV = {"HOME": "/home/me", "TOKEN": "t0ken", "EMPTY": ""}


def read(text: str | dict[str, Any], **options: Any) -> McpConfig:
    return parse_config(text if isinstance(text, str) else json.dumps(text), ENV, **options)


def one(entry: dict[str, Any]) -> Any:
    return read({"mcpServers": {"s": entry}}).servers[0]


def mistakes(text: str | dict[str, Any], **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, strict=True, **options)
    return caught.value.message.splitlines()


CLAUDE = """{
  "globalShortcut": "",
  "mcpServers": {
    "filesystem": {
      "command": "npx",
      "args": ["-y", "@modelcontextprotocol/server-filesystem", "/Users/me/Desktop"]
    },
    "github": {
      "command": "docker",
      "args": ["run", "-i", "--rm", "-e", "GITHUB_TOKEN", "ghcr.io/github/github-mcp-server"],
      "env": { "GITHUB_TOKEN": "ghp_x" }
    }
  }
}"""
CURSOR = """{"mcpServers": {"remote": {"url": "https://mcp.example.com/mcp",
  "headers": {"Authorization": "Bearer ${env:TOKEN}"}},
 "old": {"url": "http://localhost:9000/sse"}}}"""
VS_CODE = """{
  // servers of this project
  "inputs": [{"type": "promptString", "id": "key", "password": true}],
  "servers": {
    "web": {"type": "http", "url": "https://api.example.com/mcp/"},
    "play": {"type": "stdio", "command": "npx", "args": ["-y", "@playwright/mcp@latest",], "dev": {"watch": "*"}},
  },
}"""
LM_STUDIO = """{"mcpServers": {"hf": {"url": "https://hf.co/mcp",
  "headers": {"Authorization": "Bearer x"}, "timeout": 60000}}}"""
MCPO = """{"mcpServers": {
  "memory": {"command": "npx", "args": ["-y", "@modelcontextprotocol/server-memory"], "disabledTools": ["delete_*"]},
  "time": {"command": "uvx", "args": ["mcp-server-time", "--local-timezone=America/New_York"]},
  "sse": {"type": "sse", "url": "http://127.0.0.1:8001/sse", "headers": {"Authorization": "Bearer token"}},
  "http": {"type": "streamable-http", "url": "http://127.0.0.1:8002/mcp"}}}"""
CLINE = """{"mcpServers": {"a": {"command": "x", "disabled": false, "autoApprove": ["y"], "alwaysAllow": [],
  "timeout": 60},
 "b": {"command": "z", "disabled": true, "env": {"X": "${NOT_SET}"}}}}"""
GEMINI = (
    """{"mcpServers": {"a": {"httpUrl": "http://localhost:1/mcp", "includeTools": ["x"], "trust": true}}}"""
)


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        (CLAUDE, {"filesystem": "stdio", "github": "stdio"}),
        (CURSOR, {"remote": "auto", "old": "auto"}),
        (VS_CODE, {"web": "http", "play": "stdio"}),
        (LM_STUDIO, {"hf": "auto"}),
        (MCPO, {"memory": "stdio", "time": "stdio", "sse": "sse", "http": "http"}),
        (CLINE, {"a": "stdio"}),
        (GEMINI, {"a": "http"}),
    ],
    ids=["claude", "cursor", "vscode", "lmstudio", "mcpo", "cline", "gemini"],
)
def test_the_files_of_other_programs_are_read_as_they_are(text: str, servers: dict[str, str]) -> None:
    assert {server.label: server.type for server in read(text).servers} == servers


def test_what_they_say_is_understood() -> None:
    github = read(CLAUDE).servers[1]
    assert github.args[-1] == "ghcr.io/github/github-mcp-server"
    assert github.env == {"GITHUB_TOKEN": "ghp_x"}
    assert read(CURSOR).servers[0].headers == {"Authorization": "Bearer t0ken"}
    assert read(MCPO).servers[0].exclude == ("delete_*",)
    assert read(GEMINI).servers[0].include == ("x",)
    hugging_face = read(LM_STUDIO)
    assert hugging_face.servers[0].timeout == 60
    assert hugging_face.warnings == ("mcp.json:2: hf.timeout: 60000 is taken for milliseconds; write 60.",)


def test_only_unknown_keys_are_warned_of() -> None:
    for text in (CLAUDE, CURSOR, VS_CODE, MCPO, CLINE, GEMINI):
        assert read(text).warnings == ()
    found = read(
        '{"mcpServers": {"s": {"command": "x",\n"enviroment": {},\n"cmd": 1,\n"url": "http://x"}},\n"mcpServer": {}}'
    )
    assert found.warnings == (
        "mcp.json:5: mcpServer: this key is not read; did you mean 'mcpServers'.",
        "mcp.json:2: s.enviroment: this key is not known.",
        "mcp.json:3: s.cmd: this key is not known.",
        "mcp.json:4: s.url: this key is not for a server of this kind.",
    )


def test_a_misspelt_key_is_a_mistake_when_strict() -> None:
    text = '{"mcpServers": {"s": {"command": "x", "incude": []}}}'
    assert (
        read(text).warnings
        == mistakes_of(text)
        == ("mcp.json:1: s.incude: this key is not known; did you mean 'include'.",)
    )


def mistakes_of(text: str) -> tuple[str, ...]:
    return tuple(mistakes(text))


def test_every_field_is_read() -> None:
    server = one(
        {
            "command": "run", "args": ["a", 1], "env": {"A": "1", "B": 2, "C": True, "D": None}, "cwd": "~/x",
            "include": ["get_*"], "exclude": ["*_all"], "prefix": "p_", "rename": {"a": "b"},
            "description": {"a": "says"}, "timeout": 5, "lazy": True, "idle_timeout": 9, "era": "legacy",
            "resources": True, "sampling": True, "sampling_max_tokens": 50,
        }
    )  # fmt: skip
    assert server == StdioServerConfig(
        label="s", command="run", args=("a", "1"), env={"A": "1", "B": "2", "C": "true"}, cwd="~/x",
        include=("get_*",), exclude=("*_all",), prefix="p_", rename={"a": "b"}, description={"a": "says"},
        timeout=5.0, lazy=True, idle_timeout=9.0, era="legacy", resources=True, sampling=True, sampling_max_tokens=50,
    )  # fmt: skip
    assert server.where == "mcp.json:1"


def test_an_openapi_service_is_a_server_too() -> None:
    server: Any = one(
        {"type": "openapi", "url": "http://h:1", "spec": "./x.yaml", "headers": {"X-Key": "${TOKEN}"}}
    )
    assert (server.type, server.url, server.spec, server.headers) == (
        "openapi",
        "http://h:1",
        "./x.yaml",
        {"X-Key": "t0ken"},
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain $HOME", "plain $HOME"),
        ("${HOME}/x", "/home/me/x"),
        ("${env:TOKEN}${TOKEN}", "t0kent0ken"),
        ("${NOPE:-fallback}", "fallback"),
        ("${env:EMPTY:-}", ""),
        ("${TOKEN:-other}", "t0ken"),
        ("$${TOKEN}", "${TOKEN}"),
    ],
)
def test_variables_are_expanded(text: str, value: str) -> None:
    assert expand(text, ENV) == value


@given(st.text(), st.dictionaries(st.text(), st.text()))
def test_expansion_never_breaks_and_never_expands_twice(text: str, env: dict[str, str]) -> None:
    try:
        expand(text, env)
    except ValueError:
        return
    assert expand("${A}", {"A": "${B}"}) == "${B}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1: expected a value, found the end"),
        ("hello", "1: 'hello' is not JSON"),
        ('{"mcpServers": {}', "1: expected ',' or '}', found the end"),
        ('{\n"mcpServers": {"a": {}\n"b": {}}}', """3: expected ',' or '}', found "b\""""),
        ("{'mcpServers': {}}", "1: strings are written in double quotes"),
        ('{"mcpServers\n": {}}', "1: a string is not closed"),
        ("{} /* x", "1: a comment is not closed"),
        ("[" * 1000, "1: this is nested too deeply"),
        ("9" * 5000, "1: a number has too many digits"),
        ('{"mcpServers": {\n"a": {},\n"a": {}}}', "3: 'a' is here twice; the first is in line 2"),
        ("[]", "1: mcpServers: the file must hold an object with this key"),
        ("{}", "1: mcpServers: the file has no such key, and no servers"),
        ('{"mcpServers": []}', "1: mcpServers: it must be an object: a server's name -> its entry"),
        ('{"mcpServers": {"": {}}}', "1: mcpServers: a server has an empty name"),
        (
            '{"mcpServers": {"a": {"command":"x"}},\n"servers": {"a": {"command":"x"}}}',
            "2: a: this server is also in line 1; each needs a name of its own",
        ),
    ],
)
def test_each_mistake_in_the_file_is_one_message_with_its_line(text: str, said: str) -> None:
    assert mistakes(text) == [f"mcp.json:{said}."]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('"x"', ' it must be an object like {"command": "npx", "args": [...]}'),
        ("{}", ' it needs a "command" to run or a "url" to call'),
        ('{"type": "ssh"}', "type: 'ssh' is none of stdio, http, sse, openapi"),
        ('{"type": "stdio"}', ' it needs a "command"'),
        ('{"type": "openapi"}', ' an OpenAPI service needs its "url", or the "spec" that describes it'),
        ('{"command": 5}', "command: 5 must be a string"),
        ('{"command": ""}', "command: it is empty"),
        ('{"command": "x", "args": "y"}', "args: it must be a list of strings"),
        ('{"command": "x", "args": [1, {}]}', "args[1]: it must be a string"),
        ('{"command": "x", "env": []}', "env: it must be an object with strings as values"),
        (
            '{"url": "http://x", "auth": {"type": "basic", "token_url": "t", "client_id": "i", "client_secret": "s"}}',
            'auth: its "type" must be "client_credentials"; for a login: toolway login SERVER',
        ),
        ('{"command": "x", "timeout": "5"}', "timeout: '5' is no number above 0"),
        ('{"command": "x", "timeout": 0}', "timeout: 0 is no number above 0"),
        ('{"command": "x", "disabled": "yes"}', "disabled: 'yes' is neither true nor false"),
        ('{"command": "x", "era": "old"}', "era: 'old' is none of auto, legacy, modern"),
        ('{"url": "localhost:80"}', "url: 'localhost:80' is no URL like http://localhost:8000/mcp"),
        ('{"url": "http://[x"}', "url: 'http://[x' is no URL like http://localhost:8000/mcp"),
        ('{"url": "http://x", "auth": "y"}', "auth: it must be an object with strings as values"),
        (
            '{"url": "http://x", "headers": {"A": "b\\nc"}}',
            "headers: 'A' is no header, or holds what a header cannot hold",
        ),
    ],
)
def test_each_mistake_in_an_entry_is_one_message_with_its_key(entry: str, said: str) -> None:
    key = said if said.startswith(" ") else f".{said}"
    expected = f"a:{said}" if key is said else f"a{key}"
    assert mistakes(f'{{"mcpServers": {{\n"a": {entry}}}}}') == [f"mcp.json:2: {expected}."]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("${MISSING}", "the variable MISSING is not set; set it, or write ${MISSING:-default}"),
        ("${EMPTY}", "the variable EMPTY is not set; set it, or write ${EMPTY:-default}"),
        ("${input:my-key}", "${input:my-key} is asked for by another program; here set the variable MY_KEY"),
        ("${not a name}", "${not a name} names no variable; for a plain ${ write $${"),
    ],
)
def test_a_missing_variable_is_a_mistake_and_never_an_empty_string(value: str, said: str) -> None:
    text = f'{{"mcpServers": {{"a": {{"command": "x", "env": {{\n"K": "{value}"}}}}}}}}'
    assert mistakes(text) == [f"mcp.json:2: a.env.K: {said}."]


def test_all_mistakes_are_told_at_once() -> None:
    found = mistakes({"mcpServers": {"a": {}, "b": {"command": 1}, "c": {"url": "x"}}})
    assert [line.split()[1] for line in found] == ["a:", "b.command:", "c.url:"]


def test_a_disabled_server_may_hold_anything() -> None:
    assert (
        read(
            {"mcpServers": {"a": {"command": "${MISSING}", "disabled": True}, "b": {"enabled": False}}}
        ).servers
        == ()
    )


def test_secrets_are_not_shown() -> None:
    server = one({"url": "http://x/mcp", "headers": {"Authorization": "Bearer ${TOKEN}"}})
    assert "t0ken" not in repr(server)
    assert server.secrets == ("Bearer t0ken",)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_config(tmp_path / "mcp.json", ENV)
    (tmp_path / "mcp.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "mcp.json", ENV)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
NESTED = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)


@given(NESTED)
def test_what_is_json_is_read_as_json_reads_it(value: Any) -> None:
    assert jsonc.parse(json.dumps(value)).plain() == value
    assert jsonc.parse(f"// c\n{json.dumps(value, indent=1)} /* {{ */").plain() == value


@given(
    st.text() | st.sampled_from(["a = " + "[" * 5000, "a = " + "9" * 5000]), st.sampled_from(["json", "toml"])
)
def test_no_text_breaks_the_reader(text: str, ending: str) -> None:
    try:
        parse_config(text, ENV, path=f"mcp.{ending}")
    except ConfigError:
        pass


CLAUDE_CODE = """{"mcpServers": {"notes": {"type": "http", "url": "https://n.example/mcp",
  "oauth": {"clientId": "abc", "callbackPort": 8765, "scopes": "read write"}}}}"""
CURSOR_OAUTH = """{"mcpServers": {"notes": {"url": "https://n.example/mcp",
  "auth": {"CLIENT_ID": "abc", "CLIENT_SECRET": "${env:TOKEN}", "scopes": ["read", "write"]}}}}"""
GEMINI_OAUTH = """{"theme": "Dracula", "mcp": {"allowed": ["notes"]}, "mcpServers": {"notes": {"httpUrl": "https://n.example/mcp",
  "timeout": 30000, "authProviderType": "dynamic_discovery",
  "oauth": {"enabled": true, "clientId": "abc", "clientSecret": "x", "authorizationUrl": "https://a.example/authorize",
            "tokenUrl": "https://a.example/token", "scopes": ["read", "write"]}}}}"""
OPENCODE = """{"$schema": "https://opencode.ai/config.json", "model": "x/y", "mcp": {
  "files": {"type": "local", "command": ["npx", "-y", "files"], "environment": {"KEY": "{env:TOKEN}"}, "enabled": true},
  "web": {"type": "remote", "url": "https://w.example/mcp", "oauth": false},
  "off": {"type": "local", "command": ["x"], "enabled": false}}}"""
ZED = """{"telemetry": {"metrics": false}, "context_servers": {
  "new": {"source": "custom", "command": "npx", "args": ["-y", "files"], "env": {}},
  "old": {"command": {"path": "npx", "args": ["-y", "files"], "env": {"A": "b"}}, "settings": {}}}}"""
FLAT = """{"editor.fontSize": 12, "%s": {"files": {"command": "npx", "args": ["-y", "files"]}}}"""
CODEX = """model = "gpt-5"

[mcp_servers.files]
command = "npx"
args = ["-y", "files"]
startup_timeout_sec = 20

[mcp_servers.web]
url = "https://w.example/mcp"
bearer_token_env_var = "TOKEN"
http_headers = { "X-Region" = "eu" }
env_http_headers = { "X-Key" = "TOKEN" }
enabled_tools = ["search"]
tool_timeout_sec = 45

[mcp_servers.broken]
args = ["x"]
"""


def test_the_files_of_more_programs_are_read_as_they_are() -> None:
    files, web = read(OPENCODE).servers
    assert (files.type, web.type, read(OPENCODE).disabled) == ("stdio", "auto", ("off",))
    assert isinstance(files, StdioServerConfig)
    assert (files.command, files.args, files.env) == ("npx", ("-y", "files"), {"KEY": "t0ken"})
    flat = [*read(FLAT % "mcp.servers").servers, *read(FLAT % "amp.mcpServers").servers]
    for server in (*read(ZED).servers, *flat):
        assert isinstance(server, StdioServerConfig)
        assert (server.command, server.args) == ("npx", ("-y", "files"))
    for text in (CLAUDE_CODE, CURSOR_OAUTH, OPENCODE, ZED):
        assert read(text).warnings == ()


def test_codex_says_it_in_toml() -> None:
    files, web, broken = read(CODEX, path="config.toml").servers
    assert (files.type, web.type) == ("stdio", "auto")
    assert isinstance(web, RemoteServerConfig)
    assert web.headers == {"Authorization": "Bearer t0ken", "X-Region": "eu", "X-Key": "t0ken"}
    assert (web.include, web.timeout, web.where) == (("search",), 45, "config.toml:8")
    assert isinstance(broken, UnusableServerConfig)
    assert broken.mistakes == ('config.toml:16: broken: it needs a "command" to run or a "url" to call.',)
    assert mistakes("[mcp_servers.a]\n= 1", path="x.toml") == [
        "x.toml:2: this is not TOML: Invalid statement (at line 2, column 1)."
    ]


@pytest.mark.parametrize(
    "text", [CLAUDE_CODE, CURSOR_OAUTH, GEMINI_OAUTH], ids=["claude", "cursor", "gemini"]
)
def test_a_client_for_the_login_is_read_in_each_spelling(text: str) -> None:
    (server,) = read(text).servers
    assert isinstance(server, RemoteServerConfig) and server.oauth
    assert (server.oauth.client_id, server.oauth.scope) == ("abc", "read write")
    assert server.auth is None


def test_what_belongs_to_a_login_is_read_and_its_secret_is_not_shown() -> None:
    gemini, cursor, claude = (read(text).servers[0] for text in (GEMINI_OAUTH, CURSOR_OAUTH, CLAUDE_CODE))
    assert isinstance(gemini, RemoteServerConfig) and gemini.oauth
    assert gemini.oauth.client_secret == "x"
    assert gemini.timeout == 30
    assert isinstance(claude, RemoteServerConfig) and claude.oauth and claude.oauth.callback_port == 8765
    assert "t0ken" not in repr(cursor)
    assert cursor.secrets == ("t0ken",)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"command": "x", "env": {"K": "${input:my-key}"}}, "here set the variable MY_KEY"),
        ({"command": "x", "args": ["${input:path}"]}, "here set the variable INPUT_PATH"),
        ({"command": "x", "args": ["${command:pick}"]}, "names no variable"),
        ({"type": "carrier-pigeon"}, "is none of stdio, http, sse, openapi"),
        ({"comand": "npx"}, "it needs a \"command\" to run or a \"url\" to call; did you mean 'command' for 'comand'"),
        ({"command": "no-such-program server --port 1"},
         'it holds arguments; write "command": "no-such-program", "args": ["server", "--port", "1"]'),
        ({"command": ["x", 5, []]}, "args[1]: it must be a string"),
        ({"command": "x y\0", "cwd": "~nobody-here"}, "it holds arguments"),
        ({"command": "x", "env_file": "~nobody-here/e"}, "env_file: there is no file ~nobody-here/e"),
        ({"command": "x", "envFile": sys.executable}, "cannot be read"),
        ({"url": "https://x.example", "client_cert": "/no/such.pem"}, "client_cert: there is no file /no/such.pem"),
        ([], "it must be an object"),
    ],
)  # fmt: skip
def test_the_trouble_of_one_entry_costs_that_entry_alone(entry: Any, said: str) -> None:
    first, bad, last = read(
        {"mcpServers": {"a": {"command": "x"}, "bad": entry, "z": {"url": "http://z"}}}
    ).servers
    assert (first.type, last.type) == ("stdio", "auto")
    assert isinstance(bad, UnusableServerConfig)
    (mistake,) = bad.mistakes
    assert mistake.startswith("mcp.json:1: bad") and said in mistake


@pytest.mark.parametrize(
    "entry",
    [
        {"command": "x", "env": None, "args": None, "cwd": None, "timeout": None, "type": None},
        {"type": "local", "command": "x", "tools": ["*"]},
        {"command": sys.executable},
        {"command": "x", "isActive": True, "unheard-of": {"deep": [1]}},
    ],
)
def test_what_means_nothing_here_costs_nothing(entry: dict[str, Any]) -> None:
    assert one(entry).type == "stdio"


def test_a_program_whose_path_has_a_space_is_no_command_with_arguments(tmp_path: Path) -> None:
    (tmp_path / "my server").touch()
    assert one({"command": str(tmp_path / "my server")}).type == "stdio"
    assert one({"command": "./my server", "cwd": str(tmp_path)}).type == "stdio"


@pytest.mark.parametrize("folder", [".", ".vscode", ".cursor"])
def test_editors_own_variables_are_known(tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder / "mcp.json"
    path.parent.mkdir(exist_ok=True)
    args = ["${workspaceFolder}/x", "${workspaceFolderBasename}", "${userHome}", "a${/}b", "${input:token}"]
    path.write_text(json.dumps({"servers": {"s": {"command": "x", "args": args}}}))
    (server,) = read_config(path, ENV).servers
    assert isinstance(server, StdioServerConfig)
    expected = (f"{tmp_path}/x", tmp_path.name, str(Path.home()), "a/b", "t0ken")
    assert server.args == expected


def test_variables_may_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "e").write_text("A=1\nB='2 3'\n")
    server = one({"command": "x", "envFile": str(tmp_path / "e"), "env": {"B": "mine"}})
    assert isinstance(server, StdioServerConfig)
    assert server.env == {"A": "1", "B": "mine"}


@given(st.dictionaries(st.sampled_from(sorted({*KEYS, "oauth", "auth", "command", "url", "type"})), NESTED))
def test_no_entry_breaks_the_others(entry: dict[str, Any]) -> None:
    found = read({"mcpServers": {"odd": entry, "good": {"command": "x"}}})
    assert found.servers[-1] == StdioServerConfig(label="good", command="x")
