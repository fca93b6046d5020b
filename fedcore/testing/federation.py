"""A whole federation in one process."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from fedcore.client import Client
from fedcore.codec import Codec
from fedcore.config import ServerConfig
from fedcore.errors import ConfigError
from fedcore.events import Observer
from fedcore.filter import Filter
from fedcore.history import History
from fedcore.parameters import Parameters
from fedcore.registry import transport as find_transport
from fedcore.server import Server
from fedcore.site import SitePolicy
from fedcore.strategy import Strategy
from fedcore.transport import Transport
from fedcore.turns import Turns
from fedcore.worker import start_client


def run_federation(
    clients: Sequence[Client],
    *,
    strategy: Strategy,
    config: ServerConfig | None = None,
    transport: str | Transport = "memory",
    codec: str | Codec = "safetensors",
    client_codec: str | Codec | None = None,
    client_ids: Sequence[str] | None = None,
    observers: Sequence[Observer] = (),
    timeout: float = 60.0,
    at_once: int | None = None,
    site: SitePolicy | None = None,
    filters: Sequence[Filter] = (),
    keep: Sequence[str] | None = None,
) -> tuple[History, Parameters]:
    """Run a server and its clients, each on a thread, and return ``(history, final_parameters)``.

    Nothing sleeps: on the memory transport a round of a small model takes about a millisecond.

    Args:
        clients: the clients.
        strategy: what the federation computes.
        config: how the run goes; its limits are the clients', too.
        transport: a name, or a transport; it listens on an address of its own choice.
        codec: a name, or a codec; both sides send with it.
        client_codec: what the clients send with, if it is another one.
        client_ids: the clients' names; by default ``client-0``, ``client-1``, ...
        observers: callables that receive every event.
        timeout: seconds after which a run that does not end is an error.
        at_once: how many clients may work at a time; None: all.
        site: what each client's site allows.
        filters: at both ends.
        keep: for each client the file for its own tensors.

    Raises:
        Exception: what the first client raised whose code failed, unless the run went on to its end without it.
        RunFailed: the run ended early.
        TimeoutError: it did not end.
    """
    names = [f"client-{index}" for index in range(len(clients))] if client_ids is None else list(client_ids)
    if len(names) != len(clients):
        raise ConfigError(f"{len(names)} client_ids for {len(clients)} clients")
    wire = find_transport(transport)
    failures: list[BaseException] = []
    gate = Turns(at_once or len(names) or 1)
    server = Server(
        wire.anywhere, config=config, strategy=strategy, transport=wire, codec=codec, observers=observers, filters=filters
    )

    def work(client: Client, name: str) -> None:
        try:
            with gate:
                start_client(
                    server.address, client, name, transport=wire, codec=client_codec or codec, patience=5.0,
                    limits=server.config.limits, site=site, filters=filters,
                    keep=None if keep is None else keep[names.index(name)],
                )  # fmt: skip
        except BaseException as error:  # noqa: BLE001 - raised by the caller's thread below
            failures.append(error)
            if len(failures) == len(clients):
                server.hub.stop("every client failed")

    threads = []
    with server:
        for client, name in zip(clients, names, strict=True):
            threads.append(threading.Thread(target=work, args=(client, name), name=name, daemon=True))
            threads[-1].start()
        try:
            return server.wait(timeout)
        except Exception as error:
            if failures:
                raise failures[0] from error
            raise
        finally:
            server.stop()
            for thread in threads:
                thread.join(timeout=10.0)
