"""`openba serve`: the process that listens, and what an alias of the registry names now.

Owns the address, the key, signals, and the looking up of `models:/NAME@ALIAS`. Answers are
`openba.serve`'s. The alias is asked for every few seconds; a new version is loaded beside the old
one, which answers until then and ends what it has begun.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import uvicorn

from openba.errors import UserError, one_line
from openba.home import Home
from openba.model.adapter_base import holds_model
from openba.model.origin import REGISTERED
from openba.model.pointer import fetched_model
from openba.serve.app import Application
from openba.serve.limits import HeaderTimeoutProtocol, Limits
from openba.serve.model_host import DEFAULT_ENGINE, EngineChoice, LoadedModel, ModelHost
from openba.serve.server_metrics import ServerMetrics
from tasks.pointers import read_pointer, version_of

LOOPBACK = ("127.0.0.1", "localhost")
EXIT_ENGINE_FAILED = 70
"""Exit code after the engine has ended or stalled: a supervisor is to start the process again."""
_SECONDS_TO_END = 5.0
"""For errors of the engine's requests to reach their clients before the process ends."""


@dataclass(frozen=True)
class Place:
    """A model and where its files are looked for."""

    name: str
    version: str
    folder: Path | None
    """None: in the store, by the registered version's pointer."""


class Source:
    """Model named on the command line, and the version that its alias stands for at present."""

    def __init__(self, model_reference: str, home: Home) -> None:
        """Args: a folder or a `models:/` address; where the registry is.

        Raises:
            UserError: neither of the two.
        """
        self.asked = model_reference
        self.adapters: dict[str, Source] = {}
        """Name -> adapter that is served over the model."""
        self.uri = home.tracking_uri
        registered_match = REGISTERED.fullmatch(model_reference)
        self.name: str = registered_match[1] if registered_match else Path(model_reference).resolve().name
        self.alias: str | None = registered_match[2] if registered_match else None
        self.folder = None if registered_match else Path(model_reference)
        if self.folder is not None and not holds_model(self.folder):
            raise UserError(
                f"{model_reference}: not a model's folder (no config.json in it), nor models:/NAME@ALIAS or "
                "models:/NAME/VERSION"
            )

    def now(self) -> Place:
        """Return the model as of now.

        Raises:
            UserError: the registry does not know it, or does not answer.
        """
        if self.folder is not None:
            return Place(self.name, "folder", self.folder)
        name, number = version_of(self.uri, self.asked)
        return Place(name, f"v{number}", None)

    @contextmanager
    def fetched(self, model_location: Place) -> Iterator[Path]:
        """Provide the model's folder, its digests checked; of a remote store a copy for this block.

        Raises:
            UserError: the registry does not know the version, or a file is missing or damaged.
        """
        if model_location.folder is not None:
            yield model_location.folder
            return
        number = model_location.version.removeprefix("v")
        with fetched_model(read_pointer(self.uri, model_location.name, number)) as folder:
            yield folder

    def load(self, model_location: Place, models: ModelHost) -> LoadedModel:
        """Load the model and its adapters; it takes a while and may run in any thread.

        Raises:
            UserError: see `fetched`, `load_model` and `AdapterBank`.
        """
        with ExitStack() as stack:
            folder = stack.enter_context(self.fetched(model_location))
            adapter_folders = {
                name: stack.enter_context(source.fetched(source.now()))
                for name, source in self.adapters.items()
            }
            return models.load(folder, model_location.name, model_location.version, adapter_folders)


async def begin(source: Source, models: ModelHost) -> Place:
    """Load the model that is asked for now and let it answer.

    Raises:
        UserError: see `Source`.
    """
    model_location = await asyncio.to_thread(source.now)
    models.replace(await asyncio.to_thread(source.load, model_location, models))
    return model_location


def names(host: str) -> tuple[str, ...]:
    """Names by which a server on this address may be asked.

    On loopback only its own: a page elsewhere whose name leads here (DNS rebinding) is refused.
    """
    return LOOPBACK if host in LOOPBACK else ("*",)


def adapters_by_name(arguments: list[str], *, on_cluster: bool) -> dict[str, str]:
    """Return name -> adapter of arguments NAME=ADAPTER.

    Raises:
        UserError: an argument has another form, a name is given twice, or a cluster is to serve them.
    """
    if arguments and on_cluster:
        raise UserError("--adapter: not with --cluster; serve them from one process")
    adapter_references: dict[str, str] = {}
    for argument in arguments:
        adapter_name, separator, reference = argument.partition("=")
        if not (adapter_name and separator and reference):
            raise UserError(f"--adapter {argument}: write it as NAME=FOLDER or NAME=models:/NAME@ALIAS")
        if adapter_name in adapter_references:
            raise UserError(f"--adapter {argument}: {adapter_name} is given twice; choose another name")
        adapter_references[adapter_name] = reference
    return adapter_references


