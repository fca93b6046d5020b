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

from fedcore import retry
from fedcore.messages import Beat, Register, Status
from fedcore.protos import fedcore_pb2 as pb
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
        self.name, self.notes, self.draw, self.session, self.interval = name, notes, random.Random(name), None, 0.0
        self.models = grpc.aio.insecure_channel(address, options=channel_options(1 << 20))
        self.hearts = grpc.aio.insecure_channel(address, options=channel_options(1 << 20)) if apart else self.models
        self.registering = asyncio.Lock()

    async def ask(self, channel, call, request, timeout):
        """Return the answer, or the error's reason as a string."""
        self.notes.asked[call] += 1
        try:
            return await channel.unary_unary(PATH + call)(request.SerializeToString(), timeout=timeout)
        except grpc.RpcError as error:
            reason = status.error_of(error, "").reason
            self.notes.problems[f"{call} {reason}"] += 1
            return reason

    async def insist(self, *request):
        """Return the first answer, or the reason why there will be none."""
        pause = retry._FIRST_PAUSE
        while (answer := await self.ask(*request)) in ("CONNECTION_LOST", "DEADLINE_EXCEEDED"):
            await asyncio.sleep(self.draw.uniform(0, pause))
            pause = min(2 * pause, retry._LONGEST_PAUSE)
        return answer

    async def register(self, stale=None):
        async with self.registering:
            if self.session is not stale:  # the other coroutine has
                return
            request = wire.pack_register(Register(self.name, accepts=("safetensors",), instance=self.name))
            answer = await self.insist(self.models, "RegisterClient", request, 300.0)
            if isinstance(answer, bytes):
                welcome = wire.unpack_registered(pb.RegisterClientResponse.FromString(answer))
                self.session, self.interval = welcome.session, welcome.heartbeat_interval
                self.notes.registered.append((self.name, time.monotonic()))

    async def wait(self):
        while True:
            session = self.session
            request = pb.GetGlobalModelRequest(session=wire.pack_session(session), wait_seconds=HOLD)
            if isinstance(await self.insist(self.models, "GetGlobalModel", request, HOLD + PATIENCE), str):
                await self.register(session)

    async def beat(self):
        due = time.monotonic() + self.draw.uniform(0, self.interval)
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            began, session = time.monotonic(), self.session
            request = wire.pack_beat(Beat(session, Status.WAITING))
            answer = await self.ask(self.hearts, "Heartbeat", request, 2 * self.interval + 1)
            if isinstance(answer, bytes):
                self.interval = pb.HeartbeatResponse.FromString(answer).heartbeat_interval or self.interval
                self.notes.beats.append(round(1000 * (time.monotonic() - began), 2))
            elif answer not in ("CONNECTION_LOST", "DEADLINE_EXCEEDED"):
                await self.register(session)
            due = max(time.monotonic(), began + self.interval)


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
