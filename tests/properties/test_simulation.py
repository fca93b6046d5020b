"""Whole federations that a seed makes and disturbs: the same seed does the same again, and no promise is broken by any.

Servers, links and workers are the real ones; threads, time, network and disk are the simulation's. What a model must be is
worked out here, from what the server noted of the updates, in plain arithmetic.
"""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from fedcore import Client, FedAvg, RoundPolicy, ServerConfig, digest, events
from fedcore.testing import simulate

pytestmark = pytest.mark.chaos

UNIT = 720720.0  # every number up to 16 divides it: the means of its multiples are whole, and exact
NAMES = "abcde"
MANY = 1000  # seeds before a release
STORM = {"loss": 0.1, "duplicate": 0.1, "crash_server": 0.02, "crash_client": 0.02}


@pytest.fixture(autouse=True)
def quiet(caplog):
    """What a server logs of its own failures is not what is looked for here."""
    caplog.set_level("CRITICAL")


def initial():
    return {"w": torch.zeros(2, dtype=torch.float64), "n": torch.tensor(0)}


def value(number, name):
    """Return what a client's update of a round is about."""
    return (7 * number + 3 * ord(name)) % 19 - 9


def weight(number, name):
    return 1 + (number + ord(name)) % 3


class Trains(Client):
    """Says the same of a round however often it is asked, and keeps what it was sent."""

    def __init__(self, name, received):
        self.name, self.received = name, received

    def get_parameters(self):
        return initial()

    def fit(self, parameters, config):
        number = config["round"]
        self.received.append((number, digest(parameters)))
        made = UNIT * value(number, self.name)
        return {"w": torch.tensor([made, -made], dtype=torch.float64), "n": torch.tensor(0)}, weight(number, self.name)


class Evaluates(Trains):
    def evaluate(self, parameters, config):
        return float(parameters["w"][0]), 3


class Remembers(FedAvg):
    """Counts the models it made, in the models: what it remembers is lost with a server that crashes, or it is not."""

    made = 0

    def step(self, server_round, current, aggregate):
        self.made += 1
        return {"w": aggregate["w"], "n": torch.tensor(self.made)}

    def state_dict(self):
        return {"made": self.made}

    def load_state_dict(self, state):
        self.made = state["made"]


@dataclass
class Scenario:
    """A federation, and what is to happen to it."""

    policy: RoundPolicy
    seed: int = 0
    clients: str = NAMES[:3]
    client: type = Trains
    faults: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    evaluate_fn: object = None
    asks: bool = False  # a client for the first model
    received: list = field(default_factory=list)

    def run(self):
        config = ServerConfig(**{"num_rounds": 4, "policy": self.policy, **self.config})
        strategy = partial(
            Remembers, None if self.asks else initial(), self.evaluate_fn, self.policy.quorum, self.policy.target
        )
        clients = {name: partial(self.client, name, self.received) for name in self.clients}
        return simulate(clients, strategy=strategy, config=config, seed=self.seed, **self.faults)


def whole(seed, **settings):
    """Return a scenario in which every update counts in every round: the final model is the same whatever happens."""
    return Scenario(RoundPolicy(target=3, quorum=3, max_failures=1000), seed, **{"faults": STORM, **settings})


def ragged(seed):
    """Return a scenario of which the seed decides everything."""
    draw = random.Random(f"scenario {seed}")
    count = draw.randint(1, 5)
    target, lease, bad = draw.randint(1, count), draw.choice([6.0, 15.0, 60.0]), draw.choice([0.0, 0.3, 1.0, 1.0, 3.0])
    crash_server = 0.02 * bad * draw.random()
    # clients leave when a run has failed, and a server that crashes then would wait for them
    once = {"max_failures": 1000} if crash_server else {"max_failures": 3, "on_failure": draw.choice(["retry", "abort"])}
    buffers = {"pace": "async", "extra": 0, "late": "drop", "max_staleness": seed % 7, "staleness_exponent": seed % 3 / 2}
    pace = buffers if seed % 4 == 3 else {}
    policy = RoundPolicy(**{
        "target": target, "quorum": draw.randint(1, target), "deadline": draw.choice([5.0, 20.0, 100.0]),
        "extra": draw.choice([0, 0, 1, 2]), "start_wait": draw.choice([0.0, 2.0, 10.0]), **once,
        **({"on_failure": "skip"} if draw.random() < 0.2 else {}),
        "late": draw.choice(["drop", "drop", "carry", "discount"]), "adapt": draw.choice([None, None, 2.0]), **pace,
    })  # fmt: skip
    return Scenario(
        policy, seed, NAMES[:count], draw.choice([Trains, Evaluates]),
        faults={
            "loss": 0.1 * bad * draw.random(), "duplicate": 0.1 * bad * draw.random(),
            "delay": draw.choice([0.0, 0.01, 0.05, 0.5]), "disk_delay": draw.choice([0.0, 0.001, 0.01]),
            "crash_server": crash_server, "crash_client": 0.02 * bad * draw.random(), "restart": draw.choice([0.5, 5.0, 20.0]),
        },
        config={
            "num_rounds": draw.randint(1, 8), "heartbeat_timeout": lease, "heartbeat_interval": lease / draw.choice([3, 5]),
            "stop_grace": draw.choice([0.0, 5.0]), "evaluate_timeout": draw.choice([0.0, 30.0]),
            "durability": draw.choice(["update", "update", "round"]), "delta_codec": draw.choice([None, None, "delta+zstd"]),
            "max_run_time": draw.choice([None, None, None, 60.0]),
        },
        evaluate_fn=draw.choice([None, lambda number, parameters: (float(parameters["w"][0]), {})]),
        asks=draw.random() < 0.3,
    )  # fmt: skip


