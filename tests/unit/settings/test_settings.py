"""The settings: where they come from, and what is said about mistakes."""

from __future__ import annotations

import re
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.paths import ROOT
from toolway.errors import ConfigError
from toolway.net.hosts import is_loopback
from toolway.settings.env_endpoints import Endpoint, parse_endpoints, token_key
from toolway.settings.load import load_settings, setting_paths, variable
from toolway.settings.settings import ServerSettings, Settings

EXAMPLE = ROOT / "config.example"


def load(**env: str) -> Settings:
    return load_settings(env, None)


def refusal(**env: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(**env)
    return caught.value.message


def labels(text: str) -> dict[str, str]:
    parsed = parse_endpoints(text)
    assert not parsed.problems
    return {e.url: e.label for e in parsed.endpoints}


def test_nothing_set_gives_the_defaults() -> None:
    assert load() == Settings()
    assert not load().warnings


def test_the_environment_wins_over_dotenv_and_the_command_line_over_both(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("TOOLWAY_PORT=1\nTOOLWAY_WORKERS=2\nOPENAI_API_KEY='sk-file' # mine\n")
    settings = load_settings(
        {"TOOLWAY_PORT": "3", "TOOLWAY_HOST": "::1"}, dotenv, host="localhost", workers=None
    )
    assert (settings.server.port, settings.server.workers, settings.server.host) == (3, 2, "localhost")
    assert settings.upstream.api_key == "sk-file"


def test_an_empty_value_means_unset(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("TOOLWAY_PORT=1\nDEBUG_OUTPUT=\n")
    env = {"TOOLWAY_PORT": "", "OPENAI_API_KEY": " ", "MCP_SERVER_ENDPOINTS": ""}
    assert load_settings(env, dotenv) == Settings(server=ServerSettings(port=1))


def test_a_missing_or_unreadable_dotenv(tmp_path: Path) -> None:
    assert load_settings({}, tmp_path / "none") == Settings()
    (tmp_path / "latin").write_bytes(b"A=\xff\xfe\n")
    with pytest.raises(ConfigError, match="latin cannot be read"):
        load_settings({}, tmp_path / "latin")


@pytest.mark.parametrize("text", ["true", "1", "YES", "On", " True "])
def test_words_for_true(text: str) -> None:
    assert load(DEBUG_OUTPUT=text).log.debug_output is True


@pytest.mark.parametrize("text", ["false", "0", "no", "OFF"])
def test_words_for_false(text: str) -> None:
    assert load(DEBUG_OUTPUT=text).log.debug_output is False


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (
            "DEBUG_OUTPUT",
            "maybe",
            "DEBUG_OUTPUT is 'maybe': it must be true or false (or 1/0, yes/no, on/off).",
        ),
        ("TOOLWAY_PORT", "abc", "TOOLWAY_PORT is 'abc': it must be a port from 0 to 65535"),
        ("TOOLWAY_PORT", "70000", "0 to 65535"),
        ("TOOLWAY_WORKERS", "0", "a whole number above 0"),
        ("TOOLWAY_MAX_SECONDS", "nan", "a number of seconds above 0"),
        ("TOOLWAY_TOOL_NAMES", "long", "operation or short"),
        ("TOOLWAY_TOOL_PREFIX", "never", "clash or always"),
        ("TOOLWAY_HOST", "http://0.0.0.0", "it is a URL"),
        ("TOOLWAY_HOST", "localhost:80", "TOOLWAY_PORT"),
        ("TOOLWAY_HOST", "a b", "no host name"),
        ("OPENAI_BASE_URL", "localhost:1234/v1", "http://"),
        ("OPENAI_BASE_URL", "http:///v1", "names no host"),
        ("OPENAI_BASE_URL", "http://h:99999/v1", "range 0-65535"),
        ("OPENAI_BASE_URL", "http://h/v1#a", "without #"),
        ("OPENAI_BASE_URL", "http://h/v1?a=b#c", "without #"),
        ("OPENAI_BASE_URL", "http://h/v1?a=b c", "percent-encoded"),
        ("TOOLWAY_UPSTREAM_CLIENT_CERT", "/no/such.pem", "there is no file /no/such.pem"),
        ("TOOLWAY_CORS_ORIGINS", "http://a/path", "without a path"),
        ("TOOLWAY_CORS_ORIGINS", "null", "write an origin"),
        ("TOOLWAY_ALLOWED_HOSTS", "http://a", "without http://"),
    ],
)
def test_a_bad_value_is_named_with_what_is_legal(name: str, value: str, says: str) -> None:
    message = refusal(**{name: value})
    assert name in message
    assert says in message


def test_several_mistakes_are_told_together() -> None:
    message = refusal(TOOLWAY_PORT="x", TOOLWAY_WORKERS="y", MCP_SERVER_ENDPOINTS="htp://a,localhost:1")
    assert len(message.splitlines()) == 4


def test_a_mistake_on_the_command_line_is_called_by_its_option() -> None:
    with pytest.raises(ConfigError, match=r"^--max-rounds is '0'"):
        load_settings({}, None, max_rounds=0)
    with pytest.raises(TypeError, match="nonsense"):
        load_settings({}, None, nonsense=1)


@pytest.mark.parametrize(
    "env",
    [
        {"OPENAI_API_KEY": "canary\nX"},
        {"TOOLWAY_API_KEYS": "good,canäry"},
        {"OPENAI_BASE_URL": "http://me:canary@host/v1"},
        {"MCP_SERVER_ENDPOINTS": "http://me:canary@a b"},
        {"MCP_SERVER_ENDPOINTS": "me:canary@host:80"},
        {"MCP_SERVER_ENDPOINTS": "http://me:can@canary@:80"},
        {"TOOLWAY_SERVER_A_TOKEN": "canary\x00"},
    ],
)
def test_messages_hold_no_secret(env: dict[str, str]) -> None:
    assert "can" not in refusal(**env)


def test_the_text_of_settings_holds_no_secret_and_secrets_lists_them() -> None:
    settings = load(
        OPENAI_API_KEY="canary1",
        TOOLWAY_API_KEYS="canary2, canary3",
        MCP_SERVER_ENDPOINTS="http://me:canary%2F4@a,http://b",
        TOOLWAY_SERVER_B_TOKEN="canary5",
    )
    assert "canary" not in repr(settings)
    assert settings.secrets == ("canary1", "canary2", "canary3", "canary/4", "canary5")


def test_unknown_variables_are_told_with_the_closest_name() -> None:
    warnings = load(
        TOOLWAY_PROT="1", TOOLWAY_XYZZY="1", TOOLWAY_DEBUG_OUTPUT="1", OPENAI_API_BASE="x"
    ).warnings
    assert "TOOLWAY_PROT is not a setting; did you mean TOOLWAY_PORT?" in warnings
    assert "TOOLWAY_XYZZY is not a setting" in warnings
    assert "TOOLWAY_DEBUG_OUTPUT is not a setting; did you mean DEBUG_OUTPUT?" in warnings
    assert "OPENAI_API_BASE is not read; did you mean OPENAI_BASE_URL?" in warnings


def test_a_base_url_without_v1_and_a_token_without_a_server_are_suspicious() -> None:
    warnings = load(
        OPENAI_BASE_URL="http://h:1/", TOOLWAY_SERVER_TIME_TOKEN="t", MCP_SERVER_ENDPOINTS="http://tim"
    ).warnings
    assert any("/v1" in w for w in warnings)
    assert any("TOOLWAY_SERVER_TIM_TOKEN" in w for w in warnings)


def test_a_base_url_may_hold_a_query_string() -> None:
    azure = "https://me.openai.azure.com/openai/deployments/gpt-4o"
    settings = load(OPENAI_BASE_URL=f"{azure}/?api-version=2024-10-21&key=canary")
    assert (settings.upstream.base_url, settings.upstream.query) == (
        azure,
        b"api-version=2024-10-21&key=canary",
    )
    assert settings.secrets == ("canary",)
    assert "canary" not in repr(settings)
    assert not settings.warnings


@pytest.mark.parametrize("endpoint", ["chat/completions", "chat/completions/", "responses", "models"])
def test_a_base_url_that_is_one_endpoint_is_told_and_mended(endpoint: str) -> None:
    settings = load(OPENAI_BASE_URL=f"http://h:1/v1/{endpoint}")
    assert settings.upstream.base_url == "http://h:1/v1"
    name = endpoint.rstrip("/")
    assert settings.warnings == (
        f"OPENAI_BASE_URL ends in /{name}, which is one endpoint of many; http://h:1/v1 is used",
    )


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("http://mcp-server-1:8011", "mcp-server-1"),
        ("http://mcp-server-1.example.com:8011/", "mcp-server-1"),
        ("https://api.weather.com", "weather"),
        ("http://localhost:8011", "localhost-8011"),
        ("http://127.0.0.1:8011/openapi.json", "localhost-8011"),
        ("http://[::1]:8011", "localhost-8011"),
        ("http://localhost", "localhost"),
        ("http://10.0.0.5:8011", "10-0-0-5-8011"),
        ("http://localhost:8000/time/", "time"),
        ("http://localhost:8000/time/openapi.json", "time"),
        ("https://petstore3.swagger.io/api/v3/openapi.json", "petstore3"),
        ("http://h/specs/weather.yaml", "weather"),
        ("./specs/Weather Report.json", "Weather-Report"),
        ("/data/github/openapi.json", "github"),
        ("spec.yml", "spec"),
        ("my.name=http://h:1/x", "my.name"),
        ("http://h/x?key=a=b", "x"),
    ],
)
def test_a_label_is_the_most_telling_part(text: str, label: str) -> None:
    assert list(labels(text).values()) == [label]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("htp://a:1", "did you mean http://a:1 ?"),
        ("htps://a", "did you mean https://a ?"),
        ("localhost:8011", "did you mean http://localhost:8011 ?"),
        ("http:/localhost:8011", "did you mean http://localhost:8011 ?"),
        ("http//localhost:8011/openapi.json", "did you mean http://localhost:8011/openapi.json ?"),
        ("localhost:8011/openapi.json", "did you mean http://localhost:8011/openapi.json ?"),
        ("weather", "did you mean http://weather ?"),
        ("ws://a", "only http:// and https://"),
        ("file:///a/b.json", "/a/b.json"),
        ("~nobody-knows/b.json", "home of a user"),
        ("http://a:port", "not a URL"),
        ("http://", "names a host"),
        ("http://a b", "names a host"),
        ("http://a\\b", "names a host"),
        ("http://[::1", "not a URL"),
        ("x=http://a,x=http://b", "the name x is given to more than one"),
    ],
)
def test_a_misspelt_endpoint_is_explained(text: str, says: str) -> None:
    assert says in "\n".join(parse_endpoints(text).problems)


