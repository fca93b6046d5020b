"""What many large models at once cost the server: memory for a few of them, however many there are."""

from collections import Counter

import pytest
from procs import MIB, SCALE, Process, Served, scaled

from fedcore import Grpc
from fedcore.messages import StatusQuery

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


def exchange(count, nbytes, *, fetch=False, timeout=600.0, **limits):
    """Let clients send their updates, or fetch the model, all at once; return what that was like for the server."""
    wanted = {"min_fit_clients": count, "clients_per_round": count}
    floats, config = nbytes // 4, {"num_rounds": 2}
    with Served(floats=floats, strategy=wanted, config=config, limits=limits) as server:
        idle = server.rss
        with Process("hands.py", address=server.address, count=count, floats=floats, fetch=fetch) as hands:
            hands.until("ready", timeout)
            ready = server.rss
            server.forget_peak()
            hands.tell("go")
            done = hands.until("done", timeout)
            if not fetch:
                server.until("committed", timeout)
            peak = server.peak
            with Grpc().connect(server.address) as connection:
                encodings = connection.request(StatusQuery()).message.encodings
        return {
            "outcomes": Counter(done["done"]), "seconds": max(done["seconds"]),
            "idle_mib": idle // MIB, "ready_mib": ready // MIB,
            "peak_mib": peak // MIB, "grown_mib": round((peak - idle) / MIB, 1), "encodings": encodings, "lost": server.lost,
        }  # fmt: skip


LARGE = scaled(100, 30) * MIB
SENDERS, ROOM = scaled(20, 8), 5 * LARGE + scaled(12) * MIB


@pytest.mark.timeout(900)
def test_p6_large_updates_that_come_at_once_take_turns_in_the_memory_set_aside(found):
    seen = exchange(SENDERS, LARGE, upload_memory=ROOM)
    missing = SENDERS - seen["outcomes"]["accepted"]
    bounds = {
        "grown_mib": (seen["grown_mib"], (ROOM + 3 * LARGE) / MIB),
        "missing": (missing, 0),
        "lost": (len(seen["lost"]), 0),
    }
    assert not found("P6", bounds, clients=SENDERS, update_mib=LARGE // MIB, budget_mib=ROOM // MIB, **seen, scale=SCALE)


SMALLER, FEW, SOME, MOST = scaled(20, 8) * MIB, 5, scaled(20, 10), scaled(80, 20)


@pytest.mark.timeout(900)
def test_p7_summing_up_takes_the_same_memory_however_many_updates_there_are(found):
    seen = {count: exchange(count, SMALLER) for count in (FEW, SOME, MOST)}
    grown = {count: each["grown_mib"] for count, each in seen.items()}
    missing = sum(count - each["outcomes"]["accepted"] for count, each in seen.items())
    most = max(each["peak_mib"] for each in seen.values()) / seen[FEW]["peak_mib"]
    bounds = {"peak_over_few": (round(most, 3), 1.1), "missing": (missing, 0)}
    seconds = {count: each["seconds"] for count, each in seen.items()}
    assert not found("P7", bounds, update_mib=SMALLER // MIB, grown_mib=grown, seconds=seconds, scale=SCALE)


FETCHERS = scaled(50, 10)


@pytest.mark.timeout(900)
def test_p9_a_large_model_is_encoded_once_for_all_and_lies_in_memory_once(found):
    seen = exchange(FETCHERS, LARGE, fetch=True)
    missing = FETCHERS - seen["outcomes"]["fetched"]
    bounds = {
        "grown_mib": (seen["grown_mib"], 2 * LARGE / MIB),
        "encodings": (seen.pop("encodings"), 1),
        "missing": (missing, 0),
    }
    assert not found("P9", bounds, clients=FETCHERS, model_mib=LARGE // MIB, **seen, scale=SCALE)
