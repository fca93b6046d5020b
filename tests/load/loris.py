"""Uploads that go on for ever: they begin as others do, and then the bytes come one at a time, wave after wave.

Settings: ``address`` of the server; ``strangers``, whose first message never ends; ``members``, who have a task, and whose
first chunk never ends; ``knocks``, connections whose first frame never ends; ``rate``, in bytes a second.
Says ``slow`` when the first wave is; told ``enough``, it says how all of them ended, behind the present wave.
"""

import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import torch
from procs import say, settings, told

from fedcore import Grpc
from fedcore.broadcast import encode
from fedcore.codecs.safetensors import Safetensors
from fedcore.messages import Assigned, Pull, Register, Submit
from fedcore.parameters import Spec
from fedcore.protos import fedcore_pb2 as pb
from fedcore.testing import Proxy
from fedcore.transports.grpc import status, wire
from fedcore.transports.grpc.framing import chunks
from fedcore.transports.grpc.options import channel_options

UPLOAD = "/fedcore.v1.FederatedLearningService/SubmitModelUpdateStream"
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + (12_000).to_bytes(3, "big") + bytes([4, 0, 0, 0, 0, 0])  # of 12,000 settings
WHO = ("stranger", "member")
SETTLED = 0.5  # seconds until what was begun quickly has arrived


class Wave:
    """Lets uploads begin quickly, and makes them slow when all have begun."""

    def __init__(self, proxy, rate):
        self.proxy, self.rate, self.slow, self._begun = proxy, rate, threading.Event(), threading.Semaphore(0)

    def begun(self):
        self._begun.release()

    def roll(self, pool, jobs):
        self.proxy.heal()
        running = [pool.submit(job, self) for job in jobs]
        for _ in jobs:
            self._begun.acquire()
        time.sleep(SETTLED)
        self.proxy.bandwidth(self.rate, direction="up")
        self.slow.set()
        return [each.result() for each in running]


class Lateness:
    """How late this process gets to what is due: on a crowded machine that is no fault of the server."""

    def __init__(self, pause=0.05):
        self.most = 0.0
        threading.Thread(target=self._look, args=(pause,), daemon=True).start()

    def _look(self, pause):
        while True:
            due = time.monotonic() + pause
            time.sleep(pause)
            self.most = max(self.most, time.monotonic() - due)


class Upload:
    """One upload that is never done; ``since`` is when the server began to wait for it.

    Args:
        wave: makes it slow.
        begin: returns what it begins with, and how it goes on.
    """

    def __init__(self, wave, begin):
        self.wave, self.since = wave, 0.0
        self.channel = grpc.insecure_channel(wave.proxy.address, channel_options(1 << 20))
        grpc.channel_ready_future(self.channel).result(30)
        self.header, self.chunk = begin()
        self.ready, self.since = threading.Event(), time.monotonic()
        self.call = self.channel.stream_unary(UPLOAD).future(self.messages())
        self.ready.set()
        wave.begun()

    def messages(self):
        self.ready.wait()
        if self.header:
            yield self.header
            self.call.initial_metadata()  # the server's word to go on, or the end
            self.since = time.monotonic()
        self.wave.slow.wait()
        yield self.chunk

    def outcome(self, who):
        try:
            self.call.result()
            return who, 0.0, "OK"
        except grpc.RpcError as error:
            how = status.outcome_of(error) or status.error_of(error, "")
            words = f": {error.details()}" if how.reason == "CONNECTION_LOST" else ""
            return who, time.monotonic() - self.since, f"{error.code().name} {how.reason}{words}"
        finally:
            self.channel.close()


def stranger(wave):
    return Upload(wave, lambda: (b"", bytes(4096))).outcome("stranger")


class Member:
    """A client with a task."""

    def __init__(self, address, name):
        self.name, self.connection = name, Grpc().connect(address)
        self.session = self.connection.request(Register(name, accepts=("safetensors",), instance=name)).message.session

    def __call__(self, wave):
        return Upload(wave, self.begin).outcome("member")

    def begin(self):
        given = self.connection.request(Pull(self.session, 10.0)).message
        if not isinstance(given, Assigned):  # the run is over, or nearly
            return b"", bytes(4096)
        task, manifest = given.task, given.manifest
        model = {info.name: torch.zeros(info.shape, dtype=getattr(torch, info.dtype)) for info in manifest.tensors}
        payload = encode(model, Spec.of(model), Safetensors(), manifest.shard_bytes)
        attempt = f"{self.name}-{time.monotonic()}"
        header = Submit(self.session, task.id, task.round, attempt, task.base_digest, 1, payload.manifest)
        first = pb.ModelUpdateChunk(header=wire.pack_submit(header)).SerializeToString()
        return first, next(chunks(pb.ModelUpdateChunk, payload.body, payload.manifest.total_bytes, 1 << 20))


class Knocks:
    """Connections that never come to the first request; notes how long each is borne with."""

    def __init__(self, address, count, rate):
        host, _, port = address.rpartition(":")
        self.open = {socket.create_connection((host, int(port))): time.monotonic() for _ in range(count)}
        self.borne = []
        threading.Thread(target=self._trickle, args=(rate,), daemon=True).start()

    def _trickle(self, rate):
        sent = 0
        while self.open:
            byte = GREETING[sent : sent + 1] or b"\0"
            for each, since in list(self.open.items()):
                try:
                    each.sendall(byte)
                except OSError:
                    del self.open[each]
                    self.borne.append(round(time.monotonic() - since, 1))
            sent += 1
            time.sleep(1 / rate)


def main(address, strangers, members, knocks, rate):
    enough = threading.Event()

    def listen():
        for _ in told():
            enough.set()

    threading.Thread(target=listen, daemon=True).start()
    lateness, jobs = Lateness(), [stranger] * strangers + [Member(address, f"slow-{number}") for number in range(members)]
    doors, ended, waves = Knocks(address, knocks, rate), [], 0
    with Proxy(address) as proxy, ThreadPoolExecutor(len(jobs)) as pool:
        say(slow=len(jobs))
        while not enough.is_set():
            ended += Wave(proxy, rate).roll(pool, jobs)
            waves += 1
    longest = {who: max([took for w, took, how in ended if w == who and "STALLED" in how] or [0.0]) for who in WHO}
    how = Counter(f"{who} {how}" for who, _, how in ended)
    say(
        enough={
            "waves": waves, "longest": longest, "how": how, "late_s": round(lateness.most, 2),
            "knocks_open": len(doors.open), "knocks_borne": doors.borne,
        }
    )  # fmt: skip


if __name__ == "__main__":
    main(**settings())
