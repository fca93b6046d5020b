"""Runs that end early: for a goal that is reached, for time that is up; and those that begin with a model from a file."""

import pytest
import torch

from fedcore import Client, FedAvg, Goal, Memory, RunFailed, Server, ServerConfig
from fedcore.codecs.safetensors import save
from fedcore.errors import ConfigError, SchemaMismatch
from fedcore.testing import FakeClock, run_federation

INITIAL = {"w": torch.zeros(10)}
LOSSES = [1.0, 0.5, 0.6, 0.7, 0.4, 0.3]


class Adds(Client):
    def get_parameters(self):
        return INITIAL

    def fit(self, parameters, config):
        return {"w": parameters["w"] + 1}, 10

    def evaluate(self, parameters, config):
        return LOSSES[int(parameters["w"][0]) - 1], 10, {}


class Trains(Adds):
    evaluate = Client.evaluate


def strategy(evaluates=True):
    return FedAvg(INITIAL, (lambda number, _: (LOSSES[number - 1], {})) if evaluates else None)


@pytest.mark.parametrize("where", ["server", "clients"])
@pytest.mark.parametrize(("patience", "rounds"), [(1, 3), (2, 4), (3, 6), (None, 6)])
def test_a_run_ends_when_no_better_model_comes(where, patience, rounds):
    on_server = where == "server"
    goal = Goal(metric="loss" if on_server else "evaluate/loss", patience=patience)
    client = Trains if on_server else Adds
    history, final = run_federation(
        [client(), client()], strategy=strategy(on_server), config=ServerConfig(num_rounds=6, goal=goal)
    )
    assert len(history.rounds) == rounds
    assert int(final["w"][0]) == rounds


def federation(config, **settings):
    """Run two clients against a server, and return the server."""
    servers = []

    class Kept(Server):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            servers.append(self)

    from fedcore.testing import federation as module

    before, module.Server = module.Server, Kept
    try:
        run_federation([Trains(), Trains()], strategy=strategy(), config=config, **settings)
    finally:
        module.Server = before
    return servers[0]


def test_the_best_model_is_kept_and_survives_a_restart(tmp_path):
    config = ServerConfig(num_rounds=4, goal=Goal(), state_dir=str(tmp_path / "state"), stop_grace=1.0)
    server = federation(config)
    assert (server.best.round, server.best.value, int(server.best.parameters["w"][0])) == (2, 0.5, 2)
    with Server("", config=config, strategy=strategy(), transport=Memory()) as again:
        again.wait(10)
        assert (again.best.round, int(again.best.parameters["w"][0])) == (2, 2)


def test_a_run_that_ended_for_its_goal_ends_again_at_once(tmp_path):
    config = ServerConfig(num_rounds=6, goal=Goal(patience=1), state_dir=str(tmp_path / "state"), stop_grace=0.0)
    federation(config)
    with Server("", config=config, strategy=strategy(), transport=Memory()) as again:
        history, _ = again.wait(10)
    assert len(history.rounds) == 3


def test_a_goal_that_nobody_measures_is_refused():
    with pytest.raises(ConfigError, match="evaluates nothing on the server"):
        Server("", config=ServerConfig(goal=Goal()), strategy=strategy(evaluates=False), transport=Memory()).start()


def test_a_goal_of_another_name_holds_nothing_up():
    config = ServerConfig(num_rounds=3, goal=Goal(metric="accuracy", patience=1))
    history, _ = run_federation([Trains(), Trains()], strategy=strategy(), config=config)
    assert len(history.rounds) == 3


def test_without_a_goal_there_is_no_best():
    assert federation(ServerConfig(num_rounds=1)).best is None


def test_time_that_is_up_ends_a_run_that_has_no_rounds_as_failed():
    clock = FakeClock()
    config = ServerConfig(max_run_time=100.0, stop_grace=0.0)
    with Server("", config=config, strategy=strategy(), transport=Memory(), clock=clock) as server:
        clock.advance(99.0)
        with pytest.raises(TimeoutError):
            server.wait(0.05)
        clock.advance(1.0)
        with pytest.raises(RunFailed, match="max_run_time was over before a round was done"):
            server.wait(10)


def test_time_that_is_up_ends_a_run_that_has_rounds_well(tmp_path):
    folder = str(tmp_path / "state")
    run_federation([Trains(), Trains()], strategy=strategy(), config=ServerConfig(num_rounds=2, state_dir=folder))
    config = ServerConfig(num_rounds=9, state_dir=folder, max_run_time=1e-9, stop_grace=0.0)
    with Server("", config=config, strategy=strategy(), transport=Memory()) as server:
        history, _ = server.wait(10)  # the rounds before the restart have used it up
    assert len(history.rounds) == 2


def test_a_run_may_begin_with_a_model_from_a_file(tmp_path):
    save(tmp_path / "warm.safetensors", {"w": torch.full((10,), 7.0)})
    config = ServerConfig(num_rounds=1, initial_model=str(tmp_path / "warm.safetensors"))
    for each in (FedAvg(INITIAL), FedAvg()):
        _, final = run_federation([Trains(), Trains()], strategy=each, config=config)
        assert final["w"].tolist() == [8.0] * 10


def test_files_that_are_no_such_model(tmp_path):
    def start(name):
        config = ServerConfig(initial_model=str(tmp_path / name))
        Server("", config=config, strategy=FedAvg(INITIAL), transport=Memory()).start()

    save(tmp_path / "other.safetensors", {"v": torch.zeros(3)})
    (tmp_path / "torn.safetensors").write_bytes(b"\x10")
    with pytest.raises(SchemaMismatch, match="'w' is missing"):
        start("other.safetensors")
    for name in ("torn.safetensors", "none.safetensors", "model.pt", "model", "x.lz4"):
        with pytest.raises(ConfigError, match=name):
            start(name)
