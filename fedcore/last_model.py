"""The last model of a run as a whole, for those who may have it: how a server offers it, and how it is fetched."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from fedcore.broadcast import Broadcast, Payload
from fedcore.clock import Clock
from fedcore.download import Download
from fedcore.errors import FedcoreError, ProtocolError, RemoteError
from fedcore.intake import receive
from fedcore.messages import Committed, ModelQuery, Rest
from fedcore.parameters import Parameters, Spec
from fedcore.registry import codec as find_codec
from fedcore.retry import Persistence
from fedcore.tasks import answer, fail
from fedcore.transport import Body, Connection, Reply, behind

_CODEC = "safetensors"  # lossless, and known everywhere
_MOVED_ON = ("NOT_SELECTED", "INCOMPLETE")  # reasons: another model is the last one now
_TRIES = 5  # models that may each be replaced before they are here
_PATIENCE = 60.0  # seconds without a byte


class LastModel:
    """Offers the model that was made last.

    Args:
        broadcast: encodes it, once for all who ask.
    """

    def __init__(self, broadcast: Broadcast):
        self._broadcast, self._codec = broadcast, find_codec(_CODEC)
        self._last: tuple[int, Parameters, Spec, str] | None = None

    def put(self, number: int, parameters: Parameters, spec: Spec, digest: str) -> None:
        """Offer this model from now on; ``number`` is of the round that made it."""
        self._last = number, parameters, spec, digest

    def answer(self, query: ModelQuery, future: Future[Reply]) -> None:
        """Answer a question for it, now or when it is encoded.

        Raises:
            ProtocolError: there is none yet, or another one than was asked for.
        """
        if self._last is None:
            raise ProtocolError("the run has no model yet", reason="NO_MODEL")
        number, parameters, spec, digest = self._last
        if query.digest not in ("", digest):
            raise ProtocolError("another model is the last one now: ask again", reason="NOT_SELECTED")
        encoded = self._broadcast.payload(parameters, spec, digest, self._codec)
        encoded.add_done_callback(partial(_deliver, number, query, future))


def _deliver(number: int, query: ModelQuery, future: Future[Reply], encoded: Future[Payload]) -> None:
    if encoded.exception():
        return fail(future, RemoteError("the server could not encode the model"))
    payload = encoded.result()
    total = payload.manifest.total_bytes
    if not query.digest:
        return answer(future, Reply(Committed(number, payload.manifest)))
    if query.total_bytes != total or not 0 <= query.offset <= total:
        of = f"the body has {total} bytes; there is none of {query.total_bytes} with a rest at {query.offset}"
        return fail(future, ProtocolError(f"{of}: ask again", reason="BAD_OFFSET"))
    return answer(future, Reply(Rest(total), behind(payload.body, query.offset)))


def fetch(connection: Connection, timeout: float | None = None) -> tuple[Committed, Parameters]:
    """Ask a server for the last model of its run; what breaks off is gone on with.

    Args:
        connection: to the server.
        timeout: seconds to wait for the answer that says what there is.

    Raises:
        AccessError: whoever asks may not have it.
        ProtocolError: there is no model yet (``NO_MODEL``).
        FedcoreError: it could not be had, or is not what it claims to be.
    """
    clock, condition = Clock(), threading.Condition()

    def pause(seconds: float) -> None:
        with condition:
            clock.wait(condition, seconds)

    persistence = Persistence(_PATIENCE, clock, random.Random(), pause, lambda: False)  # noqa: S311 - no secret
    for left in reversed(range(_TRIES)):
        found = connection.request(ModelQuery(), timeout=timeout).message
        if not isinstance(found, Committed):
            raise ProtocolError(f"the server answered with {type(found).__name__} instead of Committed")
        try:
            return found, _received(found, partial(_rest, connection, found), persistence)
        except FedcoreError as error:
            if error.reason not in _MOVED_ON or not left:
                raise
    raise AssertionError("the last try returns or raises")


def _received(found: Committed, rest: Callable[[int], Body], persistence: Persistence) -> Parameters:
    manifest = found.manifest
    if manifest.codec != _CODEC or manifest.base:
        raise ProtocolError(f"the model comes as {manifest.codec[:40]!r} instead of {_CODEC!r}")
    spec = Spec.checked(manifest.tensors)
    return spec.tie(receive(manifest, Download(rest(0), rest, persistence.trial()), spec, find_codec(_CODEC)))


def _rest(connection: Connection, found: Committed, offset: int) -> Body:
    manifest = found.manifest
    return connection.request(ModelQuery(manifest.digest, manifest.total_bytes, offset)).body
