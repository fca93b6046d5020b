"""How fast each codec is, and what it saves: benchmarks/codecs.py [--megabytes N] [--codecs NAME ...].

The payload is float32 in 100 tensors: random-normal, as weights are; the model that updates are differences from is near it.
Decoding lands in memory that was used before, as on a server in its second round. Medians of five after one pass that is not
counted; in that one ``encode_extra_MiB`` is taken: the peak while all frames of the model are made and kept. ``both_GB_s`` is
one encoding and one decoding. One JSON line a codec; one that is not installed is skipped, and the line says so.
"""

import argparse
import json
import statistics
import time

import torch
from memory import extra

from fedcore import registry
from fedcore.codec import buffers, frame_bytes, joined
from fedcore.errors import ConfigError
from fedcore.parameters import Spec
from fedcore.shards import shards

CODECS = ["safetensors", "msgpack", "protobuf", "torch", "safetensors+lz4", "safetensors+zstd", "bf16", "int8", "topk"]


def timed(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def measure(name, megabytes):
    codec = registry.codec(name)
    draw = torch.Generator().manual_seed(0)
    model = {f"layer.{i}.weight": torch.randn(megabytes * 2500, generator=draw) * 0.05 for i in range(100)}
    near = {name: tensor * 0.99 for name, tensor in model.items()} if codec.uses_base else None
    spec = Spec.of(model)
    cut, blank = shards(spec), spec.blank()

    def base(shard):
        return None if near is None else shard.take(near)

    def encode():
        return [codec.encode(shard.take(model), base=base(shard), state={}) for shard in cut]

    def decode(frames):
        for frame, shard in zip(frames, cut, strict=True):
            codec.decode(frame, shard.spec, base=base(shard), into=shard.take(blank))

    encoding, decoding, whole = [], [], []
    more, frames = extra(encode)
    size = sum(map(frame_bytes, frames))
    for _ in range(6):
        del frames, whole
        seconds, frames = timed(encode)
        encoding.append(seconds)
        whole = [joined(buffers(frame)) for frame in frames]
        decoding.append(timed(lambda: decode(whole))[0])  # noqa: B023
    raw, there, back = spec.nbytes, statistics.median(encoding[1:]), statistics.median(decoding[1:])
    return {
        "benchmark": "codecs", "codec": name, "megabytes": megabytes, "ratio": round(raw / size, 3),
        "encode_GB_s": round(raw / 1e9 / there, 2), "decode_GB_s": round(raw / 1e9 / back, 2),
        "both_GB_s": round(raw / 1e9 / (there + back), 2), "encode_extra_MiB": round(more / (1 << 20), 1),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--codecs", nargs="*", default=CODECS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for codec_name in options.codecs:
        try:
            line = measure(codec_name, options.megabytes)
        except ConfigError as error:  # no such name, or a library that is missing
            line = {"benchmark": "codecs", "codec": codec_name, "skipped": str(error)}
        print(json.dumps(line), flush=True)
