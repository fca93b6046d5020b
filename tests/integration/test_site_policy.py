"""What a site does not allow does not happen, whatever the server asks; the server is told, and the other sites go on."""

import threading

import pytest
import torch

from fedcore import Client, FedAvg, Scaffold, Server, ServerConfig, SitePolicy, Training, start_client
from fedcore.errors import ConfigError, SiteRefused
from fedcore.events import TaskReturned
from fedcore.testing import run_federation
from fedcore.transports.memory import Memory

MODEL = {"body": torch.zeros(3), "head.w": torch.zeros(2, dtype=torch.bfloat16), "n": torch.tensor(0)}
PATIENCE = 30.0


class Moves(Client):
    def __init__(self, by=3.0):
        self.by, self.rounds, self.configs = by, [], []

    def get_parameters(self):
        return MODEL

    def fit(self, parameters, config):
        self.rounds.append(config["round"])
        self.configs.append(config)
        return {name: value + int(self.by) if name == "n" else value + self.by for name, value in parameters.items()}, 1


class Asks(FedAvg):
    """Asks for something."""

    def __init__(self, model, config):
        super().__init__(model)
        self.config = config

    def configure_fit(self, number, client_id):
        return self.config


def federation(site, *, rounds=3, config=None, model=None, others=1):
    """Run one site with a policy beside others without; returns its client, its error, the history and what was returned."""
    client, errors, returned = Moves(), [], []
    settings = ServerConfig(num_rounds=rounds, start_wait=0.0, heartbeat_interval=0.1)

    def work(one, name, policy):
        try:
            start_client(server.address, one, name, transport=Memory(), site=policy)
        except Exception as error:
            errors.append((name, error))

    def observe(event):
        if isinstance(event, TaskReturned):
            returned.append((event.client_id, event.reason))

    strategy = Asks(model or MODEL, config or {})
    with Server("", transport=Memory(), config=settings, strategy=strategy, observers=[observe]) as server:
        first = threading.Thread(target=work, args=(client, "site", site))
        first.start()
        if others:
            while not (client.rounds or errors):
                first.join(0.01)
        threads = [threading.Thread(target=work, args=(Moves(), f"other-{number}", None)) for number in range(others)]
        for thread in threads:
            thread.start()
        history, final = server.wait(PATIENCE)
        for thread in [first, *threads]:
            thread.join(PATIENCE)
    return client, errors, history, final, returned


@pytest.mark.parametrize(("policy", "config", "word"), [
    (SitePolicy(tensors=["head.*", "n"]), {}, "'body' may not leave"),
    (SitePolicy(max_model_bytes=23), {}, "above this site's limit, 23"),
    (SitePolicy(max_sent_bytes=20), {}, "have left this site"),
    (SitePolicy(config={"local_epochs": (1, 10)}), {"local_epochs": 10**9}, "from 1 to 10"),
    (SitePolicy(config={"local_epochs": (1, 10)}), {"local_epochs": "5"}, "from 1 to 10"),
    (SitePolicy(config={"local_epochs": (1, 10)}), {"local_epochs": True}, "from 1 to 10"),
    (SitePolicy(config={"local_epochs": (1, 10)}), {"run": "this"}, "'run'"),
    (SitePolicy(config={}), {"lr": float("nan")}, "'lr'"),
    (SitePolicy(config={"lr": (0, 1)}), {"lr": float("nan")}, "nan"),
])  # fmt: skip
def test_what_is_not_allowed_is_refused_by_name(policy, config, word):
    client, errors, history, _, returned = federation(policy, config=config)
    (name, error), = errors
    assert (name, type(error)) == ("site", SiteRefused)
    assert word in str(error)
    assert [name for name, _ in returned] == ["site"]
    assert "SiteRefused" in returned[0][1] or "above this site's limit" in returned[0][1]
    assert all("site" not in record.accepted for record in history.rounds)
    assert client.rounds == [] or "leave" in word or "left" in word


def test_what_is_allowed_goes_on():
    policy = SitePolicy(
        tensors=["body", "head.?", "n*"], max_rounds=3, max_model_bytes=24, max_sent_bytes=3 * 24,
        config={"local_epochs": (1, 10), "lr": (0, 1)},
    )  # fmt: skip
    client, errors, history, _, _ = federation(policy, config={"local_epochs": 10, "lr": 0.5}, others=0)
    assert errors == []
    assert client.rounds == [1, 2, 3]
    assert [record.accepted for record in history.rounds] == [["site"]] * 3


def test_after_so_many_rounds_the_site_leaves_in_good_order():
    client, errors, history, _, returned = federation(SitePolicy(max_rounds=2), rounds=4)
    assert errors == []
    assert client.rounds == [1, 2]
    assert [number for number, record in enumerate(history.rounds, 1) if "site" in record.accepted] == [1, 2]
    assert [name for name, _ in returned] in ([], ["site"])


def test_what_travels_beside_the_model_is_not_clipped_but_refused():
    class Trains(Client):
        def __init__(self):
            self.model = torch.nn.Linear(2, 1)

        def get_parameters(self):
            return self.model.state_dict()

        def fit(self, parameters, config):
            training = Training(self.model, parameters, config, self.memory)
            self.model(torch.ones(1, 2)).sum().backward()
            training.step(torch.optim.SGD(self.model.parameters()))
            return training.result(1)

    strategy = Scaffold(Trains().get_parameters(), num_clients=1, clients_per_round=1)
    with pytest.raises(SiteRefused, match="tensor 'control/weight' is none of the model's"):
        run_federation([Trains()], strategy=strategy, config=ServerConfig(num_rounds=1), site=SitePolicy(clip=1.0))


def test_a_long_change_is_clipped_and_integers_are_not():
    # the change is (3, 3, 3, 3, 3): its norm is the root of 45
    _, errors, _, final, _ = federation(SitePolicy(clip=45**0.5 / 4), rounds=1, others=0)
    assert errors == []
    assert final["body"].tolist() == [0.75] * 3
    assert final["head.w"].tolist() == [0.75] * 2
    assert final["head.w"].dtype == torch.bfloat16
    assert final["n"].item() == 3


def test_a_short_change_is_not():
    _, _, _, final, _ = federation(SitePolicy(clip=45**0.5 + 0.001), rounds=1, others=0)
    assert final["body"].tolist() == [3.0] * 3


@pytest.mark.parametrize(("name", "value"), [
    ("max_rounds", 0), ("max_rounds", True), ("max_model_bytes", 1.5), ("max_sent_bytes", -1), ("clip", 0.0),
    ("clip", float("nan")), ("clip", float("inf")), ("tensors", "head"), ("config", {"lr": (1, 0)}),
    ("config", {"lr": (1, 2, 3)}),
])  # fmt: skip
def test_rules_that_make_no_sense(name, value):
    with pytest.raises(ConfigError, match=f"SitePolicy.{name}"):
        SitePolicy(**{name: value})


def test_c2_a_refusal_is_no_longer_than_a_line_whatever_was_asked():
    policy = SitePolicy(config={"lr": (0.0, 1.0)})
    for config in ({"lr": "x" * 5000}, {"x" * 5000: 1}, {"lr": ["y"] * 5000}):
        with pytest.raises(SiteRefused) as caught:
            policy.check_config(config)
        assert len(str(caught.value)) < 300
