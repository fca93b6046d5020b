"""Hands the chunks of an upload from the event loop to the thread that takes the update in."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from fedcore.errors import ConnectionLost, DeadlineExceeded
from fedcore.limits import Limits
from fedcore.transports.grpc.framing import Assembly
from fedcore.transports.grpc.speed import Speed

_AHEAD = 4  # chunks read before they are asked for: enough to keep the wire busy
_END = None


class Feed:
    """The body of an upload. Nothing is read before somebody iterates, and the client waits with it until then.

    Args:
        loop: the event loop of the server.
        go: tells the client to send, from an offset on.
        source: the messages behind the header.
        assembly: checks the chunks, on the reader's thread.
        limits: how long to wait for a chunk, and how slow the body may be.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        go: Callable[[int], Awaitable[object]],
        source: AsyncIterator[bytes],
        assembly: Assembly,
        limits: Limits,
    ):
        self._loop, self._go, self._source, self._assembly = loop, go, source, assembly
        self._stall, self._speed = limits.stall_timeout, Speed(limits)
        self._chunks: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(_AHEAD)
        self._pump: asyncio.Task[None] | None = None
        self._going: asyncio.Future[object] | None = None
        self._closed, self._offset = False, 0

    def behind(self, offset: int) -> Feed:
        """Have the client leave out the first ``offset`` bytes."""
        self._offset = offset
        self._assembly.total -= offset
        return self

    def __iter__(self) -> Iterator[memoryview]:
        self._loop.call_soon_threadsafe(self._start)
        while (chunk := self._next()) is not _END:
            yield self._assembly.take(chunk)
            self._loop.call_soon_threadsafe(self._room.release)
        self._assembly.end()

    async def close(self) -> None:
        """Stop reading; whoever iterates gets :class:`ConnectionLost`. Called on the event loop."""
        self._closed = True
        self._chunks.put(ConnectionLost("the upload broke off"))
        if self._going is not None:  # cut off half sent it would be sent again with the status, which then could not be
            await asyncio.wait([self._going], timeout=self._stall)
        if self._pump is not None:
            self._pump.cancel()

    def _start(self) -> None:
        if not self._closed:
            self._pump = self._loop.create_task(self._read())

    async def _read(self) -> None:
        try:
            self._going = asyncio.ensure_future(self._go(self._offset))
            await asyncio.shield(self._going)
            async for chunk in self._source:
                await self._room.acquire()
                self._chunks.put(chunk)
            self._chunks.put(_END)
        except Exception as error:  # noqa: BLE001 - whatever ends the stream, the reader must learn of it
            self._chunks.put(ConnectionLost(f"the upload broke off: {error}"))

    def _next(self) -> bytes | None:
        began = time.monotonic()
        try:
            item = self._chunks.get(timeout=self._stall)
        except queue.Empty:
            raise DeadlineExceeded(f"no chunk came for {self._stall:g} s", reason="STALLED_STREAM") from None
        if isinstance(item, Exception):
            raise item
        if item is not _END:
            self._speed.moved(len(item), time.monotonic() - began)
        return item