# --- what must hold ---


def judge(scenario, found):
    """Return what is wrong with a run."""
    policy, pages = scenario.policy, found.disk.pages
    late = policy.max_staleness if policy.carries else 0
    # what a crash overtakes may still count
    faults = list(found.check(quorum=policy.quorum, most=policy.invitations, late=late).faults)
    if [record.number for record in found.history.rounds] != list(range(1, len(found.history.rounds) + 1)):
        faults.append("the history has gaps, or tells of a round twice")
    told = {record.number: (record.outcome, record.digest) for record in found.history.rounds}
    over = [page for number, page in pages.items() if number and page.state in ("committed", "failed")]
    noted = {page.number: (page.state, page.model) for page in over}
    if told != noted:
        faults.append(f"the history tells of {told}, and {noted} is noted")
    made = Counter(outcome for outcome, _ in told.values())
    enough = made["committed"] + (made["failed"] if policy.on_failure == "skip" else 0)
    wanted = scenario.config.get("num_rounds", 4)
    if not found.failed and not scenario.config.get("max_run_time") and enough != wanted:
        faults.append(f"the run ended after {enough} of {wanted} rounds")
    for number, base in scenario.received:
        if number not in pages or pages[number].base != base:
            faults.append(f"somebody trained on another model than round {number}'s")
    wrong = [*misjudged(policy, found.disk), *drifted(policy, found.disk, found.parameters), *overdue(policy, found.log)]
    return faults + wrong


def misjudged(policy, disk):
    """Yield what is wrong with models, and with the updates they are made of."""
    committed = [page for number, page in sorted(disk.pages.items()) if number and page.state == "committed"]
    for place, page in enumerate(committed, 1):
        counted = disk.of(page.number)
        for entry in counted:
            late = page.number - entry.round
            if entry.num_examples != weight(entry.round, entry.client_id) or (late and not policy.carries):
                yield f"{entry} counts in round {page.number}"
            if entry.weight != policy.weight(entry.num_examples, late):
                yield f"{entry} counts with another weight in round {page.number}"
        if policy.asynchronous:
            continue
        total = sum(entry.weight for entry in counted) or 1
        mean = UNIT * sum(entry.weight * value(entry.round, entry.client_id) for entry in counted) / total
        model = {"w": torch.tensor([mean, 0.0 - mean], dtype=torch.float64), "n": torch.tensor(place)}
        if page.model != digest(model):
            yield f"the model of round {page.number} is not {model}"


def drifted(policy, disk, final):
    """Yield what is wrong with the last model of buffers of differences."""
    committed = [page for number, page in sorted(disk.pages.items()) if number and page.state == "committed"]
    models = {digest(initial()): 0.0}
    for page in committed if policy.asynchronous and final else ():
        counted, change = disk.of(page.number), 0.0
        for entry in counted:
            part = policy.discount(page.number - entry.round) * entry.weight / sum(each.weight for each in counted)
            change += part * (UNIT * value(entry.round, entry.client_id) - models[disk.pages[entry.round].base])
        models[page.model] = models[page.base] + change
    if policy.asynchronous and final and committed:
        wanted = models[committed[-1].model]
        if abs(float(final["w"][0]) - wanted) > 1e-5 * UNIT:  # discounts are rounded to 20 bits
            yield f"the last model is {final}, and not {wanted}"


def overdue(policy, log):
    """Yield rounds that had two outcomes, or were open for longer than they may be, while a server ran."""
    opened, lasted, crashes, outcomes, going = {}, Counter(), Counter(), Counter(), set()
    for each in log:
        event = each.event
        number = getattr(event, "round", 0)
        if isinstance(event, events.RoundOpened):
            opened[number] = each.at
            going.add(number)
        elif isinstance(event, events.RoundClosed) and number in opened:
            lasted[number] += each.at - opened.pop(number)
        elif isinstance(event, events.RoundCommitted | events.RoundFailed):
            outcomes[number] += 1
            going.discard(number)
        elif each.who.startswith("server") and each.what.startswith("crashes"):
            for number in list(opened):
                lasted[number] += each.at - opened.pop(number)
            crashes.update(going)  # one that was closed, and not noted, is open again
    yield from (f"round {number} had {count} outcomes" for number, count in outcomes.items() if count > 1)
    forgotten = max(1.0, policy.deadline / 50)  # what a crash may forget of the time that a round has lasted
    for number, seconds in lasted.items():
        allowed = policy.deadline + crashes[number] * (forgotten + 1.0) + 1.0
        if seconds > allowed:
            yield f"round {number} was open for {seconds:.1f} s, and may be for {allowed:.1f} s"


