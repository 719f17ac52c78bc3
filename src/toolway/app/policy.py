"""`toolway policy`, `toolway approvals` and `toolway audit`: what the rules say, what waits, what was done."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import anyio
import orjson
import typer

from toolway.access.audit import is_time, matches, oldest_first
from toolway.access.principal import principal_of_key, principal_of_person
from toolway.access.rules import CallOrigin, Rule, Rules
from toolway.app.terminal import (
    AsJSON,
    ConfigFile,
    complain,
    fail,
    print_json,
    print_table,
    print_text,
    read_arguments,
)
from toolway.dialects import DialectName
from toolway.settings.access import AccessConfig, GroupConfig, KeyConfig
from toolway.settings.load import load_settings
from toolway.settings.settings import Settings
from toolway.tools import names
from toolway.tools.invoke import read_call
from toolway.types import JSON, Principal, Tool, ToolCall, ToolResult, is_selected

HTTP_TIMEOUT = 30.0

policy = typer.Typer(no_args_is_help=True, help="What the rules of the mcp.json say.")
approvals = typer.Typer(no_args_is_help=True, help="List and answer the calls that wait for a person.")

Url = Annotated[str | None, typer.Option(help="Where Toolway listens. Default: as it is configured here.")]
Key = Annotated[
    str | None, typer.Option("--key", envvar="TOOLWAY_CONSOLE_KEY", help="A key that opens the console.")
]
Always = Annotated[
    str | None, typer.Option(help="Ask no more about this tool: in this conversation, or for this key.")
]


@policy.command()
def explain(  # noqa: PLR0917 - typer passes them by name
    tool: Annotated[str, typer.Argument(help="The tool, as `toolway tools` names it, or SERVER.TOOL.")],
    arguments: Annotated[str, typer.Argument(help="Its arguments as a JSON object.")] = "{}",
    key: Annotated[str, typer.Option(help="The name of the key that calls.")] = "",
    group: Annotated[str, typer.Option(help="The group of who calls with a token, not a key.")] = "",
    model: Annotated[str, typer.Option(help="The model that calls.")] = "",
    dialect: Annotated[DialectName, typer.Option(help="The way by which the call comes.")] = "chat",
    config: ConfigFile = None,
    as_json: AsJSON = False,
) -> None:
    """Say what becomes of a call: whether the key has the tool at all, and which rule decides and why."""
    settings = load_settings(config=config)
    principal, owners = _principal(settings.access, key, group)
    found, unknown = anyio.run(_tools, settings)
    name = _find_name(tool, found, unknown)
    values, fault = _read_arguments(name, found[name], arguments)
    if why := _why_hidden(principal, owners, name, found[name], model, dialect):
        _print_explanation("none", [], as_json, why)
        return
    origin = CallOrigin(key=key, group=principal.group, model=model, dialect=dialect)
    steps = list(Rules(settings.access.rules, settings.labels).explain(name, found[name], origin, values))
    hit = steps[-1][0] if steps and not steps[-1][1] else None
    notes = ["" if hit else "No rule fits: allow", fault]
    _print_explanation(hit.config.effect if hit else "allow", steps, as_json, *filter(None, notes))


def _read_arguments(name: str, tool: Tool, arguments: str) -> tuple[JSON, str]:
    """The arguments as the tool would get them, and why they are none for it, if so."""
    values = read_arguments(arguments)
    fitted = read_call(ToolCall(id="", name=name, arguments=arguments), tool)
    if isinstance(fitted, ToolResult):
        return values, f"Such a call fails before any rule is asked: {fitted.text}"
    return fitted, ""


def _print_explanation(effect: str, steps: Sequence[tuple[Rule, str]], as_json: bool, *notes: str) -> None:
    """`steps` are the rules that were asked, with the condition that did not fit; empty for the one that decides."""
    if as_json:
        passed = [{"rule": rule.label, "does_not_fit": unfit} for rule, unfit in steps if unfit]
        hit = next((rule.label for rule, unfit in steps if not unfit), None)
        print_json({"effect": effect, "rule": hit, "passed": passed, "notes": notes})
        return
    for rule, unfit in steps:
        reason = f", {rule.config.reason}" if rule.config.reason else ""
        outcome = f"does not fit: {unfit}" if unfit else f"decides: {rule.config.effect}{reason}"
        print_text(f"{rule.label}  {outcome}  ({rule.config.where})")
    for note in notes:
        print_text(note)


def _principal(
    access: AccessConfig, key: str, group: str
) -> tuple[Principal, Sequence[KeyConfig | GroupConfig]]:
    """Who calls, and what the file says of them."""
    if key and (known := next((each for each in access.keys if each.name == key), None)):
        of_group = access.group(known.group)
        return principal_of_key(known, access), [known, *([of_group] if of_group else [])]
    if key and not group:
        fail(f"There is no key {key} in the mcp.json; of who calls with a token, say the --group.")
    if not group:
        return Principal(), []
    if (named := access.group(group)) is None:
        known_groups = ", ".join(each.name for each in access.groups) or "none"
        fail(f"There is no group {group} in the mcp.json; those that are: {known_groups}.")
    return principal_of_person("", "", key or f"the group {group}", named), [named]


def _find_name(tool: str, found: Mapping[str, Tool], unknown: Sequence[str]) -> str:
    """The name, as models see it, of the tool that is meant."""
    name = names.resolve(tool, found)
    if name is None:
        fail(names.no_such_tool(tool, found, unknown))
    return name


def _why_hidden(  # noqa: PLR0917 - all that a call is
    principal: Principal,
    owners: Sequence[KeyConfig | GroupConfig],
    name: str,
    tool: Tool,
    model: str,
    dialect: DialectName,
) -> str:
    """Why there is no such tool, model or route for who calls; empty when there is. No rule is asked then."""
    places = " and ".join(owner.where for owner in owners)
    if principal.routes is not None and dialect not in principal.routes:
        return f"No rule is asked: {principal.name} may not use {dialect}  ({places})"
    if model and not principal.may_use_model(model):
        return f"No rule is asked: there is no model {model} for {principal.name}  ({places})"
    if not is_selected(name, tool, principal.selection):
        return f"No rule is asked: there is no tool {name} for {principal.name}  ({places})"
    return ""


async def _tools(settings: Settings) -> tuple[Mapping[str, Tool], Sequence[str]]:
    """The tools as models see them, once each server was tried, and the servers whose tools are not known."""
    from toolway.tools.factory import open_catalog  # noqa: PLC0415

    logging.getLogger("toolway").setLevel(logging.CRITICAL)
    async with open_catalog(settings.tools) as catalog:
        return catalog.snapshot.tools, catalog.snapshot.unknown


@approvals.command("list")
def list_approvals(url: Url = None, key: Key = None, as_json: AsJSON = False) -> None:
    """List the calls that wait."""
    found = _Console(url, key).ask("GET", "/approvals")["approvals"]
    if as_json:
        print_json(found)
    elif not found:
        print_text("Nothing waits.")
    else:
        rows = [
            [a["id"], a["key"], f"{a['server']}.{a['tool']}", json.dumps(a["arguments"], ensure_ascii=True)]
            for a in found
        ]
        print_table(["id", "key", "tool", "arguments"], rows, is_below=True)


@approvals.command()
def approve(
    identity: Annotated[str, typer.Argument(metavar="ID")],
    always: Always = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Let a call run."""
    _answer(identity, url, key, {"approve": True, "always": always})


