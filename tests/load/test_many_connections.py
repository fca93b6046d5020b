"""Thousands of clients that wait: what they cost, whether all are heard in time, and how they come back after a crash."""

import resource
import socket
import time
from collections import Counter
from contextlib import ExitStack

import pytest
from procs import MIB, SCALE, Door, Process, Served, scaled

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

CLIENTS, SECONDS, BEAT = scaled(1000), scaled(120, 15), 5.0
LEASE = 3 * BEAT  # three beats in a row must go astray before somebody counts as lost
FLEETS = 4  # processes that the clients share
AGAIN = 30.0  # seconds that all may take to come back


def quantile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("inf")


def serve(population, **more):
    """Start a server whose run never begins, because one client more is wanted than there is."""
    wanted = {"min_fit_clients": population + 1, "clients_per_round": population + 1}
    return Served(strategy=wanted, **more)


def join(stack, server, count, timeout=120, **more):
    """Start the processes that hold the clients, and wait until all are registered."""
    share, rest = divmod(count, FLEETS)
    fleets, first = [], 0
    for number in range(FLEETS):
        size = share + (number < rest)
        fleets.append(stack.enter_context(Process("fleet.py", address=server.address, count=size, first=first, **more)))
        first += size
    told = [fleet.until("registered", timeout)["interval"] for fleet in fleets]
    return fleets, max(told)


def reports(fleets):
    """Return what all clients met with since the last time."""
    each, calls = [fleet.ask("report") for fleet in fleets], ("RegisterClient", "GetGlobalModel", "Heartbeat")
    return {
        "beats": [beat for one in each for beat in one["beats"]],
        "problems": dict(sum((Counter(one["problems"]) for one in each), Counter())),
        "registered": [pair for one in each for pair in one["registered"]],
        "asked": {kind: sum(one["asked"].get(kind, 0) for one in each) for kind in calls},
    }


@pytest.mark.timeout(SECONDS + 240)
def test_p1_a_thousand_clients_are_heard_in_time_and_cost_little(found):
    with ExitStack() as stack:
        server = stack.enter_context(serve(CLIENTS, config={"heartbeat_interval": BEAT, "heartbeat_timeout": LEASE}))
        idle = server.rss
        fleets, interval = join(stack, server, CLIENTS)
        server.run_on(BEAT)
        reports(fleets)
        cpu, began = server.cpu, time.monotonic()
        server.run_on(SECONDS)
        seconds, cpu = time.monotonic() - began, server.cpu - cpu
        said, grown, lost = reports(fleets), server.rss - idle, len(server.lost)
    bounds = {
        "beat_p99_ms": (quantile(said["beats"], 0.99), 250),
        "lost": (lost, 0),
        "failed_requests": (sum(said["problems"].values()), 0),
        "cpu_percent": (round(100 * cpu / seconds, 1), 60),
        "rss_grown_mib": (round(grown / MIB, 1), 150),
        "fewest_beats": (0.9 * CLIENTS * seconds / BEAT, len(said["beats"])),
    }
    assert not found(
        "P1", bounds, clients=CLIENTS, seconds=round(seconds, 1), beats=len(said["beats"]), told_interval=interval,
        beat_p50_ms=quantile(said["beats"], 0.5), beat_worst_ms=quantile(said["beats"], 1), idle_mib=idle // MIB,
        problems=said["problems"], scale=SCALE,
    )  # fmt: skip


@pytest.mark.timeout(360)
def test_p4_after_a_crash_all_come_back_soon_and_not_all_at_once(found, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {"heartbeat_interval": BEAT, "heartbeat_timeout": 4 * LEASE, "state_dir": str(tmp_path / "state")}
    with ExitStack() as stack:
        first = stack.enter_context(serve(CLIENTS, address=address, config=config))
        fleets, _ = join(stack, first, CLIENTS, apart=True)
        first.run_on(2 * BEAT)  # by then all have heard how many they are
        reports(fleets)
        with Door(address) as door:
            first.kill()
            killed = time.monotonic()
            second = stack.enter_context(serve(CLIENTS, address=address, config=config))
            second.run_on(AGAIN)
        said, lost = reports(fleets), len(second.lost)
    back = {name: at - second.began for name, at in said["registered"]}
    bounds = {
        "last_back_s": (round(max(back.values(), default=float("inf")), 2), AGAIN),
        "missing": (CLIENTS - len(back), 0),
        "connects_per_s": (door.peak(), 200),
        "registrations_each": (said["asked"]["RegisterClient"] / CLIENTS, 4),
        "connections_each": (round(len(door.moments) / CLIENTS, 2), 4),
        "lost": (lost, 0),
    }
    assert not found(
        "P4", bounds, clients=CLIENTS, down_s=round(second.began - killed, 2), asked=said["asked"], problems=said["problems"],
        half_back_s=round(quantile(list(back.values()), 0.5), 2), longest_look_s=round(door.gap, 2), scale=SCALE,
    )  # fmt: skip


MANY, MANY_SECONDS, SELDOM = scaled(10_000), scaled(300, 35), 30.0
SPARE = 500  # descriptors that a process needs for other things


# With as many that wait for a task, too, what the clients alone take of two cores is too much to hear them all in time.
@pytest.mark.parametrize(
    ("many", "waits", "lasts"), [(MANY, False, MANY_SECONDS), (MANY // 2, True, MANY_SECONDS * 0.4)],
    ids=["beating", "waiting for a task, too"],
)  # fmt: skip
@pytest.mark.timeout(MANY_SECONDS + 900)
def test_p2_ten_thousand_clients_are_heard_in_time(found, many, waits, lasts):
    reached = min(many, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE)
    with ExitStack() as stack:
        server = stack.enter_context(serve(many, config={"heartbeat_interval": SELDOM, "heartbeat_timeout": 3 * SELDOM}))
        idle, began = server.rss, time.monotonic()
        fleets, interval = join(stack, server, reached, timeout=600, waits=waits)
        joined = time.monotonic() - began
        server.run_on(SELDOM)
        reports(fleets)
        cpu, began = server.cpu, time.monotonic()
        server.run_on(lasts)
        seconds, cpu = time.monotonic() - began, server.cpu - cpu
        said, grown, lost, files = reports(fleets), server.rss - idle, len(server.lost), server.files
        crowd = sum(fleet.rss for fleet in fleets)
    bounds = {
        "fewest_clients": (many, reached),
        "beat_p99_ms": (quantile(said["beats"], 0.99), 1000),
        "lost": (lost, 0),
        "failed_requests": (sum(said["problems"].values()), 0),
        "rss_grown_mib": (round(grown / MIB, 1), 600),
        "fewest_beats": (0.9 * reached * seconds / SELDOM, len(said["beats"])),
    }
    assert not found(
        "P2", bounds, waits=waits, clients=reached, seconds=round(seconds, 1), joined_s=round(joined, 1),
        told_interval=interval, beats=len(said["beats"]), beat_p50_ms=quantile(said["beats"], 0.5),
        beat_worst_ms=quantile(said["beats"], 1), files=files, cpu_percent=round(100 * cpu / seconds, 1),
        crowd_mib=crowd // MIB, problems=said["problems"], scale=SCALE,
    )  # fmt: skip
