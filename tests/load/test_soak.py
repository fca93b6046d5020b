"""Hundreds of rounds with clients that crash and come back: nothing grows but the journal, and that in proportion."""

import random
import statistics
import threading
from contextlib import suppress
from typing import ClassVar

import pytest
import torch
from procs import MIB, SCALE, Served, scaled

from fedcore import Client, Grpc
from fedcore.link import Link
from fedcore.testing import Recorder, check_state
from fedcore.worker import Worker

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

ROUNDS, WARM, CLIENTS, CRASHES = scaled(500, 100), scaled(200, 40), 20, 0.05
FLOATS = 50_000
BLOCK = 20  # rounds of which the middle figure counts: in a single one somebody may be gone, and memory not yet given back
LONG = 5 * BLOCK  # the same for connections: clients that crash come and go


class LongServed(Served):
    """A server that is started as the README says of one that is to run for months."""

    environment: ClassVar[dict[str, str]] = {**Served.environment, "MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "131072"}


class Crash(Exception):
    """The process ends here, and says nothing."""


class Crashes(Client):
    """Trains by the seed it is given; in some rounds, by a seed of its own, it crashes once before, and once after that."""

    def __init__(self, number):
        self.number, self.connection, self.crashes, self._crashed = number, None, 0, set()

    def get_parameters(self):
        raise AssertionError("the server has a model")

    def fit(self, parameters, config):
        number = config["round"]
        if random.Random(f"{self.number} {number}").random() < CRASHES and number not in self._crashed:
            self._crashed.add(number)
            self.crashes += 1
            self.connection.close()
            raise Crash
        draw = torch.Generator().manual_seed(1000 * number + self.number)
        return {"w": parameters["w"] + torch.randn(FLOATS, generator=draw)}, 5 + self.number

    def live(self, wire, address):
        """Take part to the end; each crash is followed by a new process under the same name."""
        ended = ""
        while not ended:
            with suppress(Crash), wire.connect(address) as self.connection:
                ended = Worker(Link(self.connection, f"client-{self.number}"), self).run()


def middles(values, block):
    """Return the middle of each few values."""
    return [statistics.median(values[at : at + block]) for at in range(0, len(values), block)]


def slope(values):
    """Return by how much each value is above the one before, on the line that fits them best."""
    return statistics.linear_regression(range(len(values)), values).slope


def drift(values):
    """Return by how much a value differs at most from the middle of all."""
    return max(abs(each - statistics.median(values)) for each in values)


@pytest.mark.timeout(1800)
def test_p10_nothing_grows_over_hundreds_of_rounds(found, tmp_path):
    state, wire, clients = tmp_path / "state", Recorder(Grpc()), [Crashes(number) for number in range(CLIENTS)]
    config = {"num_rounds": ROUNDS, "state_dir": str(state), "heartbeat_interval": 1.0}
    wanted = {"min_fit_clients": CLIENTS, "clients_per_round": CLIENTS}
    seen, failures = [], []

    def live(client, address):
        try:
            client.live(wire, address)
        except Exception as error:
            failures.append(error)

    with LongServed(floats=FLOATS, strategy=wanted, config=config) as server:
        threads = [threading.Thread(target=live, args=(client, server.address)) for client in clients]
        for thread in threads:
            thread.start()
        for number in range(1, ROUNDS):
            server.until("committed", 120, met=lambda line, number=number: line["committed"] == number)
            journal = (state / "ledger.db").stat().st_size
            seen.append((number, server.rss / MIB, server.files, server.threads, journal))
        server.until("digest", 120)
        for thread in threads:
            thread.join(60)
        failed, lost, began = server.all("failed"), server.lost, server.began
        ended = server.said[-1]["at"]
    told = check_state(state, wire.told, quorum=CLIENTS, most=CLIENTS)
    rss, files, native = (
        middles([each[column] for each in seen[WARM:]], block) for column, block in ((1, BLOCK), (2, LONG), (3, BLOCK))
    )
    middle = len(seen) // 2
    first, second = seen[middle][4] - seen[0][4], seen[-1][4] - seen[middle][4]
    bounds = {
        "rss_mib_per_100_rounds": (round(100 / BLOCK * slope(rss), 3), 1.0),
        "files_drift": (drift(files), 2),
        "threads_drift": (drift(native), 2),
        "journal_second_over_first_half": (round(second / first, 3), 1.2),
        "faults": (len(told.faults), 0),
        "failed_rounds": (len(failed), 0),
        "failed_clients": (len(failures), 0),
        "fewest_updates": (CLIENTS * ROUNDS, told.updates),
    }
    assert not found(
        "P10", bounds, rounds=told.rounds, clients=CLIENTS, crashes=sum(client.crashes for client in clients),
        acknowledged=told.acknowledged, seconds=round(ended - began, 1), lost=len(lost), faults=told.faults[:5],
        rss_mib=[round(each, 1) for each in rss], files=files, threads=native[-1],
        journal_mib=round(seen[-1][4] / MIB, 2), failures=[repr(each) for each in failures], scale=SCALE,
    )  # fmt: skip
