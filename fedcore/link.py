"""A client's link to its server: registration, retries, downloads, uploads, and the heartbeat on a thread of its own."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence
from functools import partial
from secrets import token_hex
from typing import TypeVar

from fedcore import turns
from fedcore.clock import Clock
from fedcore.codec import REFERENCE, Codec
from fedcore.contact import Contact
from fedcore.errors import (
    ChecksumError,
    ConfigError,
    ConnectionLost,
    FedcoreError,
    Fenced,
    NotRegistered,
    ProtocolError,
    SessionError,
    TransportError,
)
from fedcore.failpoints import passing, reach
from fedcore.inbox import Inbox
from fedcore.messages import (
    Answer,
    Assigned,
    Beat,
    BeatReply,
    Directive,
    Fetch,
    Finished,
    Kind,
    Message,
    Outcome,
    Pull,
    Register,
    Registered,
    Rest,
    Session,
    Status,
    Submitted,
    Task,
    Wait,
)
from fedcore.outbox import Outbox, Parcel
from fedcore.parameters import Parameters, Spec
from fedcore.registry import accepted_codec, check_accepts, default_accepts
from fedcore.registry import codec as find_codec
from fedcore.retry import Persistence
from fedcore.transport import Body, Connection, Reply
from fedcore.values import Value, check_client_id

log = logging.getLogger(__name__)
A = TypeVar("A", bound=Answer)

_HOLD = 60.0  # seconds the server may hold a pull back before it is made anew


class Link:
    """Speaks to a server on behalf of one client.

    Args:
        connection: a transport's connection.
        client_id: the client's name.
        codec: what updates are sent with; None: what the server says.
        accept_codecs: parts of codec names accepted from the server; None: the own and all lossless ones but ``torch``.
        evaluates: whether the client offers evaluation.
        patience: seconds to go on trying while the server cannot be reached.
        clock: the time.
        check: judges what a model looks like, before memory is allocated for it.

    Raises:
        ConfigError: an argument cannot work.
    """

    def __init__(
        self,
        connection: Connection,
        client_id: str,
        *,
        codec: str | Codec | None = None,
        accept_codecs: Sequence[str] | None = None,
        evaluates: bool = False,
        patience: float = 300.0,
        clock: Clock | None = None,
        check: Callable[[Spec], None] = lambda spec: None,
        holds: Callable[[], str] = str,
    ):
        self._holds = holds
        own = None if codec is None else find_codec(codec)
        self.client_id = check_client_id(client_id)
        self.accepts = default_accepts(own) if accept_codecs is None else check_accepts(accept_codecs, own)
        connection.wait = turns.result
        self._connection, self._evaluates, self._patience = connection, evaluates, patience
        self._wanted = own
        self._clock = clock or Clock()
        self._jitter = random.Random(client_id)  # noqa: S311 - spreads what many do at a time, no secret
        self._contact = Contact(self._clock, self._jitter, lambda: self._condition, lambda: self._over is not None)
        self._persistence = Persistence(
            patience, self._clock, self._jitter, self._contact.pause, lambda: self._over is not None,
            lambda: self._contact.spread, self._contact.obey,
        )  # fmt: skip
        self._condition = threading.Condition()
        self._registering = threading.Lock()
        self._welcome: Registered | None = None
        self._heart: threading.Thread | None = None
        self._interval = 5.0
        self._stopping = False
        self._status, self._step, self._total = Status.IDLE, 0, 0
        self._task: Task | None = None
        self._instance = token_hex(8)
        self._inbox, self._outbox = Inbox(self.accepts, own, check), Outbox(self._instance)
        self._aborted = False
        self._over: Finished | None = None

    # --- registration and calls ---

    def register(self) -> bool:
        """Register, or register again; goes on trying while the server cannot be reached.

        Raises:
            FedcoreError: the server refused, or could not be reached for ``patience`` seconds.
        """
        codec = self._wanted.name if self._wanted else ""
        message = Register(self.client_id, codec, self.accepts, self._evaluates, instance=self._instance)
        reach("registering")
        self._welcomed(self._persistence.insist(lambda: self._call(message, timeout=self._patience)))
        reach("registered")
        return True

    @property
    def session(self) -> Session:
        """The session that the server gave.

        Raises:
            NotRegistered: before :meth:`register`.
        """
        if self._welcome is None:
            raise NotRegistered("register() first")
        return self._welcome.session

    def _welcomed(self, reply: Reply) -> None:
        welcome = _expect(reply, Registered)
        if welcome.codec != REFERENCE:
            self._inbox.codec = self._wanted or accepted_codec(welcome.codec, self.accepts)
        else:
            self._inbox.codec = None
        self._inbox.deltas = welcome.delta_codec != ""
        self._welcome, self._interval, self._contact.spread = welcome, welcome.heartbeat_interval, welcome.spread

    def _request(self, make: Callable[[Session], Message], body: Body = ()) -> Reply:
        """Make a request under the current session; if the server does not know it (any more), under a new one."""
        session = self.session
        try:
            return self._call(make(session), body)
        except SessionError as error:  # the session is old; whether this process is, registering will say
            self._register_again(session, error)
        try:
            return self._call(make(self.session), body)
        except SessionError as error:  # the server was started once more meanwhile, or a newer process is coming
            raise ConnectionLost(f"the server has forgotten this client again: {error}") from error

    def _call(self, message: Message, body: Body = (), timeout: float | None = None) -> Reply:
        if self._connection.takes_turns:
            reply = self._connection.request(message, body, timeout)
        else:
            with turns.away():
                reply = self._connection.request(message, body, timeout)
        self._contact.made()
        return reply

    def _register_again(self, stale: Session, error: FedcoreError) -> None:
        with self._registering:
            if self.session is stale:  # nobody else did meanwhile
                log.info("client %s registers again: %s", self.client_id, error)
                self.register()

    # --- tasks ---

    def next_task(self) -> tuple[Task, Parameters] | Finished:
        """Wait for the next task and its payload, or for the end of the run.

        Raises:
            FedcoreError: the server cannot be reached, or what it sends cannot be used.
        """
        while not self._over:
            self.update_status(Status.WAITING)
            reach("waiting")
            try:
                given = self._persistence.insist(self._pull)
            except FedcoreError as error:
                if self._over:  # the heartbeat heard of the end, and the server is gone
                    break
                if self._task is not None:
                    self.give_back(self._task, f"the download failed: {error}")
                raise
            if isinstance(given, Finished):
                self._over = given
            elif given is not None:
                return given
        return self._over

    def _pull(self) -> tuple[Task, Parameters] | Finished | None:
        hold = self._jitter.uniform(0.75, 1.0) * _HOLD  # so that those who came together do not come again together
        reply = self._request(lambda session: Pull(session, hold, self._holds() or self._inbox.holds))
        if isinstance(reply.message, Assigned):
            return self._accept(reply.message, reply.body)
        if isinstance(reply.message, Finished):
            return reply.message
        _expect(reply, Wait)
        return None

    def _accept(self, assigned: Assigned, body: Body) -> tuple[Task, Parameters] | None:
        task = assigned.task
        self._task, self._aborted = task, False
        if again := self._outbox.answer_to(task):
            log.info("client %s: the server has lost its update of round %d, and gets it again", self.client_id, task.round)
            self.update_status(Status.SUBMITTING_UPDATE)
            self._deliver(again)
            return None
        self.update_status(Status.FETCHING_MODEL)
        rest, trial = partial(self._rest, assigned), self._persistence.trial()
        return task, self._inbox.receive(assigned.manifest, body, rest, trial)

    def _rest(self, assigned: Assigned, offset: int) -> Body:
        total = assigned.manifest.total_bytes
        reply = self._request(lambda session: Fetch(session, assigned.task.id, total, offset))
        _expect(reply, Rest)
        return reply.body

    @property
    def _told_to_keep(self) -> bool:
        return self._welcome is not None and self._welcome.keeps

    @property
    def spec(self) -> Spec | None:
        """What the payload of the current task looks like."""
        return self._inbox.spec

    def submit(
        self, task: Task, spec: Spec, parameters: Parameters, num_examples: int, metrics: dict[str, float]
    ) -> Submitted:
        """Hand in the answer to a task. It is sent again, as the same attempt, until the server has answered.

        Raises:
            FedcoreError: the server cannot be reached.
        """
        if self._aborted or self._over:
            return Submitted(Outcome.CLOSED, "ROUND_CLOSED", "the server no longer waits for it")
        self.update_status(Status.SUBMITTING_UPDATE, self._step, self._total)
        parcel = self._outbox.pack(
            task, spec, parameters, num_examples, metrics, codec=self._inbox.codec, base=self._inbox.base,
            keeps=self._told_to_keep,
        )  # fmt: skip
        reach("encode.done")
        return self._deliver(parcel)

    def _deliver(self, parcel: Parcel) -> Submitted:
        submitted = self._persistence.insist(lambda: self._hand_in(parcel))
        reach("submit.sent_no_ack")
        self._outbox.settle(parcel, submitted, keeps=self._told_to_keep)
        reach("submit.acked")
        self._task = None
        self._obey(submitted.directive)
        return submitted

    def _hand_in(self, parcel: Parcel) -> Submitted:
        body = passing(parcel.payload.body, parcel.payload.manifest.total_bytes, "submit")
        submitted = _expect(self._request(parcel.header, body), Submitted)
        if submitted.reason == ChecksumError.reason:
            raise ChecksumError(submitted.message)
        return submitted

    def give_back(self, task: Task, reason: str) -> None:
        """Tell the server that a task will not be done; never raises, because it is called when something else failed."""
        beat = Beat(self.session, Status.ERROR, round=task.round, task_id=task.id, message=reason[:500])
        try:
            self._call(beat, timeout=5.0)
        except FedcoreError as error:
            log.warning("client %s could not give task %s back: %s", self.client_id, task.id, error)
        self._task = None

    def get_global_model(self) -> tuple[Parameters, int, dict[str, Value]] | None:
        """Wait for the next training task: ``(parameters, round, config)``, or None when the run is over.

        Tasks of other kinds are given back. For those who write their own loop; :func:`fedcore.start_client` has one.
        """
        while not isinstance(given := self.next_task(), Finished):
            task, parameters = given
            if task.kind is Kind.FIT:
                return parameters, task.round, dict(task.config)
            self.give_back(task, "this client only trains")
        return None

    def submit_update(self, parameters: Parameters, num_examples: int, round_number: int) -> bool:
        """Hand in the update for the task that :meth:`get_global_model` returned; returns whether it counts.

        Raises:
            ProtocolError: there is no such task.
            SchemaMismatch: the parameters do not look like the model.
        """
        task = self._task
        if task is None or self.spec is None or task.round != round_number:
            raise ProtocolError(f"no task of round {round_number} is open; call get_global_model() first")
        spec = Spec.checked(task.upload) if task.upload else self.spec
        spec.check(parameters)
        return self.submit(task, spec, parameters, num_examples, {}).counted

    # --- heartbeat ---

    def update_status(self, status: str, current_step: int = 0, total_steps: int = 0) -> None:
        """Set what the next heartbeat says.

        Raises:
            ConfigError: the status is none of the six.
        """
        try:
            self._status = status if type(status) is Status else Status(status)
        except ValueError:
            raise ConfigError(f"status {status!r} is none of: {', '.join(Status)}") from None
        self._step, self._total = max(0, int(current_step)), max(0, int(total_steps))

    def send_heartbeat(self) -> bool:
        """Send one heartbeat and do what the answer says; returns whether the server acknowledged it.

        Raises:
            FedcoreError: it could not be sent, or was refused.
        """
        task, session = self._task, self.session
        of = (task.round, task.id) if task else (0, "")
        beat = Beat(session, self._status, self._step, self._total, *of)
        try:
            reply = _expect(self._connection.request(beat, timeout=self._interval * 2 + 1), BeatReply)
        except SessionError as error:  # the session is old; whether this process is, registering will say
            self._register_again(session, error)
            return False
        except TransportError as error:
            self._contact.lost = error.retry_after is None  # else it was the server that said so
            raise
        self._contact.made()
        self._interval, self._contact.spread = reply.heartbeat_interval or self._interval, reply.spread
        if reply.directive is Directive.ABORT_TASK and task is self._task:
            self._aborted = True
        self._obey(reply.directive, reply.message)
        return reply.acknowledged

    def start_heartbeat(self) -> None:
        """Start the thread that sends a heartbeat at the interval the server wants."""
        self._heart = threading.Thread(target=self._beat, name=f"fedcore-heart-{self.client_id}", daemon=True)
        self._heart.start()

    def stop_heartbeat(self) -> None:
        """Stop the heartbeat and wait for its thread to end."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._heart is not None:
            self._heart.join(timeout=10.0)

    def _beat(self) -> None:
        while True:
            with self._condition:
                self._contact.rest(self._interval, lambda: self._stopping)
                if self._stopping:
                    return
            if self._task is None:
                reach("idle")
            try:
                self.send_heartbeat()
            except Fenced:
                return  # another process speaks for this client now; the next call says so
            except FedcoreError as error:
                log.debug("client %s: heartbeat failed: %s", self.client_id, error)

    def _obey(self, directive: Directive, message: str = "") -> None:
        if directive is Directive.STOP:
            with self._condition:
                self._over = Finished(message or "the run is over")
                self._condition.notify_all()


def _expect(reply: Reply, kind: type[A]) -> A:
    if not isinstance(reply.message, kind):
        raise ProtocolError(f"the server answered with {type(reply.message).__name__} instead of {kind.__name__}")
    return reply.message
