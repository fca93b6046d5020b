"""A TCP proxy that delays, holds back, changes and cuts what passes through it, whenever a test tells it to.

A fault that names a number of bytes happens behind exactly that byte, however the network cuts the stream into pieces.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from fedcore.errors import ConfigError

Direction: TypeAlias = Literal["up", "down", "both"]  # up is from the client to the server
How: TypeAlias = Literal["close", "reset", "hang"]

_WAYS = {"up": ("up",), "down": ("down",), "both": ("up", "down")}
_PIECE = 1 << 16
_PIECES = 16  # under way in one direction of a connection
_TICK = 0.01  # seconds: the shortest rest; the loop cannot sleep for microseconds
_PATIENCE = 10.0  # seconds to reach the server
_ABORT = struct.pack("ii", 1, 0)  # with this SO_LINGER, close() resets the connection


@dataclass(frozen=True)
class Incident:
    """Something that happened in one direction of a connection.

    Attributes:
        connection: its number, from 1, in the order of acceptance.
        what: ``"cut"``, ``"hung"``, ``"flipped"``, ``"dropped"``, ``"unreachable"`` if there is no server; at last ``"ended"``.
        direction: ``"up"`` or ``"down"``.
        offset: how many bytes had passed that way before.
    """

    connection: int
    what: str
    direction: str
    offset: int


class Proxy(AbstractContextManager["Proxy"]):
    """Listens on this machine and forwards every connection to a server, until it is told to do otherwise.

    >>> with Proxy(server.address) as proxy:
    ...     proxy.cut(100_000, "reset", times=1)
    ...     start_client(proxy.address, client, "client-1")

    A fault may be set at any time, from any thread. It is in force when the method returns, for present and new connections,
    until :meth:`heal` or until it is set anew. What it holds back is forwarded later, in order, unless the connection is cut.

    Args:
        upstream: ``host:port`` of the server, which need not run yet.
        seed: of jitter and of flipped bits; each connection has draws of its own.

    Attributes:
        address: where clients connect.
        connections: how many were accepted so far.
        passed: how many bytes were forwarded so far, by direction.
        log: what happened so far, in order.

    Raises:
        ConfigError: ``upstream`` is not ``host:port``.
    """

    def __init__(self, upstream: str, *, seed: int = 0):
        host, _, port = upstream.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(f"upstream {upstream!r} is not host:port")
        self._upstream, self._here = (host, int(port)), ("127.0.0.1", 0)
        self.connections, self.passed, self.log = 0, {"up": 0, "down": 0}, list[Incident]()
        self._news, self._changed = threading.Condition(), asyncio.Event()
        self._rules, self._cuts = {"up": _Rules(), "down": _Rules()}, list[_Cut]()
        self._random = random.Random(seed)  # noqa: S311 - a schedule, no secret
        self._open: dict[_Connection, asyncio.Task[None]] = {}
        self._door: socket.socket | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"fedcore-chaos-{upstream}", daemon=True)
        self._thread.start()
        self._call(self._let_in())
        self.address = "{}:{}".format(*self._here)

    def wait_for(self, met: Callable[[], bool], timeout: float) -> bool:
        """Wait until ``met()``, which may look at the attributes; returns whether it was within ``timeout`` seconds."""
        with self._news:
            return self._news.wait_for(met, timeout)

    def cut(self, after: int, how: How = "close", *, times: int | None = None, direction: Direction = "both") -> None:
        """Cut connections when ``after`` more bytes of them have passed, new ones from their first byte on.

        Args:
            after: the number of bytes that still pass; 0 cuts at once.
            how: ``"close"`` and ``"reset"`` are seen by both ends. With ``"hang"`` nothing passes any more, in either
                direction, until :meth:`heal`, and no end sees why.
            times: the number of connections that this happens to; None: all.
            direction: whose bytes count; of both, whichever has that many first.

        Raises:
            ConfigError: an argument makes no sense.
        """
        if after < 0 or how not in ("close", "reset", "hang") or direction not in _WAYS:
            raise ConfigError(f"there is no cut after {after!r} bytes with how={how!r}, direction={direction!r}")
        cut = _Cut(after, how, _WAYS[direction], math.inf if times is None else times)

        async def begin() -> None:
            cut.since = {pipe: pipe.passed for connection in self._open for pipe in connection.pipes}
            self._cuts.append(cut)
            for connection in self._open:
                connection.check()

        self._call(begin())

    def black_hole(self, on: bool = True, *, direction: Direction = "both") -> None:
        """Read and forward nothing, not even that an end is gone. New connections are accepted, and get no answer."""
        self._set(direction, hole=on)

    def latency(self, seconds: float, jitter: float = 0.0, *, direction: Direction = "both") -> None:
        """Let everything arrive ``seconds`` later, give or take up to ``jitter``."""
        self._set(direction, latency=seconds, jitter=jitter)

    def bandwidth(self, bytes_per_second: float, *, direction: Direction = "both") -> None:
        """Let at most so many bytes a second of each connection pass."""
        self._set(direction, bandwidth=bytes_per_second)

    def slicer(self, size: int, delay: float = 0.0, *, direction: Direction = "both") -> None:
        """Forward at most ``size`` bytes at once, with ``delay`` seconds behind each such slice."""
        self._set(direction, slice=size, delay=delay)

    def flip(self, every: int, *, direction: Direction = "both") -> None:
        """Change one bit in each run of ``every`` bytes of a connection, counted from now on; 0 changes none."""
        self._set(direction, flip=every)

    def slow_close(self, seconds: float = math.inf, *, direction: Direction = "both") -> None:
        """Tell an end only ``seconds`` later that the other is gone; by default not at all: the connection is half open."""
        self._set(direction, slow_close=seconds)

    def refuse(self, on: bool = True) -> None:
        """Refuse new connections."""
        self._call(self._keep_out() if on else self._let_in())

    def drop(self, how: Literal["close", "reset"] = "close") -> None:
        """Cut all present connections now."""

        async def begin() -> None:
            for connection in self._open:
                connection.end(how, "dropped")

        self._call(begin())

    def heal(self) -> None:
        """End all faults: what was held back is forwarded, and connections that hang go on."""

        async def begin() -> None:
            self._rules, self._cuts = {"up": _Rules(), "down": _Rules()}, []
            for connection in self._open:
                connection.hangs = False
            self._stir()
            await self._let_in()

        self._call(begin())

    def close(self) -> None:
        """Cut everything and free everything. May be called twice."""
        if self._thread.is_alive():
            self._call(self._keep_out())
            self.drop()
            self._call(self._until(lambda: not self._open))
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __exit__(self, *error: object) -> None:
        self.close()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _set(self, direction: Direction, **values: Any) -> None:
        if direction not in _WAYS or min(values.values()) < 0 or 0 in (values.get("slice"), values.get("bandwidth")):
            raise ConfigError(f"there is no such fault: {values}, direction={direction!r}")

        async def begin() -> None:
            self._rules |= {way: replace(self._rules[way], **values) for way in _WAYS[direction]}
            self._stir()

        self._call(begin())

    async def _let_in(self) -> None:
        if self._door is None:
            self._door = socket.create_server(self._here)
            self._here = self._door.getsockname()
            self._door.setblocking(False)
            self._loop.add_reader(self._door, self._accept, self._door)

    async def _keep_out(self) -> None:
        if self._door is not None:
            self._loop.remove_reader(self._door)
            self._door.close()
            self._door = None

    def _accept(self, door: socket.socket) -> None:
        with suppress(OSError):  # it has gone meanwhile
            client, _ = door.accept()
            self._note(accepted=1)
            connection = _Connection(self, client, self._random.random())
            self._open[connection] = self._loop.create_task(connection.run(self._upstream))

    def _stir(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, allowed: Callable[[], bool]) -> None:
        while not allowed():
            await self._changed.wait()

    def _note(self, *incidents: Incident, accepted: int = 0, **passed: int) -> None:
        with self._news:
            self.log.extend(incidents)
            self.connections += accepted
            for way, nbytes in passed.items():
                self.passed[way] += nbytes
            self._news.notify_all()


@dataclass(frozen=True)
class _Rules:
    latency: float = 0.0
    jitter: float = 0.0
    bandwidth: float = math.inf
    slice: int = _PIECE
    delay: float = 0.0
    flip: int = 0
    slow_close: float = 0.0
    hole: bool = False


@dataclass
class _Cut:
    after: int
    how: How
    ways: tuple[str, ...]
    left: float
    since: dict[_Pipe, int] = field(default_factory=dict)  # what it counts from; 0 for new ones


class _Connection:
    """A client's connection, and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy, client: socket.socket, seed: float):
        self.proxy, self.number, self.hangs, self.over = proxy, proxy.connections, False, ""
        self._ends = client, server = client, socket.socket()
        for end in self._ends:
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pipes = _Pipe(self, "up", client, server, seed), _Pipe(self, "down", server, client, seed)

    async def run(self, upstream: tuple[str, int]) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            self.check()
            if await self.pipes[0].allowed():
                await asyncio.wait_for(self.proxy._loop.sock_connect(self._ends[1], upstream), _PATIENCE)
                tasks = [asyncio.create_task(work) for pipe in self.pipes for work in (pipe.give(), pipe.take())]
            await self.proxy._until(lambda: bool(self.over) or all(pipe.ended for pipe in self.pipes))
        except OSError:
            self.end("reset", "unreachable")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for end in self._ends:
                if self.over == "reset":
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                end.close()
            self._note("ended")
            del self.proxy._open[self]
            self.proxy._stir()

    def end(self, how: str, why: str = "") -> None:
        if not self.over:
            self.over = how
            self.proxy._stir()
            if why:
                self._note(why)

    def check(self) -> None:
        for pipe in self.pipes:
            for at, cut in pipe.cuts():
                if at == pipe.passed and not (self.over or self.hangs):
                    cut.left, self.hangs = cut.left - 1, cut.how == "hang"
                    self.proxy._note(Incident(self.number, "hung" if self.hangs else "cut", pipe.way, at))
                    if not self.hangs:
                        self.end(cut.how)

    def _note(self, what: str) -> None:
        self.proxy._note(*(Incident(self.number, what, pipe.way, pipe.passed) for pipe in self.pipes))


