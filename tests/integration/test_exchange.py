"""Models of which only a part travels: the rest stays with each client, to be used by it, and through its restarts."""

import pytest
import torch

from fedcore import Client, Exchange, FedAvg, Grpc, Memory, ServerConfig, SitePolicy, StateError, UpdateRejected
from fedcore.errors import ConfigError
from fedcore.messages import Assigned, Submit
from fedcore.personal import load, save
from fedcore.testing import run_federation
from fedcore.worker import start_client

MODEL = {"body.w": torch.zeros(4), "bn.mean": torch.zeros(3), "bn.count": torch.tensor(0), "head.w": torch.ones(2)}
WIRES = pytest.mark.parametrize("wire", [Memory(), Grpc()], ids=["memory", "grpc"])


class Personalised(Client):
    """Adds its number to all it has, and notes what it was given."""

    def __init__(self, number):
        self.number, self.given, self.evaluated = number, [], []

    def get_parameters(self):
        return {**MODEL, "head.w": torch.full((2,), 10.0 * self.number)}

    def fit(self, parameters, config):
        self.given.append({name: value.clone() for name, value in parameters.items()})
        self.memory.setdefault("mine", {"rounds": torch.tensor(0)})["rounds"] += 1
        return {name: value + self.number for name, value in parameters.items()}, 10

    def evaluate(self, parameters, config):
        self.evaluated.append(parameters["head.w"][0].item())
        return 0.0, 10


def noting(wire, seen):
    """Return a transport that notes which tensors pass it, each way."""

    class Notes(type(wire)):
        def listen(self, address, handler, *rest):
            def watch(request):
                if isinstance(request.message, Submit):
                    seen["up"] |= {info.name for info in request.message.manifest.tensors}
                future = handler(request)
                future.add_done_callback(note)
                return future

            def note(done):
                if not done.cancelled() and not done.exception() and isinstance(done.result().message, Assigned):
                    seen["down"] |= {info.name for info in done.result().message.manifest.tensors}

            return super().listen(address, watch, *rest)

    return Notes()


@WIRES
def test_what_is_excluded_never_leaves_and_is_there_in_each_round(wire):
    seen = {"up": set(), "down": set()}
    clients = [Personalised(1), Personalised(3)]
    strategy = FedAvg(MODEL, min_fit_clients=2, exchange=Exchange(exclude=["bn.*", "head.*"]))
    config = ServerConfig(num_rounds=3, evaluate_timeout=30.0)
    _, final = run_federation(clients, strategy=strategy, config=config, transport=noting(wire, seen))
    assert seen == {"up": {"body.w"}, "down": {"body.w"}}
    assert list(final) == ["body.w"]
    assert final["body.w"].tolist() == [6.0] * 4  # the mean of 1 and 3, three times
    for client in clients:
        assert [given["head.w"][0].item() for given in client.given] == [client.number * (10 + done) for done in range(3)]
        assert [given["bn.count"].item() for given in client.given] == [client.number * done for done in range(3)]
        assert [given["body.w"][0].item() for given in client.given] == [0.0, 2.0, 4.0]
        assert set(client.evaluated) <= {client.number * (10.0 + done) for done in (1, 2, 3)}
        assert client.evaluated


def test_without_an_exchange_a_model_that_is_not_the_servers_is_an_error():
    class Whole(Client):
        def get_parameters(self):
            return MODEL

        def fit(self, parameters, config):
            return MODEL, 10

    with pytest.raises(UpdateRejected, match=r"bn\."):
        run_federation([Whole()], strategy=FedAvg({"body.w": torch.zeros(4)}, clients_per_round=1), transport="memory")


def test_the_clients_own_part_lasts_through_its_restarts(tmp_path):
    path = tmp_path / "own"
    strategy = FedAvg(MODEL, clients_per_round=1, exchange=Exchange(include=["body.*"]))
    for attempt in range(2):
        client = Personalised(5)
        run_federation([client], strategy=strategy, config=ServerConfig(num_rounds=2), transport="memory", keep=[str(path)])
        assert client.given[0]["head.w"][0].item() == 50.0 + 10 * attempt
        assert client.memory["mine"]["rounds"].item() == 2 * (attempt + 1)
    assert path.stat().st_mode & 0o777 == 0o600
    found = load(path)
    assert found["model"]["head.w"].tolist() == [70.0, 70.0]
    assert found["mine"] == {"rounds": torch.tensor(4)}


@pytest.mark.parametrize("spoil", ["cut", "flip", "empty", "text", "longer"])
def test_a_damaged_file_is_refused_before_anything_else(tmp_path, spoil):
    path = tmp_path / "own"
    save(path, {"model": {"a/b": torch.arange(5.0), "n": torch.tensor(3)}, "x/y": {"a/b": torch.ones(1).bfloat16()}})
    content = path.read_bytes()
    assert load(path)["x/y"]["a/b"].dtype == torch.bfloat16
    path.write_bytes({
        "cut": content[:-3], "flip": content[:-2] + bytes([content[-2] ^ 1]) + content[-1:], "empty": b"",
        "text": b"\x05" + bytes(7) + b"[1,2]", "longer": content + b"x",
    }[spoil])  # fmt: skip
    with pytest.raises(StateError, match=r"damaged.*remove it to begin anew"):
        start_client("127.0.0.1:1", Personalised(1), "a", keep=str(path), patience=0.1)
    with pytest.raises(ConfigError, match="no folder"):
        start_client("127.0.0.1:1", Personalised(1), "a", keep=str(tmp_path / "none" / "own"), patience=0.1)


def test_a_site_policy_holds_whatever_the_server_wants():
    with pytest.raises(Exception, match=r"head\.w"):
        run_federation(
            [Personalised(1)],
            strategy=FedAvg(MODEL, clients_per_round=1, exchange=Exchange(include=["body.*", "head.*"])),
            transport="memory",
            site=SitePolicy(tensors=["body.*"]),
        )


@WIRES
def test_buffers_are_joined_by_rule(wire):
    rules = {"bn.mean": "max", "bn.count": "average", "head.*": "server"}
    strategy = FedAvg(MODEL, min_fit_clients=2, exchange=Exchange(buffers=rules))
    clients = [Personalised(1), Personalised(4)]
    _, final = run_federation(clients, strategy=strategy, config=ServerConfig(num_rounds=2), transport=wire)
    assert final["body.w"].tolist() == [5.0] * 4
    assert final["bn.mean"].tolist() == [8.0] * 3
    assert final["bn.count"].item() == 4  # 2.5 is rounded to 2, and 4.5 to 4
    assert final["head.w"].tolist() == [1.0, 1.0]


def test_an_exchange_needs_a_model_to_cut():
    with pytest.raises(ConfigError, match="initial_parameters"):
        FedAvg(exchange=Exchange(include=["a"]))
    with pytest.raises(ConfigError, match="no tensor"):
        FedAvg(MODEL, exchange=Exchange(include=["lora_*"]))
    with pytest.raises(ConfigError, match="list of patterns"):
        Exchange(include="a")
    with pytest.raises(ConfigError, match="'average', 'max' or 'server'"):
        Exchange(buffers={"*": "min"})