def test_spaces_trailing_commas_slashes_quotes_and_line_breaks_are_tolerated() -> None:
    text = " http://a:1/ ,, 'http://b:2//'\nhttp://c:3 http://d:4 , "
    assert list(labels(text)) == ["http://a:1", "http://b:2", "http://c:3", "http://d:4"]


def test_a_duplicate_is_used_once_and_noted() -> None:
    parsed = parse_endpoints("http://a:1,http://A:1/")
    assert [e.url for e in parsed.endpoints] == ["http://a:1"]
    assert parsed.notes == ("http://a:1 is listed twice; it is used once",)


def test_credentials_are_taken_out_of_the_url() -> None:
    (endpoint,) = load(MCP_SERVER_ENDPOINTS="http://me%40x:p%3Aw@h:1/a").tools.endpoints
    assert endpoint == Endpoint(label="a", url="http://h:1/a", username="me@x", password="p:w")
    (endpoint,) = load(MCP_SERVER_ENDPOINTS="http://me@h").tools.endpoints
    assert (endpoint.username, endpoint.password) == ("me", "")


def test_a_token_finds_its_server_and_beats_a_password() -> None:
    settings = load(MCP_SERVER_ENDPOINTS="http://u:p@my-server.x", TOOLWAY_SERVER_MY_SERVER_TOKEN="t0k")
    (endpoint,) = settings.tools.endpoints
    assert (endpoint.token, endpoint.username, endpoint.password) == ("t0k", None, None)
    assert any("the token is used" in w for w in settings.warnings)


