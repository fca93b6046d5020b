"""What a client is sent takes the memory of one model, whatever the server sends."""

import random

import torch

from fedcore import pool
from fedcore.broadcast import encode
from fedcore.clock import Clock
from fedcore.inbox import Inbox
from fedcore.parameters import Spec
from fedcore.registry import codec
from fedcore.retry import Persistence


def idle():
    return sum(memory.nbytes for kept in pool._idle.values() for memory in kept)


def test_c1_models_of_ever_new_sizes_leave_no_memory_behind():
    pool.drain()
    inbox = Inbox(("safetensors",), codec("safetensors"))
    trial = Persistence(0.0, Clock(), random.Random(0), lambda _: None, lambda: True).trial()
    for size in range(100_000, 110_000, 1000):
        model = {"w": torch.ones(size)}
        payload = encode(model, Spec.of(model), codec("safetensors"), 16 << 20)
        received = inbox.receive(payload.manifest, payload.body, lambda offset: (), trial)
        assert torch.equal(received["w"], model["w"])
        del received
        assert idle() <= 4 * size
    pool.drain()
