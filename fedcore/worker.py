"""The client's loop: pull a task, do it, hand the result in, until the run is over."""

from __future__ import annotations

import logging
import operator
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from fedcore.algorithm import model_of
from fedcore.client import Client, offers_evaluation
from fedcore.clock import Clock
from fedcore.codec import Codec
from fedcore.cores import cores_lent
from fedcore.errors import ConfigError, FedcoreError, InvalidWeight, SchemaMismatch, from_reason
from fedcore.failpoints import reach
from fedcore.filter import Context, Filter, outgoing
from fedcore.limits import Limits
from fedcore.link import Link
from fedcore.messages import Finished, Kind, Outcome, Status, Task
from fedcore.parameters import Parameters, Spec, difference
from fedcore.personal import Personal
from fedcore.pool import drain
from fedcore.registry import transport as find_transport
from fedcore.site import SitePolicy
from fedcore.transport import Transport
from fedcore.turns import Turns
from fedcore.values import check_metrics

log = logging.getLogger(__name__)


class Worker:
    """Does the tasks of one client.

    Args:
        link: speaks to the server.
        client: the user's training code.
        site: what the site allows.
        keep: file in which what belongs to the client alone is kept.
        filters: go over its updates.

    Raises:
        StateError: the file is damaged.
    """

    def __init__(
        self,
        link: Link,
        client: Client,
        site: SitePolicy | None = None,
        keep: str | None = None,
        filters: Sequence[Filter] = (),
    ):
        self._personal, self._filters = Personal(client, keep), list(filters)
        self._link, self._client, self._site = link, client, site or SitePolicy()
        self._rounds, self._sent = 0, 0

    def run(self) -> str:
        """Work until the run is over, and return what the server said about its end.

        Raises:
            FedcoreError: the server cannot be reached any more, or refuses this client.
            Exception: whatever the user's code raised; the server has been told.
        """
        self._link.register()
        self._link.start_heartbeat()
        try:
            while not isinstance(given := self._link.next_task(), Finished):
                if given[0].kind is Kind.FIT and self._rounds == self._site.max_rounds:
                    self._link.give_back(given[0], "this site has taken part in as many rounds as it may")
                    return f"this site leaves after {self._rounds} rounds"
                self._do(*given)
                del given
            return given.message
        finally:
            reach("stopping")
            self._link.stop_heartbeat()

    def _do(self, task: Task, parameters: Parameters) -> None:
        self._link.update_status(Status.TRAINING)
        self._client._report = lambda step, total: self._link.update_status(Status.TRAINING, step, total)
        spec = self._link.spec if task.kind is not Kind.INITIALIZE else None
        try:
            self._site.check_config(task.config)
            needed = self._site.clip is not None or task.difference or bool(self._filters)
            base = model_of(spec.copy(parameters)) if spec is not None and needed else {}
            if task.partial:
                parameters = self._personal.completed(parameters)
            reach("train.start")
            made, num_examples, metrics = self._answer(task, parameters)
            reach("train.end")
            parameters = {}  # what was received is not kept through the upload
            if task.partial and task.kind is Kind.FIT and spec is not None:
                made = self._personal.parted(made, spec)
            if task.kind is Kind.FIT:
                self._personal.save()
            self._hand_in(task, spec, base, made, num_examples, metrics)
        except BaseException as error:
            told = f"{type(error).__name__}: {error}" if isinstance(error, FedcoreError) else type(error).__name__
            self._link.give_back(task, told)  # what the user's code says may be of its data
            raise

    def _answer(self, task: Task, parameters: Parameters) -> tuple[Mapping[str, Any], int, dict[str, float]]:
        config = dict(task.config)
        if task.kind is Kind.FIT:
            return _unpack_fit(self._client.fit(parameters, config))
        if task.kind is Kind.EVALUATE:
            return _unpack_evaluation(self._client.evaluate(parameters, config))
        return self._client.get_parameters(), 1, {}

    def _hand_in(
        self,
        task: Task,
        spec: Spec | None,
        base: Parameters,
        parameters: Mapping[str, Any],
        num_examples: int,
        metrics: dict[str, float],
    ) -> None:
        wanted = Spec.checked(task.upload) if task.upload or task.kind is Kind.EVALUATE else spec
        if wanted is not None:
            wanted.check(parameters)
            if self._filters and task.kind is Kind.FIT:
                context = Context(task.round, int(str(task.config["seed"])), self._link.client_id)
                parameters = wanted.tie(outgoing(self._filters, dict(parameters), base, context))
            if base:
                parameters = wanted.tie(self._site.clipped(dict(parameters), base))
            if task.difference:
                parameters = wanted.tie(difference(parameters, base))
        shape = wanted or Spec.of(parameters)
        self._site.check_outgoing(shape, self._sent)
        submitted = self._link.submit(task, shape, dict(parameters), num_examples, metrics)
        self._sent, self._rounds = self._sent + shape.nbytes, self._rounds + (task.kind is Kind.FIT)
        if submitted.outcome is Outcome.REJECTED:
            raise from_reason(submitted.reason, f"the server refused the update: {submitted.message}")
        if not submitted.counted:
            log.info("the update for round %d does not count: %s", task.round, submitted.message)


