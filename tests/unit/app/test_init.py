"""`toolway init`: what it finds on a machine, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.servers import free_port, running
from tests.support.upstream import ScriptedUpstream, json_reply
from toolway.app.init import config_files, config_text, find_model_servers, find_servers, initialise
from toolway.settings.mcp_json import parse_config

CLAUDE = {
    "mcpServers": {
        "files": {"command": "npx", "args": ["-y", "x"]},
        "off": {"command": "y", "disabled": True},
    }
}
CODEX = '[mcp_servers.search]\nurl = "https://mcp.example.com/mcp"\nbearer_token_env_var = "SEARCH"\n'


def home_with(tmp_path: Path, platform: str) -> Path:
    files = config_files(tmp_path, platform)
    claude, codex = files["Claude Desktop"][0], files["Codex"][0]
    for path, text in ((claude, f"// mine\n{json.dumps(CLAUDE)}"), (codex, CODEX)):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_servers_of_other_programs_are_found_where_these_keep_them(tmp_path, platform, monkeypatch):
    monkeypatch.delenv("APPDATA", raising=False)
    found = find_servers(config_files(home_with(tmp_path, platform), platform))
    assert [(one.program, list(one.entries)) for one in found] == [
        ("Claude Desktop", ["files"]),
        ("Codex", ["search"]),
    ]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"mcpServers": []}', '{"mcpServers": {"a": 1}}', "\x00", "[" * 2000]
)
def test_a_file_that_cannot_be_read_holds_no_servers(tmp_path, text):
    path = tmp_path / "mcp.json"
    path.write_text(text)
    assert find_servers({"Cursor": [tmp_path / "none.json", path]}) == []


def test_what_is_written_is_commented_and_read_back(tmp_path):
    found = find_servers(config_files(home_with(tmp_path, "linux"), "linux"))
    text = config_text(found)
    read = parse_config(text, {"SEARCH": "key"})
    assert [server.label for server in read.servers] == ["files", "search"]
    assert "// from Claude Desktop" in text
    assert parse_config(config_text([]), {}).servers == ()
    assert "// A program that speaks MCP" in config_text([])


def test_only_what_is_confirmed_is_taken_over_and_nothing_is_overwritten(tmp_path):
    servers = find_servers(config_files(home_with(tmp_path / "home", "linux"), "linux"))
    asked, said = [], []

    def confirm(question: str) -> bool:
        asked.append(question)
        return "Codex" in question

    assert initialise(tmp_path, confirm=confirm, say=said.append, models=[], servers=servers)
    assert [
        server.label for server in parse_config((tmp_path / "mcp.json").read_text(), {"SEARCH": "k"}).servers
    ] == ["search"]
    assert len(asked) == 2
    before = (tmp_path / "mcp.json").read_text()
    assert not initialise(tmp_path, confirm=confirm, say=said.append, models=[], servers=servers)
    assert (tmp_path / "mcp.json").read_text() == before
    assert "there already" in said[-1]


def test_a_model_server_that_is_set_already_stays(tmp_path, monkeypatch):
    models = json_reply({"object": "list", "data": [{"id": "a"}, {"id": "b"}]})
    said: list[str] = []
    with running(ScriptedUpstream([models], models=models), lifespan="off") as url:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        assert initialise(tmp_path, confirm=lambda _: True, say=said.append, models=[], servers=[])
    assert f"OPENAI_BASE_URL is {url}/v1, and stays so: it answers, with 2 models." in said
    assert not (tmp_path / ".env").exists()


def test_a_model_server_that_answers_is_found_and_goes_into_the_env_file(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    upstream = ScriptedUpstream([json_reply({"data": [{"id": "qwen3"}]})])
    with running(upstream, lifespan="off") as url:
        places = {"LM Studio": f"http://127.0.0.1:{free_port()}/v1", "Ollama": f"{url}/v1"}
        models = find_model_servers(places)
    assert [(model.program, model.models) for model in models] == [("Ollama", ["qwen3"])]
    (tmp_path / ".env").write_text("OTHER=1")
    initialise(tmp_path, confirm=lambda _: True, say=lambda _: None, models=models, servers=[])
    assert (tmp_path / ".env").read_text() == f"OTHER=1\nOPENAI_BASE_URL={url}/v1\n"
