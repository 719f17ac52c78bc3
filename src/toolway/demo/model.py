"""The demo's model server: llama.cpp's own HTTP server with a small model, as a program of its own."""

from __future__ import annotations

import argparse
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from toolway.demo.child import START_SECONDS, Child, OnLine, announce, running_child
from toolway.demo.errors import DemoError

ALIAS = "smollm2-135m"
CONTEXT_TOKENS = 4096
HOST = "127.0.0.1"


def require_llama() -> None:
    """`DemoError` when the package with the model server is not installed."""
    if find_spec("xllamacpp") is None:
        raise DemoError(
            "The model server is not installed. Install it with: pip install 'toolway[demo]' (in a clone: make demo)"
        )


@contextmanager
def running_model(weights: Path, *, port: int = 0, on_line: OnLine | None = None) -> Iterator[Child]:
    """Serve `weights` for as long as the `with` lasts; `wait_ready()` gives the base URL, `http://127.0.0.1:N/v1`.

    Port 0 takes a free one.
    """
    require_llama()
    options = ["--weights", str(weights), "--port", str(port)]
    with running_child("The model server", __name__, *options, on_line=on_line) as child:
        yield child


def main() -> None:
    """Serve until ended: `python -m toolway.demo.model --weights FILE [--port N]`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    serve(options.weights, options.port)


def serve(weights: Path, port: int) -> None:
    """Load the model, announce the address when `/health` answers 200, and serve until the process is ended."""
    xllamacpp = import_module("xllamacpp")  # an extra, without type hints

    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {ALIAS}
    params.hostnames = [HOST]
    params.port = port
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.ui = False
    # More threads spin at barriers: beside any other busy process they are ten times slower than one.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    # What a client does not ask for: the likeliest words, so that the same question gets the same answer.
    params.sampling.temp = 0.0
    params.use_jinja = True
    params.chat_template = chat_template()
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise SystemExit(f"llama.cpp could not serve {weights} on port {port}: {error}") from None
    _check_health(server.listening_address)
    announce(f"{server.listening_address}/v1")
    threading.Event().wait()


def chat_template() -> str:
    """A template that shows the model its tools: the model's own has none, and llama.cpp then offers none."""
    return files("toolway.demo").joinpath("smollm2-tools.jinja").read_text(encoding="utf-8")


def _check_health(address: str) -> None:
    # A proxy set in the environment is not for this machine's own addresses.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"{address}/health", timeout=START_SECONDS) as answer:
        if answer.status != 200:
            raise DemoError(f"/health answered {answer.status}")


if __name__ == "__main__":
    main()
