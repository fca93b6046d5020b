"""Changes the frames of codecs below what would notice a change at once: checksums, lengths and fingerprints are made right."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import msgpack
from fields import INTEGERS, TEXTS, mutated

from fedcore.codec import Codec, joined
from fedcore.compression import Compressor, _restored
from fedcore.errors import FedcoreError
from fedcore.protos import fedcore_pb2 as pb

Bytes = Callable[[bytes, Random], bytes]

_HEADER = 9
_FINGERPRINT = 8


def changed(codec: Codec, frame: bytes, random: Random, havoc: Bytes) -> bytes:
    """Return a frame that is changed in one layer."""
    if random.random() < 0.2:
        return havoc(frame, random)
    if isinstance(codec, Compressor):
        return _below(codec, frame, random, havoc)
    try:
        if codec.name == "safetensors":
            return _safetensors(frame, random, havoc)
        if codec.name == "msgpack":
            return bytes(msgpack.packb(turned(msgpack.unpackb(frame), random, havoc)))
        if codec.name == "protobuf":
            return bytes(mutated(pb.ModelParameters.FromString(frame), random, havoc)[0].SerializeToString())
    except Exception:  # it was changed before, and has no such structure any more
        return havoc(frame, random)
    return frame[:_FINGERPRINT] + havoc(frame[_FINGERPRINT:], random)


def _below(codec: Compressor, frame: bytes, random: Random, havoc: Bytes) -> bytes:
    width, length = frame[:1], int.from_bytes(frame[1:_HEADER], "little")
    packed = width != b"\0"
    if random.random() < 0.3:  # the header, or the compressed bytes as they are
        head, rest = frame[:_HEADER], frame[_HEADER:]
        return havoc(head, random) + rest if random.random() < 0.5 else head + havoc(rest, random)
    try:
        inner = bytes(codec.decompress(memoryview(frame)[_HEADER:], min(length, 1 << 20))) if packed else frame[_HEADER:]
        if packed and width[0] in (2, 4, 8):
            inner = bytes(_restored(inner, width[0]))
        inner = changed(codec.inner, inner, random, havoc)
        payload = bytes(joined(codec.compress([inner], len(inner)))) if packed and inner else inner
        return (b"\1" if packed and inner else b"\0") + len(inner).to_bytes(8, "little") + payload
    except (FedcoreError, IndexError):
        return havoc(frame, random)


def _safetensors(frame: bytes, random: Random, havoc: Bytes) -> bytes:
    length = int.from_bytes(frame[:8], "little")
    header, data = json.loads(frame[8 : 8 + length]), frame[8 + length :]
    if random.random() < 0.2:
        data = havoc(data, random)
    else:
        header = turned(header, random, havoc)
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def turned(value: Any, random: Random, havoc: Bytes) -> Any:
    """Return plain values with one of them changed."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key, made = random.choice(list(value)), dict(value)
        if random.random() < 0.7:
            made[key] = turned(made[key], random, havoc)
        elif random.random() < 0.5:
            del made[key]
        else:
            made[random.choice(TEXTS)] = made.pop(key)
        return made
    if isinstance(value, list) and value and random.random() < 0.9:
        at, items = random.randrange(len(value)), list(value)
        if random.random() < 0.7:
            items[at] = turned(items[at], random, havoc)
        elif random.random() < 0.5:
            del items[at]
        else:
            items.insert(at, items[at])
        return items
    if isinstance(value, bytes) and random.random() < 0.8:
        return havoc(value, random)
    if isinstance(value, int) and random.random() < 0.5:
        return value + random.choice([-1, 1, 4, -4])
    nested: Any = [value]
    for _ in range(random.choice([0, 15, 500])):
        nested = [nested]
    whole = [number for number in INTEGERS if number < 1 << 64]
    return random.choice([None, True, 1.5, [], {}, nested, random.choice(whole), random.choice(TEXTS)])
