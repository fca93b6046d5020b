"""Aggregates updates of random numbers, and says what the process occupied at most: for test_robust_memory.py."""

import resource
import time

import torch
from procs import say, settings

from fedcore import Median, MultiKrum, Update

wanted = settings()
torch.set_num_threads(1)
base = {"w": torch.zeros(wanted["floats"])}
make = {"median": Median, "multikrum": MultiKrum}[wanted["rule"]]
aggregator = make(f=2, clients_per_round=wanted["count"]).start_round(1, base)
began = time.monotonic()
for index in range(wanted["count"]):
    draw = torch.Generator().manual_seed(index)
    aggregator.add(Update({"w": torch.randn(wanted["floats"], generator=draw)}, 1, f"client-{index:02}", digest=f"{index}"))
taken = time.monotonic() - began
made = aggregator.result()
say(
    peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10, taken=round(taken, 1),
    made=round(time.monotonic() - began - taken, 1), mean=float(made["w"].abs().mean()),
)  # fmt: skip
