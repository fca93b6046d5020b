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
from collections.abc import AsyncIterator, Awaitable, Callable
from secrets import token_hex
from typing import Any, NoReturn

import grpc
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from fedcore.errors import AddressError, FedcoreError, ProtocolError, RemoteError
from fedcore.messages import Assigned, Pull, Rest, StatusQuery
from fedcore.protos import fedcore_pb2 as pb
from fedcore.security import TLS
from fedcore.transport import Body, Handler, Listener, Reply, Request
from fedcore.transports.grpc import status, wire
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

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["FederatedLearningService"].full_name
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
        stall_timeout: float,
        tls: TLS | None = None,
    ):
        self._target, self._tls = target, tls
        self._service = Service(handler, transfer, chunk_bytes, stall_timeout, Guard(handler, tls))
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


class Service:
    """The calls of ``fedcore.v1.FederatedLearningService``."""

    def __init__(
        self, handler: Handler, transfer: TransferPolicy, chunk_bytes: int, stall_timeout: float, guard: Guard
    ):
        self._handler, self._transfer, self.guard = handler, transfer, guard
        self._chunk_bytes, self._stall_timeout = chunk_bytes, stall_timeout

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
                "Control": unary(self._guarded(self._control)),
            },
        )

    def _guarded(self, call: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def guarded(request: Any, context: Any) -> Any:
            try:
                with self.guard.known(context):
                    return await call(request, context)
            except FedcoreError as error:
                await _abort(context, status.of_error(error))
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception:  # noqa: BLE001 - logged, and answered with an error that names the log entry
                await _abort(context, _unexpected(call.__name__))

        return guarded

    async def _ask(self, context: Any, message: Any, body: Body = ()) -> Reply:
        return await asyncio.wrap_future(self._handler(Request(message, body, self.guard.identity(context))))

    async def _register(self, data: bytes, context: Any) -> bytes:
        reply = await self._ask(context, wire.unpack_register(parse(pb.RegisterClientRequest, data)))
        return wire.pack_registered(reply.message).SerializeToString()  # type: ignore[arg-type]

    async def _pull(self, data: bytes, context: Any) -> bytes:
        request = parse(pb.GetGlobalModelRequest, data)
        reply = await self._ask(context, Pull(wire.unpack_session(request.session), request.wait_seconds, request.holds))
        if not isinstance(reply.message, Assigned):
            return wire.pack_pulled(reply.message, stream=False).SerializeToString()  # type: ignore[arg-type]
        manifest = reply.message.manifest
        total = manifest.total_bytes
        stream = self._transfer.streams(total, (info.name for info in manifest.tensors))
        stream = stream or (request.stream and total > RESUMABLE)
        answer = wire.pack_pulled(reply.message, stream=stream)
        if stream or not total:
            return answer.SerializeToString()
        if total < _INLINE:
            return with_body(answer, reply.body, total)
        return await asyncio.get_running_loop().run_in_executor(None, with_body, answer, reply.body, total)

    async def _fetch(self, data: bytes, context: Any) -> None:
        fetch = wire.unpack_fetch(parse(pb.GetGlobalModelRequest, data))
        reply = await self._ask(context, fetch)
        if not isinstance(reply.message, Rest):
            raise ProtocolError("the task is over: pull again", reason="NOT_SELECTED")
        for chunk in chunks(pb.ModelChunk, reply.body, reply.message.total_bytes - fetch.offset, self._chunk_bytes):
            try:
                async with asyncio.timeout(self._stall_timeout):
                    await context.write(chunk)
            except TimeoutError:  # with a chunk on its way no status can be sent; what there is goes with the connection
                log.warning("%s took no chunk of its model for %g s: cut off", context.peer(), self._stall_timeout)
                raise asyncio.CancelledError from None

    async def _submit(self, data: bytes, context: Any) -> bytes:
        request, body = without_body(pb.SubmitModelUpdateRequest, data)
        header = wire.unpack_submit(request.header)
        if body.nbytes != header.manifest.total_bytes:
            raise ProtocolError(
                f"the body has {body.nbytes} bytes instead of {header.manifest.total_bytes}", reason="LENGTH_MISMATCH"
            )
        return await self._submitted(await self._ask(context, header, [body]), context)

    async def _submit_stream(self, messages: AsyncIterator[bytes], context: Any) -> bytes:
        first = await self._first(messages)
        if not first.HasField("header") or first.chunk_data:
            raise ProtocolError("the first message of an upload holds the header, and no data", reason="PROTOCOL_ORDER")
        header = wire.unpack_submit(first.header)
        assembly = Assembly(pb.ModelUpdateChunk, header.manifest.total_bytes, LARGEST_CHUNK, SMALLEST_CHUNK)

        async def go(offset: int) -> None:  # else what is sent ahead of its turn would fill gRPC's buffers
            await context.send_initial_metadata(((OFFSET, str(offset)),))

        feed = Feed(asyncio.get_running_loop(), go, messages, assembly, self._stall_timeout)
        try:
            return await self._submitted(await self._ask(context, header, feed), context)
        finally:
            feed.close()

    async def _first(self, messages: AsyncIterator[bytes]) -> pb.ModelUpdateChunk:
        try:
            data = await asyncio.wait_for(anext(messages), self._stall_timeout)
        except StopAsyncIteration:
            raise ProtocolError("the upload is empty", reason="EMPTY_STREAM") from None
        except TimeoutError:
            raise ProtocolError("the upload did not begin", reason="STALLED_STREAM") from None
        return parse(pb.ModelUpdateChunk, data)

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

    async def _control(self, data: bytes, context: Any) -> bytes:
        reply: Any = await self._ask(context, wire.unpack_command(parse(pb.ControlRequest, data)))
        return pb.ControlResponse(message=reply.message.message).SerializeToString()


def _is_served(target: str) -> bool:
    """Return whether something listens at a Unix socket; gRPC would silently take it over."""
    if not target.startswith("unix:"):
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(target.removeprefix("unix:")) == 0


async def _abort(context: Any, refusal: status_pb2.Status) -> NoReturn:
    code, message, trailer = status.code_and_trailer(refusal)
    await context.abort(code, message, trailer)
    raise AssertionError("abort() does not return")


def _unexpected(call: str) -> status_pb2.Status:
    name = token_hex(4)
    log.exception("error %s in %s", name, call)
    return status.of_error(RemoteError(f"internal error {name}; the server's log has the details"))