def test_clashing_labels_do_not_depend_on_the_order() -> None:
    urls = [
        "http://h:1",
        "http://h:2",
        "http://a:8000/time",
        "http://b:8000/time",
        "http://c/h",
        "h-1=http://d",
    ]
    expected = labels(",".join(urls))
    assert expected["http://h:2"] == "h-2"
    assert expected["http://a:8000/time"] == "time-8000-1"
    for order in permutations(urls):
        assert labels(",".join(order)) == expected


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "x=", "a-1=", "a_1="]),
            st.sampled_from(["a", "a-1", "b", "localhost", "10.0.0.1"]),
            st.sampled_from(["", ":1", ":2"]),
            st.sampled_from(["", "/a", "/a-1", "/v1/openapi.json"]),
        ),
        max_size=8,
    )
)
def test_labels_are_unique_even_as_token_variables(parts: list[tuple[str, str, str, str]]) -> None:
    parsed = parse_endpoints(",".join(f"{name}http://{host}{port}{path}" for name, host, port, path in parts))
    keys = [token_key(e.label) for e in parsed.endpoints]
    assert parsed.problems or len(keys) == len(set(keys))


@given(st.text() | st.text(alphabet="abh1:/.@,=~%[] \\\n"))
def test_no_text_of_endpoints_breaks_the_parser(text: str) -> None:
    parsed = parse_endpoints(text)
    assert all(e.label and e.url for e in parsed.endpoints)
    assert len({e.label for e in parsed.endpoints}) == len(parsed.endpoints) or parsed.problems


