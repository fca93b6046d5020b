"""How fast each codec is, and what it saves: benchmarks/codecs.py [--megabytes N] [--codecs NAME ...].

The payload is float32 in 100 tensors: random-normal, as weights are. One JSON line a codec. Decoding lands in memory that was
used before, as on a server in its second round. Medians of five after one pass that is not counted.
"""

import argparse
import json
import statistics
import time

import torch

from fedcore import registry
from fedcore.codec import buffers, frame_bytes, joined
from fedcore.parameters import Spec
from fedcore.shards import shards

CODECS = ["safetensors", "msgpack", "protobuf", "torch", "safetensors+lz4"]


def timed(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def measure(name, megabytes):
    draw = torch.Generator().manual_seed(0)
    model = {f"layer.{i}.weight": torch.randn(megabytes * 2500, generator=draw) * 0.05 for i in range(100)}
    spec, codec = Spec.of(model), registry.codec(name)
    cut, blank = shards(spec), spec.blank()
    encoding, decoding, size = [], [], 0
    for _ in range(6):
        seconds, frames = timed(lambda: [codec.encode(shard.take(model)) for shard in cut])
        encoding.append(seconds)
        size = sum(map(frame_bytes, frames))
        whole = [joined(buffers(frame)) for frame in frames]
        seconds, _ = timed(
            lambda: [codec.decode(f, s.spec, into=s.take(blank)) for f, s in zip(whole, cut, strict=True)]  # noqa: B023
        )
        decoding.append(seconds)
    raw = spec.nbytes
    return {
        "benchmark": "codecs", "codec": name, "megabytes": megabytes, "ratio": round(raw / size, 3),
        "encode_GB_s": round(raw / 1e9 / statistics.median(encoding[1:]), 2),
        "decode_GB_s": round(raw / 1e9 / statistics.median(decoding[1:]), 2),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--codecs", nargs="*", default=CODECS)
    options = parser.parse_args()
    for codec_name in options.codecs:
        print(json.dumps(measure(codec_name, options.megabytes)), flush=True)
