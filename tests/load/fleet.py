"""Clients that register, wait for a task, beat, and come back when the server does; thousands in a process.

They are made of coroutines, and speak as :class:`fedcore.link.Link` does: over channels with the same options, with the same
pauses of full jitter, and with a channel of their own for heartbeats if they are ``apart``.
Settings: ``address``, ``count``, ``first`` (the number of the first one), ``apart``, ``waits`` (else they only beat).
Says ``registered`` when all are. Told ``report``, it says what they asked for since the last time, and how it went.
"""

import asyncio
import random
import sys
import time
from collections import Counter

import grpc.aio
from procs import say, settings

from fedcore.clock import Clock
from fedcore.errors import ConnectionLost, FedcoreError
from fedcore.messages import Beat, Register, Status
from fedcore.protos import fedcore_pb2 as pb
from fedcore.retry import Persistence
from fedcore.transports.grpc import status, wire
from fedcore.transports.grpc.options import channel_options

PATH = "/fedcore.v1.FederatedLearningService/"
PATIENCE, HOLD = 30.0, 60.0
AT_ONCE = 20  # registrations at first; later nobody holds them back


class Notes:
    """What happened since the last report."""

    def __init__(self):
        self.clear()

    def clear(self):
        self.asked, self.problems, self.beats, self.registered = Counter(), Counter(), [], []

    def report(self):
        say(report=vars(self))
        self.clear()


class Member:
    def __init__(self, address, name, notes, *, apart):
        self.address, self.name, self.notes, self.draw, self.apart = address, name, notes, random.Random(name), apart
        self.session, self.interval, self.spread, self.silent = None, 0.0, 0.0, False
        self.channels = {kind: self.channel() for kind in (("models", "hearts") if apart else ("models",))}
        self.registering, self.pauses = asyncio.Lock(), []
        self.persistence = Persistence(300.0, Clock(), self.draw, self.pauses.append, lambda: False, lambda: self.spread)

    def channel(self):
        return grpc.aio.insecure_channel(self.address, options=channel_options(1 << 20))

    async def ask(self, kind, call, request, timeout):
        """Return the answer, or the error."""
        channel = self.channels[kind]
        self.notes.asked[call] += 1
        try:
            return await channel.unary_unary(PATH + call)(request.SerializeToString(), timeout=timeout)
        except (grpc.RpcError, asyncio.CancelledError, grpc.aio.UsageError) as failed:
            if not isinstance(failed, grpc.RpcError):
                if self.channels[kind] is channel:
                    raise
                return ConnectionLost("the channel was closed")
            error = status.error_of(failed, "")
            self.notes.problems[f"{call} {error.reason}"] += 1
            if status.is_lost(failed) and self.channels[kind] is channel:
                self.channels[kind] = self.channel()
                await channel.close()
            return error

    async def insist(self, *request):
        """Return the first answer, or the error because of which there will be none."""
        trial = self.persistence.trial()
        while isinstance(answer := await self.ask(*request), FedcoreError) and answer.retryable:
            trial.failed(answer)
            self.silent = True
            await asyncio.sleep(self.pauses.pop())
        self.silent = False
        return answer

    def aside(self):
        """Return how long a heart is silent that has lost the server."""
        return self.draw.uniform(0.5, 1.5) * self.spread

    async def register(self, stale=None):
        async with self.registering:
            if self.session is not stale:  # the other coroutine has
                return
            request = wire.pack_register(Register(self.name, accepts=("safetensors",), instance=self.name))
            answer = await self.insist("models", "RegisterClient", request, 300.0)
            if isinstance(answer, bytes):
                welcome = wire.unpack_registered(pb.RegisterClientResponse.FromString(answer))
                self.session, self.interval, self.spread = welcome.session, welcome.heartbeat_interval, welcome.spread
                self.notes.registered.append((self.name, time.monotonic()))

    async def wait(self):
        while True:
            session = self.session
            hold = self.draw.uniform(0.75, 1.0) * HOLD
            request = pb.GetGlobalModelRequest(session=wire.pack_session(session), wait_seconds=hold)
            if isinstance(await self.insist("models", "GetGlobalModel", request, hold + PATIENCE), FedcoreError):
                await self.register(session)

    async def beat(self):
        due = time.monotonic() + self.draw.uniform(0, self.interval)
        while True:
            known = self.silent
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self.silent and not known:
                await asyncio.sleep(self.aside())
            began, session = time.monotonic(), self.session
            request = wire.pack_beat(Beat(session, Status.WAITING))
            answer = await self.ask("hearts" if self.apart else "models", "Heartbeat", request, 2 * self.interval + 1)
            if isinstance(answer, bytes):
                reply = wire.unpack_beat_reply(pb.HeartbeatResponse.FromString(answer))
                self.interval, self.spread = reply.heartbeat_interval or self.interval, reply.spread
                self.notes.beats.append(round(1000 * (time.monotonic() - began), 2))
            elif not answer.retryable:
                await self.register(session)
            self.silent = isinstance(answer, FedcoreError) and answer.retryable
            due = max(time.monotonic(), began + max(self.interval, self.aside() if self.silent else 0.0))


async def main(address, count, first=0, apart=False, waits=True):
    notes, gate = Notes(), asyncio.Semaphore(AT_ONCE)
    members = [Member(address, f"client-{number}", notes, apart=apart) for number in range(first, first + count)]

    async def join(member):
        async with gate:
            await member.register()

    await asyncio.gather(*map(join, members))
    going = [asyncio.create_task(member.beat()) for member in members]
    going += [asyncio.create_task(member.wait()) for member in members if waits]
    say(registered=count, interval=members[0].interval)
    words = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
    while await words.readline():
        notes.report()
    for each in going:
        each.cancel()


if __name__ == "__main__":
    asyncio.run(main(**settings()))