# --- the tests ---


@pytest.fixture(scope="module")
def undisturbed():
    """The digest of the final model when nothing happens."""
    return digest(whole(0, faults={}).run().parameters)


def story(seed):
    """Return all that a run comes to, as text."""
    found = ragged(seed).run()
    last = digest(found.parameters) if found.parameters else ""
    return "\n".join([*map(str, found.log), last, found.failed, repr(found.seconds), repr(found.errors)])


def stories():
    return sha256("\n".join(story(seed) for seed in range(5)).encode()).hexdigest()


def test_the_same_seed_does_the_same_again():
    one, other = ragged(3).run(), ragged(3).run()
    assert len(one.log) > 20
    assert one.log == other.log
    assert one.history == other.history
    assert one.seconds == other.seconds
    assert digest(one.parameters) == digest(other.parameters)


def test_the_same_seed_does_the_same_in_another_process():
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_simulation as t; print(t.stories())"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=90, check=True)
    assert done.stdout.strip() == stories()


def test_another_seed_does_something_else():
    assert whole(0).run().log != whole(1).run().log


@pytest.mark.parametrize("durability", ["update", "round"])
@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_the_bits_are_the_same(seed, durability, undisturbed):
    scenario = whole(seed, config={"durability": durability})
    found = scenario.run()
    assert digest(found.parameters) == undisturbed
    assert judge(scenario, found) == []
    assert all(record.accepted == ["a", "b", "c"] for record in found.history.rounds)
    assert found.errors == {}


@pytest.mark.parametrize("seed", range(12))
def test_a_run_ends_and_keeps_its_promises(seed):
    scenario = ragged(seed)
    assert judge(scenario, scenario.run()) == []


@pytest.mark.parametrize("seed", range(2))
def test_no_round_outlasts_its_deadline(seed):
    policy = RoundPolicy(target=3, quorum=2, deadline=20.0, max_failures=1000)
    lossy = {"crash_client": 0.15, "loss": 0.2, "disk_delay": 0.0, "restart": 30.0}
    found = Scenario(policy, seed, faults=lossy).run()
    seconds = [record.seconds for record in found.history.rounds]
    assert max(seconds) == pytest.approx(20.0, abs=1e-6)
    assert {record.outcome for record in found.history.rounds} == {"committed", "failed"}


@pytest.mark.parametrize("seed", range(3))
def test_a_server_that_crashes_all_the_time_gets_there(seed, undisturbed):
    scenario = whole(seed, faults={"crash_server": 0.08, "restart": 1.0, "limit": 20_000.0})
    found = scenario.run()
    assert sum(each.what == "starts" and each.who.startswith("server") for each in found.log) > 5
    assert digest(found.parameters) == undisturbed
    assert judge(scenario, found) == []
    assert {each.event.run_id for each in found.log if isinstance(each.event, events.RunStarted)} == {found.disk.run_id}


def story_below(error):
    return "\n".join(error.__notes__)


def test_what_never_ends_is_said_with_what_happened_last():
    with pytest.raises(TimeoutError, match="not over after") as caught:
        Scenario(RoundPolicy(target=2, quorum=2), clients="a", faults={"limit": 1000.0}).run()
    assert "a: beat: beatreply" in story_below(caught.value)


def test_a_server_that_cannot_start_is_said():
    with pytest.raises(ZeroDivisionError) as caught:
        simulate({"a": partial(Trains, "a", [])}, strategy=lambda: 1 / 0)
    assert "server-1: does not start: ZeroDivisionError" in story_below(caught.value)


def test_a_client_that_fails_is_said():
    def client():
        raise KeyError("data")

    with pytest.raises(KeyError, match="data"):
        simulate({"a": client}, strategy=lambda: FedAvg(initial(), clients_per_round=1))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_seed_breaks_a_promise(undisturbed):
    broken = {}
    for seed in range(MANY):
        for make in (whole, ragged):
            scenario = make(seed)
            found = scenario.run()
            faults = judge(scenario, found)
            if make is whole and digest(found.parameters) != undisturbed:
                faults.append("the model is another one")
            if faults:
                broken[f"{make.__name__} {seed}"] = faults
    said = {"id": "simulated-seeds", "value": len(broken), "limit": 0, "pass": not broken}
    sys.stdout.write(json.dumps(said) + "\n")
    assert not broken
