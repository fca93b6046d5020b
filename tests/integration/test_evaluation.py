"""Evaluation never delays a heartbeat and never breaks a round."""

import threading

import pytest
import torch

from fedcore import Client, FedAvg, Memory, Server, ServerConfig, start_client
from fedcore.events import EvaluationFailed
from fedcore.messages import Beat, Status
from fedcore.testing import run_federation


class Adds(Client):
    def __init__(self, step=1.0):
        self.step = step

    def get_parameters(self):
        return {"w": torch.zeros(3)}

    def fit(self, parameters, config):
        return {"w": parameters["w"] + self.step}, 10, {"loss": self.step}


class Evaluates(Adds):
    def __init__(self, loss, examples):
        super().__init__()
        self.loss, self.examples, self.seen = loss, examples, []

    def evaluate(self, parameters, config):
        self.seen.append((config["round"], float(parameters["w"][0])))
        return self.loss, self.examples, {"accuracy": 1 - self.loss}


INITIAL = {"w": torch.zeros(3)}


def test_no_evaluate_fn_at_all():
    history, final = run_federation([Adds(), Adds()], strategy=FedAvg(INITIAL, evaluate_fn=None))
    assert [r.outcome for r in history.rounds] == ["committed"] * 3
    assert final["w"].tolist() == [3.0] * 3
    assert history == [(n, {"fit/loss": 1.0}) for n in (1, 2, 3)]


def test_metrics_have_name_spaces():
    strategy = FedAvg(INITIAL, lambda number, parameters: (0.5 / number, {"accuracy": 0.9, "loss": 99.0}))
    history, _ = run_federation([Adds(), Adds()], strategy=strategy)
    assert history[0] == (1, {"fit/loss": 1.0, "loss": 0.5, "accuracy": 0.9})
    assert history.latest["loss"] == pytest.approx(0.5 / 3)


def test_an_evaluation_that_raises_breaks_no_round():
    failed = []

    def evaluate(number, parameters):
        raise ZeroDivisionError("no test data")

    history, final = run_federation(
        [Adds(), Adds()], strategy=FedAvg(INITIAL, evaluate),
        observers=[lambda event: failed.append(event.reason) if isinstance(event, EvaluationFailed) else None],
    )  # fmt: skip
    assert [r.outcome for r in history.rounds] == ["committed"] * 3
    assert final["w"].tolist() == [3.0] * 3
    assert failed == ["ZeroDivisionError: no test data"] * 3


def test_an_evaluation_that_changes_its_copy_changes_nothing():
    def evaluate(number, parameters):
        parameters["w"].fill_(1e9)
        return 0.0, {}

    _, final = run_federation([Adds(), Adds()], strategy=FedAvg(INITIAL, evaluate))
    assert final["w"].tolist() == [3.0] * 3


def test_an_evaluation_that_hangs_delays_no_heartbeat_and_is_given_up():
    entered, release = threading.Event(), threading.Event()

    def evaluate(number, parameters):
        entered.set()
        release.wait(30)
        return 1.0, {}

    config = ServerConfig(num_rounds=2, evaluate_timeout=0.3, stop_grace=0.2)
    wire = Memory()
    with Server("", config=config, strategy=FedAvg(INITIAL, evaluate), transport=wire) as server:
        threads = [
            threading.Thread(target=start_client, args=(server.address, Adds(), name), kwargs={"transport": wire})
            for name in ("a", "b")
        ]
        for thread in threads:
            thread.start()
        assert entered.wait(10)
        with wire.connect(server.address) as connection:
            from fedcore.messages import Register

            session = connection.request(Register("c", accepts=("safetensors",)), timeout=1).message.session
            assert connection.request(Beat(session, Status.IDLE), timeout=1).message.acknowledged
        history, final = server.wait(20)
        release.set()
    for thread in threads:
        thread.join(10)
    assert [r.outcome for r in history.rounds] == ["committed"] * 2
    assert final["w"].tolist() == [2.0] * 3


def test_clients_that_offer_it_evaluate_every_committed_model():
    clients = [Evaluates(0.2, 10), Evaluates(0.4, 30), Adds()]
    history, _ = run_federation(clients, strategy=FedAvg(INITIAL, clients_per_round=3, min_fit_clients=3))
    assert [r.metrics["evaluate/loss"] for r in history.rounds] == [pytest.approx(0.35)] * 3
    assert [r.metrics["evaluate/accuracy"] for r in history.rounds] == [pytest.approx(0.65)] * 3
    assert clients[0].seen == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_client_side_evaluation_can_be_switched_off():
    clients = [Evaluates(0.2, 10), Evaluates(0.4, 30)]
    run_federation(clients, strategy=FedAvg(INITIAL), config=ServerConfig(num_rounds=2, evaluate_timeout=0))
    assert clients[0].seen == []


def test_no_model_is_kept_for_an_evaluation_that_nobody_makes():
    wire = Memory()
    with Server("", config=ServerConfig(num_rounds=4), strategy=FedAvg(INITIAL), transport=wire) as server:
        threads = [
            threading.Thread(target=start_client, args=(server.address, Adds(), name), kwargs={"transport": wire})
            for name in ("a", "b")
        ]
        for thread in threads:
            thread.start()
        server.wait(20)
        assert server.hub.tasks.works == {}
        for thread in threads:
            thread.join(10)