def engine_of(name: str, quantization: str, *, with_adapters: bool, on_cluster: bool) -> EngineChoice:
    """Return the engine that the options name.

    Raises:
        UserError: an unknown engine, or an option that it cannot have.
    """
    if name == "openba":
        if quantization != "float32":
            raise UserError("--quantization: only of --engine ctranslate2; leave it out")
        return DEFAULT_ENGINE
    if name != "ctranslate2":
        raise UserError(f"--engine {name}: there is no such engine; take openba or ctranslate2")
    # A converted model has merged weights, and a replica on a cluster would convert it once more.
    if with_adapters:
        raise UserError(
            "--adapter: the engine ctranslate2 serves one model; merge it with openba export, or leave "
            "--engine out"
        )
    if on_cluster:
        raise UserError("--cluster: not with --engine ctranslate2; serve from one process")
    return EngineChoice("ctranslate2", quantization)


def serve(
    model_reference: str,
    home: Home,
    limits: Limits,
    *,
    host: str,
    port: int,
    device: str,
    poll_seconds: float,
    adapters: Mapping[str, str] | None = None,
    engine_choice: EngineChoice = DEFAULT_ENGINE,
) -> None:
    """Answer until SIGINT or SIGTERM.

    Args:
        model_reference: a model's folder or `models:/NAME@ALIAS`.
        home: where the registry is.
        limits: what clients may do.
        host: the address to listen on; any but loopback needs a key in OPENBA_API_KEY.
        port: 0 for a free one.
        device: of the model, as torch names it.
        poll_seconds: seconds between two looks at the alias.
        adapters: name -> folder or address of an adapter over the model, chosen by a request's `model`.
        engine_choice: which engine decodes.

    Raises:
        UserError: no such model or device, no key, or the port is in use.
    """
    api_key = os.environ.get("OPENBA_API_KEY") or None
    if host not in LOOPBACK and api_key is None:
        raise UserError(
            f"--host {host}: set OPENBA_API_KEY to a secret first, or whoever reaches this machine may ask"
        )
    _check_device(device)
    source = Source(model_reference, home)
    source.adapters = {name: Source(reference, home) for name, reference in (adapters or {}).items()}
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(_serve(source, limits, api_key, host, port, device, poll_seconds, engine_choice))


def _check_device(name: str) -> None:
    """Refuse a device that PyTorch does not know or this machine does not have."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: not the name of a device; write cpu, cuda or cuda:0") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: models are served on cpu or cuda")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"--device {name}: PyTorch sees {count} CUDA devices here; take another, or cpu")


async def _serve(
    source: Source,
    limits: Limits,
    api_key: str | None,
    host: str,
    port: int,
    device: str,
    poll_seconds: float,
    engine_choice: EngineChoice,
) -> None:
    listening_socket = _bound(host, port)
    models = ModelHost(limits, ServerMetrics(), device, engine_choice)
    model_location = await begin(source, models)

    class Patient(HeaderTimeoutProtocol):
        client_timeout = limits.client_timeout

    config = uvicorn.Config(
        Application(models, api_key).asgi(names(host)), http=Patient, ws="none", lifespan="off",
        log_level="error", access_log=False, server_header=False, timeout_graceful_shutdown=30,
    )  # fmt: skip
    address = f"http://{host}:{listening_socket.getsockname()[1]}"
    key_note = "with a key" if api_key else "no key"
    print(
        f"{model_location.name} {model_location.version} on {address} ({key_note}; Ctrl-C ends it)",
        flush=True,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening_socket]))
    guarding = asyncio.create_task(models.until_failure())
    watching = asyncio.create_task(watch(source, models, poll_seconds)) if source.alias else None
    try:
        await asyncio.wait({serving, guarding}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            server.should_exit = True
            await asyncio.wait({serving}, timeout=_SECONDS_TO_END)
            _exit_after_failure(model_location.name, guarding.result())
        await serving  # raises what ended it
    finally:
        for task in (guarding, watching):
            if task:
                task.cancel()
        models.close()


def _exit_after_failure(model_name: str, failure: str) -> NoReturn:
    """End the process at once: a thread that hangs in the model must not keep it alive."""
    print(f"openba: {model_name}: the engine is {failure}; the server stops", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(EXIT_ENGINE_FAILED)


async def watch(source: Source, models: ModelHost, poll_seconds: float) -> None:
    """Follow the alias. What cannot be loaded is logged once and tried again; the present model stays."""
    while True:
        await asyncio.sleep(poll_seconds)
        try:
            model_location = await asyncio.to_thread(source.now)
            if models.current is not None and model_location.version == models.current.version:
                models.set_reload_error("")
                continue
            models.replace(await asyncio.to_thread(source.load, model_location, models))
            print(f"{model_location.name} {model_location.version} answers now", flush=True)
        except Exception as error:  # whatever it is must not end the following
            reason = one_line(error)
            if reason != models.reload_error:
                print(
                    f"openba: {source.asked}: the present model goes on: {reason}",
                    file=sys.stderr,
                    flush=True,
                )
            models.set_reload_error(reason)


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket on the address, taken before the model is loaded.

    Raises:
        UserError: it is not to be had.
    """
    listening_socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening_socket.bind((host, port))
    except OSError as error:
        listening_socket.close()
        raise UserError(
            f"--host {host} --port {port}: {error.strerror}; choose another (0: a free port)"
        ) from None
    return listening_socket
