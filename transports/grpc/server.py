"""The server's end: an asyncio gRPC server on a thread of its own.

Every call is a coroutine, so one thread holds any number of waiting clients. Messages are taken and given as raw bytes and
parsed here, so that what cannot be parsed is answered properly. Work on bodies is done elsewhere: uploads are read by the
thread that takes them in, large answers are put together in an executor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from secrets import token_hex
from typing import Any, NoReturn

import grpc
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from fedcore.errors import AddressError, DeadlineExceeded, FedcoreError, ProtocolError, RemoteError
from fedcore.limits import Limits
from fedcore.messages import Assigned, ModelQuery, Rest, StatusQuery, Unread
from fedcore.protos import fedcore_pb2 as pb
from fedcore.security import TLS, Role
from fedcore.tokens import Tokens
from fedcore.transport import Body, Buffer, Handler, Listener, Reply, Request, leave
from fedcore.transports.grpc import checksums, status, wire
from fedcore.transports.grpc.credentials import server_credentials
from fedcore.transports.grpc.feed import Feed
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
from fedcore.transports.grpc.guard import Guard
from fedcore.transports.grpc.options import server_options
from fedcore.transports.grpc.policy import TransferPolicy
from fedcore.transports.grpc.speed import Speed

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["FederatedLearningService"].full_name
_LEAST_HEADER = 1 << 20  # bytes that an update's header may have, and twice what a task's has
_INLINE = 4 << 20  # answers above this size are put together off the event loop


class GrpcListener(Listener):
    """Serves a handler over gRPC until it is stopped."""

    def __init__(
        self,
        target: str,
        handler: Handler,
        *,
        transfer: TransferPolicy,
        chunk_bytes: int,
        limits: Limits,
        tls: TLS | None = None,
        tokens: Tokens | None = None,
    ):
        self._target, self._tls = target, tls
        self._service = Service(handler, transfer, chunk_bytes, limits, Guard(handler, tls, tokens))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fedcore-grpc", daemon=True)
        self._thread.start()
        self._stopped = False
        try:
            self._port = self._call(self._start(transfer.message_limit))
        except BaseException:
            self._end_loop()
            raise

    @property
    def address(self) -> str:
        """The address with the real port."""
        if self._target.startswith("unix:"):
            return self._target
        return f"{self._target.rpartition(':')[0]}:{self._port}"

    def stop(self, grace: float = 0.0) -> None:
        """Take no new calls, give those in progress ``grace`` seconds, then cut them off."""
        if self._stopped:
            return
        self._stopped = True
        self._call(self._stop(grace))
        # grpc's own thread ends with the last server; one that runs while the interpreter ends can abort the process
        del self._server, self._health
        self._end_loop()

    async def _start(self, message_limit: int) -> int:
        self._server = grpc.aio.server(options=server_options(message_limit))
        self._server.add_generic_rpc_handlers([self._service.handlers()])
        self._health = HealthServicer()
        add_HealthServicer_to_server(self._health, self._server)
        taken = AddressError(f"cannot listen at {self._target}: it is taken, or not an address of this machine")
        if _is_served(self._target):
            raise taken
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(self._target)
            else:
                port = self._server.add_secure_port(self._target, server_credentials(self._tls))
        except RuntimeError as error:
            raise taken from error
        await self._server.start()
        self._watching = asyncio.create_task(self._service.guard.watch())
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def _stop(self, grace: float) -> None:
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._call(self._finish_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
        if self._target.startswith("unix:/") and os.path.exists(self._target.removeprefix("unix:")):
            os.unlink(self._target.removeprefix("unix:"))

    @staticmethod
    async def _finish_tasks() -> None:
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)


class _Refused(Exception):
    """The handler refused a request, with this error."""

    def __init__(self, error: FedcoreError):
        super().__init__(str(error))
        self.error = error


class Service:
    """The calls of ``fedcore.v1.FederatedLearningService``."""

    def __init__(self, handler: Handler, transfer: TransferPolicy, chunk_bytes: int, limits: Limits, guard: Guard):
        self._handler, self._transfer, self.guard = handler, transfer, guard
        self._chunk_bytes, self._limits = chunk_bytes, limits
        self._longest_header = _LEAST_HEADER

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the calls by name, all of raw bytes."""
        unary, down, up = (
            grpc.unary_unary_rpc_method_handler,
            grpc.unary_stream_rpc_method_handler,
            grpc.stream_unary_rpc_method_handler,
        )
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "RegisterClient": unary(self._guarded(self._register)),
                "GetGlobalModel": unary(self._guarded(self._pull)),
                "GetGlobalModelStream": down(self._guarded(self._fetch)),
                "SubmitModelUpdate": unary(self._guarded(self._submit)),
                "SubmitModelUpdateStream": up(self._guarded(self._submit_stream)),
                "GetServerStatus": unary(self._guarded(self._status)),
                "Heartbeat": unary(self._guarded(self._beat)),
                "GetAuditLog": unary(self._guarded(self._audit_log)),
                "Control": unary(self._guarded(self._control)),
            },
        )

    def _guarded(self, call: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def guarded(request: Any, context: Any) -> Any:
            try:
                with self.guard.known(context) as peer:
                    if peer.role is Role.ANONYMOUS or peer.revoked:  # refused, and noted, before anything it sends is read
                        await self._ask(context, Unread())
                    try:
                        if isinstance(request, bytes):
                            checksums.check(request, context.invocation_metadata())
                        if (answer := await call(request, context)) is not None:
                            context.set_trailing_metadata((checksums.stated(answer),))
                        return answer
                    except FedcoreError as error:  # the handler does not know of what could not be read
                        await self._ask(context, Unread(error))
                        raise
            except _Refused as refused:
                await _abort(context, status.of_error(refused.error))
            except FedcoreError as error:
                await _abort(context, status.of_error(error))
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except grpc.aio.InternalError:  # the connection ended while something was sent
                raise asyncio.CancelledError from None
            except Exception:  # noqa: BLE001 - logged, and answered with an error that names the log entry
                await _abort(context, _unexpected(call.__name__))

        return guarded

    async def _ask(self, context: Any, message: Any, body: Body = ()) -> Reply:
        try:
            return await asyncio.wrap_future(self._handler(Request(message, body, self.guard.caller)))
        except FedcoreError as error:
            raise _Refused(error) from None

    async def _register(self, data: bytes, context: Any) -> bytes:
        reply = await self._ask(context, wire.unpack_register(parse(pb.RegisterClientRequest, data)))
        return wire.pack_registered(reply.message).SerializeToString()  # type: ignore[arg-type]

    async def _pull(self, data: bytes, context: Any) -> bytes:
        request = parse(pb.GetGlobalModelRequest, data)
        if request.HasField("last"):
            reply = await self._ask(context, ModelQuery())
        else:
            reply = await self._ask(context, wire.unpack_pull(request))
        if not isinstance(reply.message, Assigned):
            return wire.pack_pulled(reply.message, stream=False).SerializeToString()  # type: ignore[arg-type]
        manifest = reply.message.manifest
        total = manifest.total_bytes
        stream = self._transfer.streams(total, (info.name for info in manifest.tensors))
        stream = stream or (request.stream and total > RESUMABLE)
        answer = wire.pack_pulled(reply.message, stream=stream)
        self._longest_header = max(self._longest_header, 2 * answer.ByteSize())
        if stream or not total:
            return answer.SerializeToString()
        body = iter(reply.body)
        whole = answer, _first_of(body, total), total
        if total < _INLINE:
            data = with_body(*whole)
        else:
            data = await asyncio.get_running_loop().run_in_executor(None, with_body, *whole)
        # until its client has the answer, it is a download under way; a callback of the context instead of the task would make
        # a ring of objects that holds the whole call until the garbage collector comes by
        call: Any = asyncio.current_task()
        call.add_done_callback(lambda _: leave(body))
        return data

    async def _fetch(self, data: bytes, context: Any) -> None:
        fetch = wire.unpack_fetch(parse(pb.GetGlobalModelRequest, data))
        reply = await self._ask(context, fetch)
        if not isinstance(reply.message, Rest):
            raise ProtocolError("the task is over: pull again", reason="NOT_SELECTED")
        total, speed, body = reply.message.total_bytes - fetch.offset, Speed(self._limits), iter(reply.body)
        await context.send_initial_metadata(())  # a chunk that is stuck, and has them with it, could be followed by no status
        try:
            for chunk in chunks(pb.ModelChunk, _first_of(body, total), total, self._chunk_bytes):
                began = time.monotonic()
                await self._write(chunk, context)
                speed.moved(len(chunk), time.monotonic() - began)
        finally:
            leave(body)

    async def _write(self, chunk: bytes, context: Any) -> None:
        stall = self._limits.stall_timeout
        try:
            async with asyncio.timeout(stall):
                await context.write(chunk)
        except TimeoutError:  # the status waits behind the chunk: whoever reads on after all learns of it
            raise DeadlineExceeded(f"no chunk was taken for {stall:g} s", reason="STALLED_STREAM") from None

    async def _submit(self, data: bytes, context: Any) -> bytes:
        request, body = without_body(pb.SubmitModelUpdateRequest, data, self._longest_header)
        header = wire.unpack_submit(request.header)
        if body.nbytes != header.manifest.total_bytes:
            raise ProtocolError(
                f"the body has {body.nbytes} bytes instead of {header.manifest.total_bytes}", reason="LENGTH_MISMATCH"
            )
        return await self._submitted(await self._ask(context, header, [body]), context)

    async def _submit_stream(self, messages: AsyncIterator[bytes], context: Any) -> bytes:
        first = await self._first(messages, context)
        if not first.HasField("header") or first.chunk_data:
            raise ProtocolError("the first message of an upload holds the header, and no data", reason="PROTOCOL_ORDER")
        header = wire.unpack_submit(first.header)
        assembly = Assembly(pb.ModelUpdateChunk, header.manifest.total_bytes, LARGEST_CHUNK, SMALLEST_CHUNK)

        async def go(offset: int) -> None:  # else what is sent ahead of its turn would fill gRPC's buffers
            await context.send_initial_metadata(((OFFSET, str(offset)),))

        feed = Feed(asyncio.get_running_loop(), go, messages, assembly, self._limits)
        try:
            return await self._submitted(await self._ask(context, header, feed), context)
        finally:
            await feed.close()

    async def _first(self, messages: AsyncIterator[bytes], context: Any) -> pb.ModelUpdateChunk:
        try:
            data = await asyncio.wait_for(anext(messages), self._limits.stall_timeout)
        except StopAsyncIteration:
            raise ProtocolError("the upload is empty", reason="EMPTY_STREAM") from None
        except TimeoutError:
            raise ProtocolError("the upload did not begin", reason="STALLED_STREAM") from None
        checksums.check(data, context.invocation_metadata())
        return parse(pb.ModelUpdateChunk, data, self._longest_header)

    async def _submitted(self, reply: Reply, context: Any) -> bytes:
        submitted: Any = reply.message
        if not submitted.counted:
            await _abort(context, status.of_outcome(submitted))
        return wire.pack_submitted(submitted).SerializeToString()

    async def _beat(self, data: bytes, context: Any) -> bytes:
        reply = await self._ask(context, wire.unpack_beat(parse(pb.HeartbeatRequest, data)))
        return wire.pack_beat_reply(reply.message).SerializeToString()  # type: ignore[arg-type]

    async def _status(self, data: bytes, context: Any) -> bytes:
        parse(pb.GetServerStatusRequest, data)
        reply = await self._ask(context, StatusQuery())
        return wire.pack_status(reply.message).SerializeToString()  # type: ignore[arg-type]

    async def _audit_log(self, data: bytes, context: Any) -> bytes:
        reply = await self._ask(context, wire.unpack_audit_query(parse(pb.GetAuditLogRequest, data)))
        return wire.pack_audit_page(reply.message).SerializeToString()  # type: ignore[arg-type]

    async def _control(self, data: bytes, context: Any) -> bytes:
        reply: Any = await self._ask(context, wire.unpack_command(parse(pb.ControlRequest, data)))
        return pb.ControlResponse(message=reply.message.message).SerializeToString()


def _first_of(body: Iterator[Buffer], total: int) -> Iterator[Buffer]:
    """Yield so many bytes of a body, and do not ask for its end: it is under way until somebody leaves it."""
    while total > 0 and (buffer := next(body, None)) is not None:
        total -= memoryview(buffer).nbytes
        yield buffer


def _is_served(target: str) -> bool:
    """Return whether something listens at a Unix socket; gRPC would silently take it over."""
    if not target.startswith("unix:"):
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(target.removeprefix("unix:")) == 0


async def _abort(context: Any, refusal: status_pb2.Status) -> NoReturn:
    code, message, trailer = status.code_and_trailer(refusal)
    try:
        await context.abort(code, message, trailer)
    except grpc.aio.InternalError:  # its connection ended before that could be sent
        raise asyncio.CancelledError from None
    raise AssertionError("abort() does not return")


def _unexpected(call: str) -> status_pb2.Status:
    name = token_hex(4)
    log.exception("error %s in %s", name, call)
    return status.of_error(RemoteError(f"internal error {name}; the server's log has the details"))
