"""Robust aggregation of large updates: memory for a block of them, however many there are."""

import pytest
from procs import MIB, SCALE, Process, scaled

pytestmark = pytest.mark.slow

NBYTES, FEW, MOST = scaled(20, 8) * 1_000_000, 10, scaled(80, 20)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rule", ["median", "multikrum"])
def test_robust_aggregation_takes_the_same_memory_however_many_updates_there_are(rule, found):
    seen = {}
    for count in (FEW, MOST):
        with Process("robust.py", rule=rule, count=count, floats=NBYTES // 4) as process:
            seen[count] = process.until("peak", 600.0)
    assert all(0 < each["mean"] < 1 for each in seen.values())
    bounds = {"peak_over_few": (round(seen[MOST]["peak"] / seen[FEW]["peak"], 3), 1.1)}
    figures = {name: {count: each[name] for count, each in seen.items()} for name in ("taken", "made")}
    peaks = {count: each["peak"] // MIB for count, each in seen.items()}
    assert not found(f"robust-{rule}", bounds, update_mb=NBYTES // 1_000_000, peak_mib=peaks, seconds=figures, scale=SCALE)