@approvals.command()
def deny(
    identity: Annotated[str, typer.Argument(metavar="ID")],
    reason: Annotated[str, typer.Option(help="Why, for the model to read.")] = "",
    url: Url = None,
    key: Key = None,
) -> None:
    """Do not let a call run."""
    _answer(identity, url, key, {"approve": False, "reason": reason})


@approvals.command()
def grants(url: Url = None, key: Key = None, as_json: AsJSON = False) -> None:
    """List the tools that somebody said "always" for."""
    found = _Console(url, key).ask("GET", "/grants")["grants"]
    if as_json:
        print_json(found)
    elif not found:
        print_text("There are none.")
    else:
        rows = [[g["id"], g["scope"], g["key"], f"{g['server']}.{g['tool']}"] for g in found]
        print_table(["id", "for", "key", "tool"], rows)


@approvals.command()
def revoke(identity: Annotated[str, typer.Argument(metavar="ID")], url: Url = None, key: Key = None) -> None:
    """Take an "always" back."""
    _Console(url, key).ask("DELETE", f"/grants/{quote(identity, safe='')}")
    print_text("It will be asked about again.")


def _answer(identity: str, url: str | None, key: str | None, body: JSON) -> None:
    counts = _Console(url, key).ask("POST", f"/approvals/{quote(identity, safe='')}", body)
    what = "approved" if counts["approve"] else "denied"
    print_text(f"It is {what}." if counts["is_first"] else f"It was {what} before, by {counts['by']}.")