def test_a_nul_character_is_told_beside_all_other_mistakes() -> None:
    with pytest.raises(ConfigError) as raised:
        load_settings({"TOOLWAY_CONFIG": "a\0b", "TOOLWAY_PORT": "x"}, None, host="\0")
    lines = raised.value.message.split("\n")
    assert lines[:2] == [f"{name}: there is a NUL character in it." for name in ("TOOLWAY_CONFIG", "--host")]
    assert lines[2].startswith("TOOLWAY_PORT is 'x'")


@given(st.dictionaries(st.sampled_from([variable(name) for name in setting_paths()]), st.text()))
@example({"TOOLWAY_CONFIG": "\0"})
def test_any_values_give_settings_or_a_config_error(env: dict[str, str]) -> None:
    try:
        load_settings(env, None)
    except ConfigError as error:
        assert error.message


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("toolway.localhost", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("localhost.example.com", False),
        ("192.168.0.1", False),
    ],
)
def test_what_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_config_example_documents_every_setting_with_its_default() -> None:
    text = EXAMPLE.read_text()
    documented = dict(re.findall(r"^#([A-Z_]+)=(.*)$", text, re.MULTILINE))
    expected = {
        variable(name): getattr(getattr(Settings(), group), key)
        for name, (group, key) in setting_paths().items()
    }
    assert documented.keys() == {*expected, "TOOLWAY_SERVER_NAME_TOKEN", "TOOLWAY_CACHE"}
    shown = {name: value for name, value in documented.items() if expected.get(name) not in (None, ())}
    assert load_settings(shown, None) == Settings()
    for name in documented.keys() - shown.keys():
        explanation = text.split(f"\n#{name}=")[0].split("\n\n")[-1]
        assert "Default: none" in explanation, name


def test_config_example_is_an_env_file_that_changes_nothing() -> None:
    assert load_settings({}, EXAMPLE) == Settings()
