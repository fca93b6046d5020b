"""What configurations, metrics and states of strategies may hold. One byte says in which form they come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from random import Random

import msgpack
import torch
from fields import mutated, picked
from layers import turned
from oracle import Target

from fedcore.errors import FedcoreError
from fedcore.messages import Kind, Task
from fedcore.packing import pack, unpack
from fedcore.protos import fedcore_pb2 as pb
from fedcore.site import SitePolicy
from fedcore.transports.grpc import wire
from fedcore.transports.grpc.framing import parse
from fedcore.values import check_config, check_metrics

_CONFIG = {"round": 3, "seed": (1 << 62) + 1, "lr": 0.05, "name": "adam", "layers": [1, 2, 3], "raw": b"\0\1", "nesterov": True}
_SITE = SitePolicy(config={"lr": (0.0, 1.0), "local_epochs": (1, 5)})
_STATE = {"momentum": {"a": torch.ones(2), "b": [torch.zeros(3), 4, None]}, "step": 7, "beta": 0.9, "names": ("x", "y")}
_WIRE, _STORED, _PLAIN = range(3)


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield a task's configuration, a strategy's state, and plain values."""
    task = wire.pack_task(Task("task-1", Kind.FIT, 3, "d" * 64, _CONFIG))
    yield "refused-task", bytes([_WIRE]) + task.SerializeToString()
    small = wire.pack_task(Task("task-2", Kind.EVALUATE, 3, "d" * 64, {"round": 3, "lr": 0.5, "local_epochs": 2}))
    yield "site", bytes([_WIRE]) + small.SerializeToString()
    yield "state", bytes([_STORED]) + json.dumps(pack(_STATE)[1]).encode()
    yield "refused-plain", bytes([_PLAIN]) + msgpack.packb(_CONFIG)
    yield "metrics", bytes([_PLAIN]) + msgpack.packb({"loss": 0.25, "accuracy": 0.5, "steps": 10})


def run(data: bytes) -> None:
    """Decode one, check it, and see whether it survives the way back."""
    form, rest = picked((_WIRE, _STORED, _PLAIN), data[0] if data else 0), data[1:]
    if form == _WIRE:
        config = check_config(wire.unpack_task(parse(pb.Task, rest)).config)
        again = wire.unpack_config(wire.pack_config(config))
        if repr(again) != repr(config):  # NaN is not equal to itself
            raise AssertionError("a configuration changed on the way")
        _SITE.check_config(config)
    elif form == _STORED:
        try:
            plain = json.loads(rest)
        except (ValueError, RecursionError):  # the ledger sees to that
            return
        unpack(pack(_STATE)[0], plain)
    else:
        try:
            values = msgpack.unpackb(rest, strict_map_key=False)
        except Exception:  # not what this is about: a way to make plain values
            return
        if isinstance(values, dict):
            check_config(values)
            check_metrics(values)


def mutate(data: bytes, random: Random, havoc: Callable[[bytes, Random], bytes]) -> bytes:
    """Change a field, or a value."""
    form, rest = picked((_WIRE, _STORED, _PLAIN), data[0] if data else 0), data[1:]
    try:
        if form == _WIRE:
            made = mutated(parse(pb.Task, rest), random, havoc)[0].SerializeToString()
        elif form == _STORED:
            made = json.dumps(turned(json.loads(rest), random, havoc)).encode()
        else:
            made = msgpack.packb(turned(msgpack.unpackb(rest), random, havoc))
    except (FedcoreError, ValueError, TypeError, RecursionError, OverflowError):  # it was changed before
        return havoc(data, random)
    return data[:1] + made


TARGET = Target("config", seeds, run, mutate)
