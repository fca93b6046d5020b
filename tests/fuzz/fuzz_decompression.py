"""Compressed frames. One byte says by what; the frame is to hold half a mebibyte, and may cost no more than that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import torch
from fields import picked
from oracle import Target

from fedcore.codec import buffers, joined
from fedcore.codecs.delta import Delta
from fedcore.codecs.lz4 import Lz4
from fedcore.codecs.zstd import Zstd
from fedcore.compression import Compressor
from fedcore.errors import FedcoreError
from fedcore.parameters import Spec

_CODECS: tuple[Compressor, ...] = (Lz4(Delta()), Zstd(Delta()), Lz4(Zstd(Delta())))
_HEADER = 9
_LARGE = {"row": torch.zeros(1 << 19, dtype=torch.uint8)}
_SPEC = Spec.of(_LARGE)


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield zeros, which shrink most, numbers that resemble one another, and a frame of raw bytes that is too short."""
    rows = {"zeros": _LARGE["row"], "steps": (torch.arange(1 << 17, dtype=torch.int32) // 300).view(torch.uint8)}
    for index, codec in enumerate(_CODECS):
        for name, row in rows.items():
            yield f"{codec.name}-{name}", bytes([index]) + bytes(joined(buffers(codec.encode({"row": row}))))


def run(data: bytes) -> None:
    """Decode one."""
    codec = picked(_CODECS, data[0] if data else 0)
    decoded = codec.decode(memoryview(data)[1:], _SPEC)
    _SPEC.check(decoded)


def mutate(data: bytes, random: Random, havoc: Callable[[bytes, Random], bytes]) -> bytes:
    """Change the header, the compressed bytes, or the frame inside of a frame that is compressed once more."""
    codec, frame = picked(_CODECS, data[0] if data else 0), data[1:]
    way = random.random()
    if way < 0.3:
        made = havoc(frame[:_HEADER], random) + frame[_HEADER:]
    elif way < 0.5 and isinstance(codec.inner, Compressor):
        try:
            inner = bytes(codec.decompress(memoryview(frame)[_HEADER:], int.from_bytes(frame[1:_HEADER], "little") % (1 << 21)))
        except FedcoreError:
            return havoc(data, random)
        inner = havoc(inner, random) or b"\0"
        made = b"\1" + len(inner).to_bytes(8, "little") + bytes(joined(codec.compress([inner], len(inner))))
    else:
        made = frame[:_HEADER] + havoc(frame[_HEADER:], random)
    return data[:1] + made


TARGET = Target("decompression", seeds, run, mutate)