def start_client(
    server_address: str,
    client: Client,
    client_id: str,
    *,
    transport: str | Transport = "grpc",
    codec: str | Codec | None = None,
    accept_codecs: Sequence[str] | None = None,
    patience: float = 300.0,
    clock: Clock | None = None,
    site: SitePolicy | None = None,
    limits: Limits = Limits(),
    keep: str | None = None,
    filters: Sequence[Filter] = (),
) -> None:
    """Take part in a federation until the server says that it is over.

    Args:
        server_address: where the server listens, such as ``"localhost:50051"``. It need not run yet.
        client: the training code.
        client_id: 1 to 64 of ``A-Z a-z 0-9 . _ -``, the same whenever this client comes back.
        transport: a name, or a transport; the server's.
        codec: what updates are sent with; None: what the server sends with.
        accept_codecs: parts of codec names accepted from the server; None: the own codec and all lossless built-in ones
            except ``torch``.
        patience: seconds to go on trying while the server cannot be reached.
        clock: the time.
        site: what the site allows the server to ask, and lets leave; see :class:`~fedcore.SitePolicy`.
        limits: how long the server is waited for when nothing moves; see :class:`~fedcore.Limits`.
        keep: file in which the client's own tensors are kept across its restarts: its part of the model, if the strategy has an
            :class:`~fedcore.Exchange`, and :attr:`Client.memory <fedcore.Client.memory>`. None: while the process lasts.
        filters: go over each update before it leaves, in this order; see :class:`~fedcore.Filter`.

    Raises:
        ConfigError: an argument cannot work.
        StateError: the file to ``keep`` is damaged.
        SiteRefused: the server asked for what the site does not allow; the server was told, and nothing left.
        ConnectionLost: the server could not be reached for ``patience`` seconds.
        UpdateRejected: the server refused an update; the message names the tensor or the field.
        Exception: whatever the client's own code raised.
    """
    if not isinstance(client, Client):
        raise ConfigError(f"client must be an instance of a fedcore.Client subclass, not {client!r}")
    with find_transport(transport).connect(server_address, limits) as connection:
        link = Link(
            connection, client_id, codec=codec, accept_codecs=accept_codecs, patience=patience, clock=clock,
            evaluates=offers_evaluation(client), check=(site or SitePolicy()).check_model, holds=lambda: client.holds,
        )  # fmt: skip
        try:
            message = Worker(link, client, site, keep, filters).run()
        finally:
            drain()
    log.info("client %s: %s", client_id, message)


def start_clients(
    server_address: str,
    clients: Mapping[str, Client],
    *,
    at_once: int | None = None,
    transport: str | Transport = "grpc",
    **settings: Any,
) -> None:
    """Take part with several clients from one process: each has a thread and a connection of its own, and they work in turns.

    Args:
        server_address: where the server listens.
        clients: the training code of each, by client id.
        at_once: how many may work at a time, in their own code or fedcore's; those that wait for the server do not count.
            None: as many as there are cores. With small models 1 is fastest.
        transport: a name, or a transport; the server's.
        settings: as for :func:`start_client`.

    Raises:
        ConfigError: an argument cannot work.
        Exception: what the first client raised that failed, when all have ended.
    """
    shared, gate = find_transport(transport), Turns(cores_lent() if at_once is None else at_once)
    failures: list[BaseException] = []

    def work(client_id: str, client: Client) -> None:
        try:
            with gate:
                start_client(server_address, client, client_id, transport=shared, **settings)
        except BaseException as error:
            log.debug("client %s ended with an error", client_id, exc_info=error)
            failures.append(error)

    threads = [threading.Thread(target=work, args=pair, name=f"fedcore-{pair[0]}", daemon=True) for pair in clients.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _unpack_fit(result: object) -> tuple[Mapping[str, Any], int, dict[str, float]]:
    if not isinstance(result, tuple) or len(result) not in (2, 3) or not isinstance(result[0], Mapping):
        raise SchemaMismatch(
            f"fit must return (parameters, num_examples) or (parameters, num_examples, metrics), not {_shape_of(result)}"
        )
    return result[0], _count(result[1]), _metrics(result[2] if len(result) == 3 else {})


def _unpack_evaluation(result: object) -> tuple[Mapping[str, Any], int, dict[str, float]]:
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise SchemaMismatch(
            f"evaluate must return (loss, num_examples) or (loss, num_examples, metrics), not {_shape_of(result)}"
        )
    return {}, _count(result[1]), {**_metrics(result[2] if len(result) == 3 else {}), **_metrics({"loss": result[0]})}


def _shape_of(result: object) -> str:
    return f"a tuple of {len(result)}" if isinstance(result, tuple) else f"a {type(result).__name__}"


def _count(value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidWeight(f"num_examples must be an integer, not {value!r}") from None


def _metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as plain numbers; numpy scalars and one-element tensors are unwrapped."""
    return check_metrics({name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()})