class _Pipe:
    """One direction of a connection: what comes in is queued until it is due."""

    def __init__(self, connection: _Connection, way: str, source: socket.socket, target: socket.socket, seed: float):
        self._connection, self._proxy, self._source, self._target = connection, connection.proxy, source, target
        self._jitter, self._bits = random.Random(f"{seed} {way} late"), random.Random(f"{seed} {way} bits")  # noqa: S311
        self._queue: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(_PIECES)
        self._run, self._flip, self._mask = range(0), -1, 0  # a run of bytes, which of them changes, and which bit of it
        self.way, self.passed, self.ended, self._owed = way, 0, False, 0.0

    @property
    def _rules(self) -> _Rules:
        return self._proxy._rules[self.way]

    def cuts(self) -> list[tuple[int, _Cut]]:
        return [(c.since.get(self, 0) + c.after, c) for c in self._proxy._cuts if c.left and self.way in c.ways]

    async def allowed(self) -> bool:
        """Wait until something may pass; returns whether anything ever may."""
        one = self._connection
        await self._proxy._until(lambda: bool(one.over) or not (one.hangs or self._rules.hole))
        return not one.over

    async def take(self) -> None:
        data: bytes | None = bytes(1)
        while data and await self.allowed():
            try:
                data = await self._proxy._loop.sock_recv(self._source, _PIECE)
            except OSError:  # this end was reset
                data = None
            late = self._rules.latency + self._jitter.uniform(-1, 1) * self._rules.jitter
            await self._queue.put((self._proxy._loop.time() + late, data))

    async def give(self) -> None:
        data: bytes | None = bytes(1)
        while data:
            due, data = await self._queue.get()
            await asyncio.sleep(due - self._proxy._loop.time())
            data = data and await self._forward(data)
        await self._proxy._until(lambda: self._rules.slow_close < math.inf)
        await asyncio.sleep(self._rules.slow_close)
        await self.allowed()
        if data is None:
            self._connection.end("reset")
        else:
            with suppress(OSError):
                self._target.shutdown(socket.SHUT_WR)
        self.ended = True
        self._proxy._stir()

    async def _forward(self, data: bytes) -> bytes | None:
        """Forward bytes and return them; None if nobody takes them."""
        view = memoryview(data)
        while view and await self.allowed():
            self._draw()
            stops = [at for at in (self._flip + 1, self._run.stop, *(at for at, _ in self.cuts())) if at > self.passed]
            most = min(self._rules.slice, max(1, self._rules.bandwidth * _TICK), *(at - self.passed for at in stops))
            try:
                sent = self._target.send(self._changed(view[: int(most)]))
            except BlockingIOError:
                await self._room()
                continue
            except OSError:
                return None
            view = view[sent:]
            self._count(sent)
            self._owed += max(self._rules.delay, sent / self._rules.bandwidth)
            rest, self._owed = (self._owed, 0.0) if self._owed >= _TICK else (0.0, self._owed)
            await asyncio.sleep(rest)
        return data

    def _draw(self) -> None:
        every = self._rules.flip
        if len(self._run) != every or (every and self.passed == self._run.stop):
            self._run = range(self.passed, self.passed + every)
            self._flip, self._mask = (self._bits.choice(self._run), 1 << self._bits.randrange(8)) if every else (-1, 0)

    def _changed(self, view: memoryview) -> bytes:
        flips = self.passed + view.nbytes == self._flip + 1
        return bytes(view[:-1]) + bytes([view[-1] ^ self._mask]) if flips else bytes(view)

    def _count(self, nbytes: int) -> None:
        self.passed += nbytes
        flipped = [Incident(self._connection.number, "flipped", self.way, self._flip)] * (self.passed == self._flip + 1)
        self._proxy._note(*flipped, **{self.way: nbytes})
        self._connection.check()

    async def _room(self) -> None:
        room = self._proxy._loop.create_future()
        self._proxy._loop.add_writer(self._target, room.set_result, None)
        try:
            await room
        finally:
            self._proxy._loop.remove_writer(self._target)
