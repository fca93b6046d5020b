"""The floor: the same bytes through bare gRPC streams, with no framework around them.

1 MiB chunks, identity serialisers, default allocator, resident buffers, a running float32 sum, no checks. Used by rounds.py;
runs alone as: floor.py server ADDRESS-FILE MEGABYTES CLIENTS ROUNDS, and once a client, floor.py client ADDRESS MEGABYTES
CLIENTS ROUNDS. The server prints the seconds of each round but the first.
"""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np

CHUNK = 1 << 20
OPTIONS = [("grpc.max_receive_message_length", 1 << 30), ("grpc.max_send_message_length", 1 << 30)]


def chunks(buffer):
    view = memoryview(buffer).cast("B")
    for start in range(0, view.nbytes, CHUNK):
        yield bytes(view[start : start + CHUNK])


class Server:
    """Sends a model to every client and sums what comes back; a round ends when all have answered."""

    def __init__(self, megabytes, clients, rounds):
        self.model = np.ones(megabytes * 250_000, np.float32)
        self.total = np.zeros_like(self.model)
        self.clients, self.rounds = clients, rounds
        self.started, self.answered, self.times = 0, 0, []
        self.condition, self.adding = threading.Condition(), threading.Lock()
        self.begin = time.perf_counter()

    def down(self, request, context):
        number = int(request)
        with self.condition:
            self.condition.wait_for(lambda: self.started >= number)
        yield from chunks(self.model)

    def up(self, messages, context):
        at = 0
        for message in messages:
            part = np.frombuffer(message, np.float32)
            with self.adding:
                self.total[at : at + part.size] += part
            at += part.size
        with self.condition:
            self.answered += 1
            if self.answered == self.clients:
                np.divide(self.total, self.clients, out=self.model)
                self.total[:] = 0
                now = time.perf_counter()
                self.times.append(now - self.begin)
                self.begin, self.answered, self.started = now, 0, self.started + 1
                self.condition.notify_all()
        return b""

    def run(self, address_file):
        server = grpc.server(ThreadPoolExecutor(4 * self.clients), options=OPTIONS)
        handlers = {
            "Down": grpc.unary_stream_rpc_method_handler(self.down),
            "Up": grpc.stream_unary_rpc_method_handler(self.up),
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("floor", handlers)])
        Path(address_file).write_text(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        server.start()
        with self.condition:
            self.condition.wait_for(lambda: self.started == self.rounds)
        server.stop(1).wait()
        print(json.dumps(self.times[1:]))


def client(address, megabytes, rounds):
    local = np.zeros(megabytes * 250_000, np.float32)
    view = memoryview(local).cast("B")
    with grpc.insecure_channel(address, OPTIONS) as channel:
        down, up = channel.unary_stream("/floor/Down"), channel.stream_unary("/floor/Up")
        for number in range(rounds):
            at = 0
            for message in down(str(number).encode()):
                view[at : at + len(message)] = message
                at += len(message)
            local += 1
            up(chunks(local))


if __name__ == "__main__":
    role, file, *numbers = sys.argv[1:]
    size, count, total = map(int, numbers)
    if role == "server":
        Server(size, count, total).run(file)
    else:
        client(file, size, total)