class _Console:
    """The API of a running Toolway's console."""

    def __init__(self, url: str | None, key: str | None) -> None:
        server = load_settings().server
        self._base = (url or server.local_url()).rstrip("/")
        self._headers = {"content-type": "application/json", "x-toolway-console": "open"}
        if key:
            answer, headers = self._send("POST", "/session", {"key": key})
            self._headers["cookie"] = headers.get("set-cookie", "").partition(";")[0]
            self._headers["x-toolway-console"] = answer["token"]

    def ask(self, method: str, path: str, body: JSON | None = None) -> Any:
        """The JSON of an answer; what goes wrong ends the command."""
        return self._send(method, path, body)[0]

    def _send(self, method: str, path: str, body: JSON | None) -> tuple[Any, Any]:
        data = None if body is None else orjson.dumps(body)
        address = f"{self._base}/console/api{path}"
        if not address.startswith(("http://", "https://")):
            fail(f"{self._base} is no URL like http://127.0.0.1:8484.")
        request = urllib.request.Request(address, data, self._headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=HTTP_TIMEOUT) as answer:  # noqa: S310
                return orjson.loads(answer.read()), answer.headers
        except urllib.error.HTTPError as error:
            try:
                problem = orjson.loads(error.read())["error"]
                needs_key = problem["code"] in ("console_key_needed", "console_closed")
                fail(problem["message"] + " Give it with --key, or in TOOLWAY_CONSOLE_KEY." * needs_key)
            except (ValueError, KeyError, TypeError):
                fail(f"{address} answered {error.code}; is its console on (TOOLWAY_CONSOLE)?")
        except (OSError, ValueError, HTTPException) as error:
            fail(f"{self._base} cannot be asked: {_why_not(error)}.")


def _why_not(error: Exception) -> str:
    """Why there was no answer of the console, and what to do about it."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ConnectionRefusedError):
        return "nobody listens there; start `toolway serve`, or say with --url where it runs"
    if isinstance(cause, TimeoutError):
        return f"no answer within {HTTP_TIMEOUT:g} seconds"
    if isinstance(cause, socket.gaierror):
        return "its host name is unknown"
    if isinstance(cause, ssl.SSLError) or not isinstance(cause, OSError):
        return "what answers there is no Toolway; is it the right --url (http or https, and the port)"
    return cause.strerror or "the connection was closed"


def audit(  # noqa: PLR0917 - typer passes them by name
    file: Annotated[str | None, typer.Argument(help="The log. Default: TOOLWAY_AUDIT.")] = None,
    key: Annotated[str | None, typer.Option(help="A pattern of the key's name.")] = None,
    tool: Annotated[str | None, typer.Option(help="A pattern of the tool.")] = None,
    server: Annotated[str | None, typer.Option(help="A pattern of the server.")] = None,
    decision: Annotated[str | None, typer.Option(help="allow, deny or ask.")] = None,
    event: Annotated[
        str | None, typer.Option(help="A pattern of the kind of entry, like call or approval.*.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="A time or its beginning, like 2026-11-29.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Show the audit log, the oldest entry first."""
    settings = load_settings().audit
    path = file or settings.file
    if path is None or path == "-":
        fail("There is no file of an audit log: set TOOLWAY_AUDIT, or name it.")
    if not Path(path).exists():
        fail(f"There is no file {path}.")
    if since and not is_time(since):
        fail(f"--since {since}: write a time or its beginning, like 2026-11-29 or 2026-11-29T12.")
    asked = {
        "toolway.key.name": key,
        "gen_ai.tool.name": tool,
        "toolway.server": server,
        "toolway.decision": decision,
        "event": event,
    }
    wanted = {name: pattern for name, pattern in asked.items() if pattern is not None}
    seen: set[str] = set()
    is_shown = False
    for entry in oldest_first(Path(path), settings.audit_files):
        seen.add(str(entry.get("event")))
        if matches(entry, wanted) and not (since and str(entry.get("time", "")) < since):
            is_shown = True
            print_json(entry, indent=None) if as_json else print_text(_line(entry))
    if not is_shown:
        complain(f"No entry fits; the log tells of: {', '.join(sorted(seen)) or 'nothing'}.")


_COLUMNS: Sequence[Sequence[str]] = (
    ["time"],
    ["event"],
    ["toolway.key.name", "toolway.by"],
    ["gen_ai.tool.name", "toolway.changed"],
    ["toolway.decision"],
    ["toolway.rule"],
)
"""The members of an entry that a line shows: of each column the first that it has."""


def _line(entry: JSON) -> str:
    parts = [str(next((entry[name] for name in names if name in entry), "-")) for names in _COLUMNS]
    more = entry.get("error.type") or (f"{entry['duration']} s" if "duration" in entry else "")
    return "  ".join([*parts, str(more)]).rstrip()
