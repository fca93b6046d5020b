"""The exact weighted mean beside a plain float32 loop: benchmarks/mean.py [--updates K] [--megabytes N] [--threads T].

K updates of N MB lie in memory, random-normal, with different weights. What is timed is a round's sum: fresh accumulators,
every update added, the mean made. As on the server, the largest magnitudes were measured when the updates were checked;
``unmeasured_GB_s`` is without that. The error is the largest distance to the mean in float64, in units of the last place of
the float32 there: one half is the best there is. Memory is the peak beyond the updates, in the first pass. Medians of five
after it; the ways take turns. One JSON line.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from memory import extra

from fedcore.aggregator import Update
from fedcore.averaging import FedAvgAggregator
from fedcore.extents import extent


def model(megabytes, seed):
    draw = torch.Generator().manual_seed(seed)
    return {f"layer.{i}.weight": torch.randn(megabytes * 2_500, generator=draw) * 0.05 for i in range(100)}


def exact(base, updates):
    aggregator = FedAvgAggregator(base)
    for update in updates:
        aggregator.add(update)
    return aggregator.result()


def plain(base, updates):
    total = sum(update.num_examples for update in updates)
    mean = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    for update in updates:
        for name, tensor in update.parameters.items():
            mean[name].add_(tensor, alpha=update.num_examples / total)
    return mean


def error(mean, updates):
    """Return the largest error in units of the last place of the float32 nearest to the true mean."""
    total, worst = sum(update.num_examples for update in updates), 0.0
    for name, tensor in mean.items():
        true = sum(update.parameters[name].double() * update.num_examples for update in updates).div_(total).numpy()
        place = np.spacing(np.abs(true.astype(np.float32))).astype(np.float64)
        worst = max(worst, float((np.abs(tensor.double().numpy() - true) / place).max()))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = model(options.megabytes, 0)
    bare = [Update(model(options.megabytes, i), 100 + 37 * i, f"client-{i}") for i in range(1, options.updates + 1)]
    measured = [
        Update(u.parameters, u.num_examples, u.client_id, extents={n: extent(t) for n, t in u.parameters.items()}) for u in bare
    ]
    contenders = {"exact": (exact, measured), "unmeasured": (exact, bare), "plain": (plain, bare)}
    memory, errors, times = {}, {}, {name: [] for name in contenders}
    for name, (way, updates) in contenders.items():
        memory[name], mean = extra(lambda: way(base, updates))  # noqa: B023
        errors[name] = error(mean, updates)
        del mean
    for _ in range(5):
        for name, (way, updates) in contenders.items():
            began = time.perf_counter()
            way(base, updates)
            times[name].append(time.perf_counter() - began)
    size = options.updates * options.megabytes / 1e3
    line = {"benchmark": "mean", "updates": options.updates, "megabytes": options.megabytes, "threads": options.threads}
    line["seconds"] = round(statistics.median(times["exact"]), 4)
    line["GB_s"] = round(size / statistics.median(times["exact"]), 2)
    line["unmeasured_GB_s"] = round(size / statistics.median(times["unmeasured"]), 2)
    line["plain_GB_s"] = round(size / statistics.median(times["plain"]), 2)
    for name in ("exact", "plain"):
        line[f"{name}_extra_models"] = round(memory[name] / options.megabytes / 1e6, 2)
        line[f"{name}_error_ulp"] = round(errors[name], 4)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
