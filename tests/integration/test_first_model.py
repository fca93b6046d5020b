"""Without initial parameters the first client is asked for its own, on every transport."""

import pytest
import torch

from fedcore import Client, FedAvg, Grpc, Limits, Memory, RunFailed, ServerConfig
from fedcore.errors import TooLarge
from fedcore.testing import run_federation


class Has(Client):
    def __init__(self, value):
        self.value = value

    def get_parameters(self):
        tied = torch.full((2, 2), self.value)
        return {"w": tied, "n": torch.tensor(7), "tied": tied}

    def fit(self, parameters, config):
        parameters["w"] += 1
        return parameters, 1


@pytest.mark.parametrize("make", [Memory, Grpc, lambda: Memory(by_reference=True)], ids=["memory", "grpc", "reference"])
def test_the_first_client_is_asked(make):
    class Copies(Has):
        def fit(self, parameters, config):
            moved = parameters["w"] + 1
            return {"w": moved, "n": parameters["n"], "tied": moved}, 1

    history, final = run_federation(
        [Copies(5.0), Copies(5.0)], strategy=FedAvg(min_fit_clients=2), config=ServerConfig(num_rounds=2), transport=make()
    )
    assert final["w"].tolist() == [[7.0] * 2] * 2
    assert final["tied"] is final["w"]
    assert [number for number, _ in history] == [1, 2]


def test_a_model_above_the_limit_is_refused():
    with pytest.raises((RunFailed, Exception), match="max_model_bytes"):
        run_federation(
            [Has(1.0), Has(2.0)], strategy=FedAvg(),
            config=ServerConfig(num_rounds=1, limits=Limits(max_model_bytes=8), stop_grace=0),
        )  # fmt: skip


@pytest.mark.parametrize(("most", "works"), [(2, False), (3, True)])
def test_a_model_of_too_many_tensors_is_refused(most, works):
    config = ServerConfig(num_rounds=1, limits=Limits(max_tensors=most), stop_grace=0)
    clients = [Has(1.0), Has(2.0)]
    if works:
        history, _ = run_federation(clients, strategy=FedAvg(), config=config)
        assert history.rounds[0].accepted == ["client-0", "client-1"]
    else:
        with pytest.raises(TooLarge, match=r"3 tensors are more than 2 \(Limits\.max_tensors\)"):
            run_federation(clients, strategy=FedAvg(), config=config)


def test_a_model_that_the_server_has_may_have_any_number_of_them():
    model = {"w": torch.zeros(2, 2), "n": torch.tensor(7), "tied": torch.zeros(2, 2)}
    config = ServerConfig(num_rounds=1, limits=Limits(max_tensors=1))
    history, _ = run_federation([Has(1.0)], strategy=FedAvg(model, clients_per_round=1), config=config)
    assert history.rounds[0].accepted == ["client-0"]
