"""The client's end: two channels, one for models and one for heartbeats, each with a connection of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import grpc

from fedcore.errors import ConnectionLost, DeadlineExceeded, FedcoreError, ProtocolError, Unauthenticated
from fedcore.limits import Limits
from fedcore.messages import (
    Assigned,
    AuditQuery,
    Beat,
    Command,
    Done,
    Fetch,
    Message,
    ModelQuery,
    Pull,
    Register,
    Rest,
    StatusQuery,
    Submit,
    Submitted,
)
from fedcore.protos import fedcore_pb2 as pb
from fedcore.security import TLS
from fedcore.tokens import own_token
from fedcore.transport import Body, Connection, Reply, behind
from fedcore.transports.grpc import checksums, status, wire
from fedcore.transports.grpc.credentials import AUTHORIZATION, Files, channel_credentials, is_unwelcome
from fedcore.transports.grpc.framing import (
    LARGEST_CHUNK,
    OFFSET,
    RESUMABLE,
    SMALLEST_CHUNK,
    Assembly,
    chunks,
    parse,
    with_body,
    without_body,
)
from fedcore.transports.grpc.options import channel_options
from fedcore.transports.grpc.policy import TransferPolicy
from fedcore.transports.grpc.watch import Watch

SERVICE = pb.DESCRIPTOR.services_by_name["FederatedLearningService"].full_name
_HEART_LIMIT = 1 << 20  # bytes of a heartbeat, with all that grpc puts around it
_PULL_MARGIN = 30.0  # seconds a pull may take beyond what the server was asked to hold it


class GrpcConnection(Connection):
    """Speaks to one server. Nothing is sent before the first request."""

    def __init__(
        self,
        target: str,
        *,
        transfer: TransferPolicy,
        chunk_bytes: int,
        limits: Limits,
        tls: TLS | None = None,
        token: str | None = None,
    ):
        self._target, self._transfer, self._chunk_bytes, self._stall = target, transfer, chunk_bytes, limits.stall_timeout
        self._tls, self._files = tls, None if tls is None else Files(tls)
        self._token = None if token is None else own_token(token)
        self._models, self._hearts = self._channel(transfer.message_limit), self._channel(_HEART_LIMIT)
        self._closed, self._broke, self._lock = False, False, threading.Lock()

    def _channel(self, message_limit: int) -> grpc.Channel:
        options: list[tuple[str, Any]] = [*channel_options(message_limit)]
        if self._files is None:
            return grpc.insecure_channel(self._target, options)
        if self._target.startswith("unix:"):  # what else would a certificate be of
            options = [*options, ("grpc.default_authority", "localhost")]
        return grpc.secure_channel(self._target, channel_credentials(self._files), options)

    def request(self, message: Message, body: Body = (), timeout: float | None = None) -> Reply:
        """Send one message and wait for its reply."""
        if self._closed:
            raise ConnectionLost("the connection is closed")
        channel = self._hearts if isinstance(message, Beat) else self._models
        try:
            return self._dispatch(message, body, timeout)
        except grpc.RpcError as error:
            raise self._error(error, channel) from None
        except ValueError as error:
            raise _gone(error) from None

    def _error(self, error: grpc.RpcError, channel: grpc.Channel) -> FedcoreError:
        """Return what a failed call means. A connection that is lost is made anew by the next call, and not before."""
        found = status.error_of(error, self._target)
        if not status.is_lost(error) or self._closed:
            return found
        self._broke = True
        if self._tls and self._files and not self._files.changed and is_unwelcome(self._tls, self._target):
            shown = self._tls.certificate or "that there is no certificate"
            return Unauthenticated(
                f"{self._target} ends the connection when it sees {shown}: it wants one of an authority that it knows, for "
                "this purpose, and valid now"
            )
        self._renew(channel)
        return found

    def _renew(self, channel: grpc.Channel) -> None:
        """Give a connection up: grpc would try again by itself, at times of its own. Certificates that changed are read."""
        with self._lock:
            if self._closed or channel not in (self._models, self._hearts):
                return
            if channel is self._models:
                self._models = self._channel(self._transfer.message_limit)
            else:
                self._hearts = self._channel(_HEART_LIMIT)
        channel.close()

    def close(self) -> None:
        """Cut off what is in progress and close both channels."""
        self._closed = True
        self._models.close()
        self._hearts.close()

    def _dispatch(self, message: Message, body: Body, timeout: float | None) -> Reply:
        if isinstance(message, Pull):
            return self._pull(message, timeout)
        if isinstance(message, ModelQuery) and not message.digest:
            data = self._unary(self._models, "GetGlobalModel", wire.pack_fetch(message).SerializeToString(), timeout)
            return Reply(wire.unpack_pulled(parse(pb.GetGlobalModelResponse, data)))
        if isinstance(message, Fetch | ModelQuery):
            body = self._download(message)
            return Reply(Rest(message.total_bytes), _begun(next(body), body))  # what is wrong with the request shows now
        if isinstance(message, Submit):
            return Reply(self._submit(message, body, timeout))
        if isinstance(message, Beat):
            data = self._unary(self._hearts, "Heartbeat", wire.pack_beat(message).SerializeToString(), timeout)
            return Reply(wire.unpack_beat_reply(parse(pb.HeartbeatResponse, data)))
        if isinstance(message, Register):
            data = self._unary(
                self._models, "RegisterClient", wire.pack_register(message).SerializeToString(), timeout
            )
            return Reply(wire.unpack_registered(parse(pb.RegisterClientResponse, data)))
        if isinstance(message, StatusQuery):
            data = self._unary(self._models, "GetServerStatus", pb.GetServerStatusRequest().SerializeToString(), timeout)
            return Reply(wire.unpack_status(parse(pb.GetServerStatusResponse, data)))
        if isinstance(message, AuditQuery):
            data = self._unary(self._models, "GetAuditLog", wire.pack_audit_query(message).SerializeToString(), timeout)
            return Reply(wire.unpack_audit_page(parse(pb.GetAuditLogResponse, data)))
        if isinstance(message, Command):
            data = self._unary(self._models, "Control", wire.pack_command(message).SerializeToString(), timeout)
            return Reply(Done(parse(pb.ControlResponse, data).message))
        raise ProtocolError(f"no such request: {type(message).__name__}")

    def _pull(self, pull: Pull, timeout: float | None) -> Reply:
        request = wire.pack_pull(pull, stream=self._broke)
        patience = pull.wait + _PULL_MARGIN if timeout is None else timeout
        data = self._unary(self._models, "GetGlobalModel", request.SerializeToString(), patience)
        response, body = without_body(pb.GetGlobalModelResponse, data)
        answer = wire.unpack_pulled(response)
        if not isinstance(answer, Assigned):
            return Reply(answer)
        if not response.stream:
            return Reply(answer, [body])
        return Reply(answer, self._download(Fetch(pull.session, answer.task.id, answer.manifest.total_bytes)))

    def _download(self, fetch: Fetch | ModelQuery) -> Iterator[memoryview]:
        assembly = Assembly(pb.ModelChunk, fetch.total_bytes - fetch.offset, LARGEST_CHUNK, SMALLEST_CHUNK)
        channel = self._models
        start: Any = channel.unary_stream(_path("GetGlobalModelStream"))
        try:
            data = wire.pack_fetch(fetch).SerializeToString()
            call = start(data, metadata=self._beside(data))
        except ValueError as error:
            raise _gone(error) from None
        try:
            with Watch(self._stall, lambda: self._carries(channel), call.cancel) as watch:
                if not call.add_callback(watch.leave):  # who stops reading may hold on to what was read
                    watch.leave()
                for data in call:
                    yield assembly.take(_whole(data))
                    watch.progress()
        except grpc.RpcError as error:
            raise self._stalled(channel) if watch.ended else self._error(error, channel) from None
        finally:
            call.cancel()  # it may be left early
        assembly.end()

    def _submit(self, submit: Submit, body: Body, timeout: float | None) -> Submitted:
        header = wire.pack_submit(submit)
        total = submit.manifest.total_bytes
        try:
            names = (info.name for info in submit.manifest.tensors)
            if self._transfer.streams(total, names) or (self._broke and total > RESUMABLE):
                data = self._upload(_Upload(header, body, total, self._chunk_bytes), timeout)
            else:
                whole = with_body(pb.SubmitModelUpdateRequest(header=header), body, total)
                channel = self._models  # another thread may renew it meanwhile
                start: Any = channel.unary_unary(_path("SubmitModelUpdate"))
                data = self._outcome(channel, start.future(whole, timeout=timeout, metadata=self._beside(whole)))
        except grpc.RpcError as error:
            refused = status.outcome_of(error)
            if refused is None:
                raise
            return refused
        return wire.unpack_submitted(parse(pb.SubmitModelUpdateResponse, data))

    def _upload(self, upload: _Upload, timeout: float | None) -> bytes:
        channel = self._models
        start: Any = channel.stream_unary(_path("SubmitModelUpdateStream"))
        call = start.future(iter(upload), timeout=timeout, metadata=self._beside(upload.header))
        upload.call.set_result(call)
        try:
            return self._outcome(channel, call, lambda: upload.chunks)
        except grpc.RpcError:
            if upload.error is not None:  # grpc would say no more than that the iterator raised
                raise upload.error from None
            raise

    def _outcome(self, channel: grpc.Channel, call: Any, progress: Callable[[], int] = lambda: 0) -> bytes:
        """Wait for a call's answer, however long that takes, as long as its connection carries anything."""
        while True:
            before = progress()
            try:
                return _intact(call.result(self._stall), call)
            except grpc.FutureTimeoutError:
                if progress() == before and not self._carries(channel):
                    call.cancel()
                    raise self._stalled(channel) from None

    def _carries(self, channel: grpc.Channel) -> bool:
        """Return whether a connection still carries a question to the server and its answer back."""
        ask: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            ask(b"", timeout=self._stall)
        except grpc.RpcError as error:
            return error.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        except ValueError:  # it was closed meanwhile
            return False
        return True

    def _stalled(self, channel: grpc.Channel) -> DeadlineExceeded:
        """Give a connection up on which nothing moves any more, and return the error that says so."""
        self._broke = True
        self._renew(channel)
        return DeadlineExceeded(f"nothing went to or from {self._target} for {self._stall:g} s", reason="STALLED_STREAM")

    def _unary(self, channel: grpc.Channel, name: str, data: bytes, timeout: float | None) -> bytes:
        ask: Any = channel.unary_unary(_path(name))
        return _intact(*ask.with_call(data, timeout=timeout, metadata=self._beside(data)))

    def _beside(self, message: bytes) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a call: the checksum of its (first) message, and what shows who calls."""
        if self._token is None:
            return (checksums.stated(message),)
        self._token.refresh()
        return checksums.stated(message), (AUTHORIZATION, f"Bearer {self._token.value}")


class _Upload:
    """The messages of an upload: the header, and when the server is ready for it, the body.

    Attributes:
        header: the first of them.
        call: to be told of the call that they are read by.
        error: what went wrong while they were read.
        chunks: how many were read so far.
    """

    def __init__(self, header: pb.UpdateHeader, body: Body, total: int, chunk_bytes: int):
        self.header = pb.ModelUpdateChunk(header=header).SerializeToString()
        self._body, self._total, self._chunk_bytes = body, total, chunk_bytes
        self.chunks = 0
        self.call: Future[Any] = Future()
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        yield self.header
        metadata = dict(self.call.result().initial_metadata())  # there when the server reads on, or the call is over
        try:
            offset = _offset(metadata.get(OFFSET, "0"), self._total)
            rest = chunks(pb.ModelUpdateChunk, behind(self._body, offset), self._total - offset, self._chunk_bytes)
            for chunk in rest:
                yield chunk
                self.chunks += 1
        except Exception as error:
            self.error = error
            raise


def _gone(error: ValueError) -> ConnectionLost:
    """Return what grpc means with a ValueError: a channel that was closed meanwhile."""
    return ConnectionLost(f"the connection is closed: {error}")


def _offset(text: str, total: int) -> int:
    """Return how many bytes of an upload the server has.

    Raises:
        ProtocolError: it cannot have so many.
    """
    if not text.isdecimal() or int(text) > total:
        raise ProtocolError(f"the server claims to have {text[:20]!r} of {total} bytes", reason="BAD_OFFSET")
    return int(text)


def _begun(first: memoryview, rest: Iterator[memoryview]) -> Iterator[memoryview]:
    yield first
    yield from rest


def _whole(data: bytes | None) -> bytes:
    """Return a message; grpc has None for one that was damaged below it."""
    if data is None:
        raise ConnectionLost("the answer was lost on the way")
    return data


def _intact(data: bytes | None, call: Any) -> bytes:
    """Return the answer to a call, if it is the one that was sent."""
    answer = _whole(data)
    checksums.check(answer, call.trailing_metadata())
    return answer


def _path(name: str) -> str:
    return f"/{SERVICE}/{name}"
