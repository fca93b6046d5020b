"""A server that crashes at any step of its journal, between clients that do whatever clients may do, keeps every promise.

The order under test is the product's own: messages go to the real hub, uploads and director, whose threads run one at a time.
"""

import json
import sys
from dataclasses import replace

import pytest
from bench import DEADLINE, LEASE, POLICIES, UNIT, Bench
from crash_machine import CrashMachine
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from witness import Witness

from fedcore.messages import Registered, Submitted

pytestmark = pytest.mark.chaos

ENOUGH = 20_000  # steps before a release
LOOSE = {"deadline": None, "database": None, "print_blob": False, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(autouse=True)
def quiet(caplog):
    """What a server logs of its own failures is not what is looked for here."""
    caplog.set_level("CRITICAL")


def drive(examples, steps, of):
    """Drive machines, and return how many rules they applied."""
    machine = type("Machine", (CrashMachine,), {"steps": 0})
    run_state_machine_as_test(
        seed(of)(machine),
        settings=settings(
            max_examples=examples, stateful_step_count=steps, phases=[Phase.explicit, Phase.generate, Phase.shrink], **LOOSE
        ),
    )
    return machine.steps


def test_nothing_breaks_a_promise():
    assert drive(60, 40, 0) > 1000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_breaks_a_promise_in_many_steps():
    steps, of = 0, 1
    while steps < ENOUGH:
        steps += drive(100, 60, of)
        of += 1
    found = {"id": "crash-machine-steps", "value": steps, "limit": ENOUGH, "pass": steps >= ENOUGH}
    sys.stdout.write(json.dumps(found) + "\n")


# --- what was found once ---


@pytest.fixture
def made():
    """Return a function that makes a bench whose clients are registered; what must hold is judged whenever it is asked."""
    benches = []

    def make(policy, names="abc", rounds=50):
        witness = Witness(policy, LEASE, DEADLINE, UNIT)
        bench = witness.bench = Bench(policy, rounds, 0, witness)
        benches.append(bench)
        bench.start()
        for name in names:
            bench.register(bench.agent(name))
        witness.judge()
        return bench

    yield make
    for bench in benches:
        bench.close()


def work(bench, name, value=1, weight=1):
    agent = bench.agent(name)
    bench.pull(agent, 0.0)
    return bench.submit(agent, agent.todo, value, weight)


@pytest.mark.parametrize("point", ["close.after", "fail.before"])
def test_a_round_that_was_to_fail_makes_no_model_after_a_crash(made, point):
    bench = made(POLICIES[0])  # two updates are the fewest
    work(bench, "a")
    bench.doom = point
    bench.advance(DEADLINE + 1)
    assert not bench.up
    bench.start()
    bench.witness.judge()
    assert bench.disk.pages[1].state == "failed"


def test_a_process_that_could_not_be_noted_is_noted_when_it_comes_again(made):
    bench = made(POLICIES[0])
    bench.full = True
    again = bench.replace("a")
    assert not isinstance(bench.register(again), Registered)
    bench.full = False
    assert isinstance(bench.register(again), Registered)
    bench.crash()
    bench.start()
    assert not isinstance(bench.register(bench.agents["a"][0]), Registered)
    bench.witness.judge()


def test_an_update_of_a_round_that_is_over_is_a_duplicate_after_a_crash_too(made):
    bench = made(POLICIES[3])  # two updates close a round
    for name in ("a", "b", "c"):
        agent = bench.agent(name)
        bench.pull(agent, 0.0)
        if agent.todo:
            bench.submit(agent, agent.todo, 1, 1)
    assert bench.disk.pages[1].state == "committed"
    bench.crash()
    bench.start()
    bench.register(bench.parcels[0].agent)
    reply = bench.resend(bench.parcels[0], again=True)
    assert isinstance(reply, Submitted)
    assert reply.outcome == "duplicate"


def test_whoever_waits_for_clients_to_hear_of_the_end_does_not_go_round_in_circles(made):
    bench = made(POLICIES[0])
    bench.advance(LEASE - 2)  # a lease ends while the server says goodbye
    bench.stop(suspend=False)
    bench.advance(10.0)
    assert bench.server.over


def test_an_update_that_is_noted_when_its_round_has_closed_is_in_no_model(made):
    bench = made(POLICIES[1], "abc")  # three are asked, two close a round
    bench.hold = "accept.after"
    work(bench, "a", value=7)
    for name in ("b", "c"):
        work(bench, name, value=1)
    bench.witness.judge()
    assert [entry.client_id for entry in bench.disk.of(1)] == ["b", "c"]
    bench.release()
    bench.witness.judge()


def test_what_is_taken_back_of_one_copy_is_not_the_other_ones(made):
    bench = made(replace(POLICIES[3], quorum=2))
    first, second = (bench.agent(name) for name in bench.disk.pages[1].invited)
    third = next(bench.agent(name) for name in "abc" if name not in bench.disk.pages[1].invited)
    bench.pull(first, 0.0)
    bench.hold = "accept.after"
    bench.submit(first, first.todo, 3, 1)
    for _ in range(7):  # its lease ends, and another client gets its place
        bench.advance(5.0)
        bench.beat(second)
        bench.beat(third)
    bench.pull(third, 0.0)
    bench.hold = "withdraw.before"
    bench.release()
    bench.give_back(third)
    bench.register(first)
    bench.resend(bench.parcels[0], again=True)
    bench.release()
    assert bench.parcels[0].header.task_id in bench.witness.told
    bench.witness.judge()
