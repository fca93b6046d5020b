"""How to test your own client and strategy: no network, no sleep. Run it with pytest, or as a script."""

import torch

from fedcore import Client, FedAvg, ServerConfig
from fedcore.testing import check_strategy, run_federation


class AddOne(Client):
    """Stands for your training code."""

    def get_parameters(self):
        return {"w": torch.zeros(3)}

    def fit(self, parameters, config):
        return {"w": parameters["w"] + 1}, 10


def test_three_rounds():
    history, final = run_federation(
        [AddOne(), AddOne()],
        strategy=FedAvg({"w": torch.zeros(3)}, min_fit_clients=2),
        config=ServerConfig(num_rounds=3),
    )
    assert final["w"].tolist() == [3.0, 3.0, 3.0]
    assert [record.accepted for record in history.rounds] == [["client-0", "client-1"]] * 3


def test_my_strategy_keeps_the_promises_of_a_strategy():
    check_strategy(FedAvg)


if __name__ == "__main__":
    test_three_rounds()
    test_my_strategy_keeps_the_promises_of_a_strategy()
    print("passed")
