"""The client's end: two channels, one for models and one for heartbeats, each with a connection of its own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import grpc

from fedcore.errors import ConnectionLost, ProtocolError
from fedcore.messages import Assigned, Beat, Message, Pull, Register, StatusQuery, Submit, Submitted
from fedcore.protos import fedcore_pb2 as pb
from fedcore.transport import Body, Connection, Reply
from fedcore.transports.grpc import status, wire
from fedcore.transports.grpc.framing import LARGEST_CHUNK, SMALLEST_CHUNK, Assembly, chunks, parse, with_body, without_body
from fedcore.transports.grpc.options import channel_options
from fedcore.transports.grpc.policy import TransferPolicy

SERVICE = pb.DESCRIPTOR.services_by_name["FederatedLearningService"].full_name
_PULL_MARGIN = 30.0  # seconds a pull may take beyond what the server was asked to hold it


class GrpcConnection(Connection):
    """Speaks to one server. Nothing is sent before the first request."""

    def __init__(self, target: str, *, transfer: TransferPolicy, chunk_bytes: int):
        self._target, self._transfer, self._chunk_bytes = target, transfer, chunk_bytes
        self._models = grpc.insecure_channel(target, channel_options(transfer.message_limit))
        self._hearts = grpc.insecure_channel(target, channel_options(1 << 20))
        self._closed = False

    def request(self, message: Message, body: Body = (), timeout: float | None = None) -> Reply:
        """Send one message and wait for its reply."""
        if self._closed:
            raise ConnectionLost("the connection is closed")
        try:
            return self._dispatch(message, body, timeout)
        except grpc.RpcError as error:
            raise status.error_of(error, self._target) from None
        except ValueError as error:  # grpc's word for a channel that was closed meanwhile
            raise ConnectionLost(f"the connection is closed: {error}") from None

    def close(self) -> None:
        """Cut off what is in progress and close both channels."""
        self._closed = True
        self._models.close()
        self._hearts.close()

    def _dispatch(self, message: Message, body: Body, timeout: float | None) -> Reply:
        if isinstance(message, Pull):
            return self._pull(message, timeout)
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
            query = pb.GetServerStatusRequest().SerializeToString()
            data = self._unary(self._models, "GetServerStatus", query, timeout)
            return Reply(wire.unpack_status(parse(pb.GetServerStatusResponse, data)))
        raise ProtocolError(f"no such request: {type(message).__name__}")

    def _pull(self, pull: Pull, timeout: float | None) -> Reply:
        request = pb.GetGlobalModelRequest(session=wire.pack_session(pull.session), wait_seconds=pull.wait, holds=pull.holds)
        patience = pull.wait + _PULL_MARGIN if timeout is None else timeout
        data = self._unary(self._models, "GetGlobalModel", request.SerializeToString(), patience)
        response, body = without_body(pb.GetGlobalModelResponse, data)
        answer = wire.unpack_pulled(response)
        if not isinstance(answer, Assigned):
            return Reply(answer)
        if not response.stream:
            return Reply(answer, [body])
        fetch = pb.GetGlobalModelRequest(session=request.session, task_id=answer.task.id)
        return Reply(answer, self._download(fetch.SerializeToString(), answer.manifest.total_bytes))

    def _download(self, fetch: bytes, total: int) -> Iterator[memoryview]:
        assembly = Assembly(pb.ModelChunk, total, LARGEST_CHUNK, SMALLEST_CHUNK)
        start: Any = self._models.unary_stream(_path("GetGlobalModelStream"))
        call = start(fetch)
        try:
            for data in call:
                yield assembly.take(_whole(data))
        except grpc.RpcError as error:
            raise status.error_of(error, self._target) from None
        finally:
            call.cancel()  # it may be left early
        assembly.end()

    def _submit(self, submit: Submit, body: Body, timeout: float | None) -> Submitted:
        header = wire.pack_submit(submit)
        total = submit.manifest.total_bytes
        try:
            if self._transfer.streams(total, (info.name for info in submit.manifest.tensors)):
                data = self._upload(_Upload(header, body, total, self._chunk_bytes), timeout)
            else:
                whole = with_body(pb.SubmitModelUpdateRequest(header=header), body, total)
                data = self._unary(self._models, "SubmitModelUpdate", whole, timeout)
        except grpc.RpcError as error:
            refused = status.outcome_of(error)
            if refused is None:
                raise
            return refused
        return wire.unpack_submitted(parse(pb.SubmitModelUpdateResponse, data))

    def _upload(self, upload: _Upload, timeout: float | None) -> bytes:
        try:
            start: Any = self._models.stream_unary(_path("SubmitModelUpdateStream"))
            call = start.future(iter(upload), timeout=timeout)
            upload.call.set_result(call)
            return _whole(call.result())
        except grpc.RpcError:
            if upload.error is not None:  # grpc would say no more than that the iterator raised
                raise upload.error from None
            raise

    def _unary(self, channel: grpc.Channel, name: str, data: bytes, timeout: float | None) -> bytes:
        call: Any = channel.unary_unary(_path(name))
        return _whole(call(data, timeout=timeout))


class _Upload:
    """The messages of an upload: the header, and when the server is ready for it, the body.

    Attributes:
        call: to be told of the call that they are read by.
        error: what went wrong while they were read.
    """

    def __init__(self, header: pb.UpdateHeader, body: Body, total: int, chunk_bytes: int):
        self._header, self._body, self._total, self._chunk_bytes = header, body, total, chunk_bytes
        self.call: Future[Any] = Future()
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        yield pb.ModelUpdateChunk(header=self._header).SerializeToString()
        self.call.result().initial_metadata()  # there when the server reads on, or the call is over
        try:
            yield from chunks(pb.ModelUpdateChunk, self._body, self._total, self._chunk_bytes)
        except Exception as error:
            self.error = error
            raise


def _whole(data: bytes | None) -> bytes:
    """Return a message; grpc has None for one that was damaged below it."""
    if data is None:
        raise ConnectionLost("the answer was lost on the way")
    return data


def _path(name: str) -> str:
    return f"/{SERVICE}/{name}"
