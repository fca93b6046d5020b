"""Where every request comes in: who may ask for what, what operators and admins ask, and the rest for the hub."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial

from fedcore import events as ev
from fedcore.access import check_access
from fedcore.audit_pages import Pages
from fedcore.errors import FedcoreError, ProtocolError
from fedcore.hub import Hub
from fedcore.last_model import LastModel
from fedcore.limits import Limits
from fedcore.messages import (
    Act,
    AuditQuery,
    Command,
    Done,
    Message,
    ModelQuery,
    ServerStatus,
    StatusQuery,
    Submitted,
    Unread,
)
from fedcore.refusals import Refusals
from fedcore.security import Identity, Role
from fedcore.tasks import answer, fail
from fedcore.transport import Reply, Request

_LONGEST_REASON = 500


class Border:
    """Lets requests in.

    Args:
        hub: does what clients ask.
        last: the last model, for those who may have it.
        share_model: whether clients may.
        limits: how often who is told that it may not.

    Attributes:
        pages: hands out the audit log; None: there is none.
    """

    pages: Pages | None = None

    def __init__(self, hub: Hub, last: LastModel, *, share_model: bool = False, limits: Limits = Limits()):
        self._hub, self._last, self._share_model, self._since = hub, last, share_model, hub.clock.now()
        self._refusals = Refusals(hub, limits.refusals_per_minute)

    def handle(self, request: Request) -> Future[Reply]:
        """Answer a request, now or later; the future carries a FedcoreError if it is refused."""
        message, peer = request.message, request.peer
        try:
            if isinstance(message, Unread) and message.problem:
                raise message.problem
            check_access(peer, message, share_model=self._share_model)
            future = self._answer(request)
        except FedcoreError as error:
            future = Future()
            fail(future, self._refusals.note(peer, message, error))
        else:
            future.add_done_callback(partial(self._look_back, peer, message))
        return future

    def _answer(self, request: Request) -> Future[Reply]:
        message, future = request.message, Future[Reply]()
        if isinstance(message, StatusQuery):
            answer(future, Reply(self.status(request.peer)))
        elif isinstance(message, ModelQuery):
            self._last.answer(message, future)
        elif isinstance(message, AuditQuery):
            return self._read(message, request.peer)
        elif isinstance(message, Command):
            answer(future, Reply(self._obey(message, request.peer)))
        else:
            return self._hub.handle(request)
        return future

    def _look_back(self, peer: Identity, message: Message, answered: Future[Reply]) -> None:
        """Note it if something was refused after all."""
        if answered.cancelled():
            return
        error = answered.exception()
        if isinstance(error, FedcoreError):
            self._refusals.note(peer, message, error)
        elif error is None and isinstance(said := answered.result().message, Submitted) and not said.counted:
            self._refusals.note_update(peer, said)

    def status(self, of: Identity | None = None) -> ServerStatus:
        """Describe how the run stands, to somebody who may see it: of the clients, a client sees itself alone."""
        hub = self._hub
        with hub.condition:
            machine, now = hub.coordinator, hub.clock.now()
            phase = "paused" if hub.paused or machine.held else machine.phase.value
            members = machine.roster.describe(now, {name: route.traffic for name, route in hub.reception.routes.items()})
            refused = self._refusals.counts
            if of is not None and of.role is Role.CLIENT:
                members, refused = tuple(each for each in members if each.client_id == of.name), {}
            return ServerStatus(
                run_id=machine.run_id, phase=phase, round=machine.round, committed=machine.progress.committed,
                num_rounds=machine.progress.num_rounds, accepted=machine.rounds.fit.count if machine.rounds.fit else 0,
                target=machine.policy.target, codec=hub.codec.name, elapsed=now - self._since, clients=members,
                metrics=dict(hub.metrics), traffic=hub.tasks.traffic, encodings=hub.tasks.broadcast.encodings,
                refused=refused,
            )  # fmt: skip

    def _read(self, query: AuditQuery, peer: Identity) -> Future[Reply]:
        """Hand out a page of the audit log, and note there who reads it."""
        if self.pages is None:
            what = "this server keeps no audit log: it has neither a state_dir nor an audit_log (see ServerConfig)"
            raise ProtocolError(what, reason="NO_AUDIT_LOG")
        self._hub.record(ev.AuditRead(at=self._hub.clock.now(), peer=peer.name, address=peer.address, after=query.after))
        return self.pages.answer(query)

    def _obey(self, command: Command, peer: Identity) -> Done:
        """Do what an admin says."""
        now, reason = self._hub.clock.now(), command.reason[:_LONGEST_REASON] or f"{command.act} by {peer.name or 'an admin'}"
        with self._hub.turn() as coordinator:
            if command.act is Act.STOP:
                coordinator.finish(reason, now)
            elif command.act is Act.EVICT:
                coordinator.evict(command.client_id, reason, now, for_good=command.for_good)
            else:
                coordinator.hold(reason if command.act is Act.PAUSE else "")
            coordinator.events.append(
                ev.Commanded(
                    at=now, peer=peer.name, address=peer.address, act=command.act, client_id=command.client_id, reason=reason
                )
            )
        return Done(f"{command.act}: done")
