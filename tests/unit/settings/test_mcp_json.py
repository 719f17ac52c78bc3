"""`mcp.json`: the files of other programs as they are, and one message for each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolway.errors import ConfigError
from toolway.settings import jsonc
from toolway.settings.mcp_json import McpConfig, parse_config, read_config
from toolway.settings.mcp_server import ServerConfig, StdioServerConfig, expand

ENV = {"HOME": "/home/me", "TOKEN": "t0ken", "EMPTY": ""}


def read(text: str | dict[str, Any], **options: Any) -> McpConfig:
    return parse_config(text if isinstance(text, str) else json.dumps(text), ENV, **options)


def one(entry: dict[str, Any]) -> ServerConfig:
    return read({"mcpServers": {"s": entry}}).servers[0]


def mistakes(text: str | dict[str, Any], **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, **options)
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
    return tuple(mistakes(text, strict=True))


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
        ("${input:my-key}", "${input:my-key} is asked for by another program; write ${MY_KEY} and set that"),
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


@given(st.text())
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        parse_config(text, ENV)
    except ConfigError:
        pass
