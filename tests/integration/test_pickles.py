"""Pickles that run code when they are loaded, sent as updates and laid into a state directory: refused, and nothing runs."""

import io
import logging
import os
import pickle
import threading

import pytest
import torch

from fedcore import Client, FedAvg, Grpc, Server, ServerConfig, start_client
from fedcore.errors import StateError
from fedcore.messages import Assigned, Manifest, Pull, Register, Submit
from fedcore.parameters import Spec, digest
from fedcore.registry import codec
from fedcore.replay import replay
from fedcore.state_commands import describe
from fedcore.testing import run_federation

INITIAL = {"w": torch.zeros(3)}
SPEC = Spec.of(INITIAL)
CODECS = ["safetensors", "torch", "msgpack", "protobuf", "delta", "int8", "topk", "safetensors+lz4", "torch+zstd", "torch+lz4"]
PARTS = sorted({part for name in CODECS for part in name.split("+")})
REASONS = {"MALFORMED", "SCHEMA_MISMATCH", "LENGTH_MISMATCH", "TOO_LARGE"}


class Touch:
    """Unpickled by anything but a restricted unpickler, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def pickles(canary):
    """Return what runs code when it is loaded, as torch.save and pickle write it."""
    attack, made = Touch(canary), []
    for value in (attack, {"w": attack}, {"w": torch.zeros(3), "x": attack}):
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(value, file, _use_new_zipfile_serialization=zipped)
            made.append(file.getvalue())
    return [*made, pickle.dumps(attack)]


class Adds(Client):
    def get_parameters(self):
        return INITIAL

    def fit(self, parameters, config):
        return {"w": parameters["w"] + config["round"]}, 10


def test_the_attack_is_one(tmp_path):
    *saved, pickled = pickles(tmp_path / "canary")
    for data in saved:
        torch.load(io.BytesIO(data), weights_only=False)
        (tmp_path / "canary").rmdir()
    pickle.loads(pickled)
    (tmp_path / "canary").rmdir()


@pytest.mark.parametrize("name", CODECS)
def test_t1_an_update_that_is_a_pickle_is_refused_by_a_running_server(name, tmp_path):
    canary, answers = tmp_path / "canary", []
    attacks = pickles(canary)
    attacks += [b"\0" + len(data).to_bytes(8, "little") + data for data in attacks]  # as what a compressor takes for raw
    attacks += [bytes(b"".join(codec("safetensors+zstd").compress([data], len(data)))) for data in attacks[:1]]
    strategy = FedAvg(INITIAL, min_fit_clients=1, clients_per_round=1 + len(attacks))
    config = ServerConfig(num_rounds=1, start_wait=60.0, stop_grace=0.2, accept_codecs=PARTS)
    with Server("127.0.0.1:0", config=config, strategy=strategy, transport=Grpc()) as server:
        honest = threading.Thread(target=start_client, args=(server.address, Adds(), "honest"))
        honest.start()
        wires = [Grpc().connect(server.address) for _ in attacks]
        sessions = [
            wire.request(Register(f"mallory-{number}", name, tuple(PARTS))).message.session for number, wire in enumerate(wires)
        ]
        for data, wire, session in zip(attacks, wires, sessions, strict=True):
            given = wire.request(Pull(session, 30.0)).message
            assert isinstance(given, Assigned)
            manifest = Manifest(name, 1 << 20, (len(data),), digest(INITIAL), SPEC.infos)
            task = given.task
            answers.append(
                wire.request(Submit(session, task.id, task.round, "a", task.base_digest, 10, manifest), [data]).message
            )
        _, final = server.wait(30)
        honest.join(30)
        for wire in wires:
            wire.close()
    assert not canary.exists()
    assert {(answer.counted, answer.reason) for answer in answers} <= {(False, reason) for reason in REASONS}
    assert torch.equal(final["w"], torch.ones(3))


@pytest.fixture
def state(tmp_path):
    """Return the state directory of a run that goes on after two rounds."""
    train(tmp_path / "state", 2)
    return tmp_path / "state"


def train(folder, rounds):
    config = ServerConfig(num_rounds=rounds, state_dir=str(folder), keep_updates=4)
    return run_federation([Adds(), Adds()], strategy=FedAvg(INITIAL, min_fit_clients=2), config=config)


@pytest.mark.parametrize("number", range(7))
def test_t2_a_model_that_is_a_pickle_is_not_gone_on_from(state, tmp_path, number, caplog):
    canary = tmp_path / "canary"
    newest = max((state / "models").glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(pickles(canary)[number])
    with caplog.at_level(logging.ERROR):
        history, final = train(state, 3)
    assert "the model of round 2 is lost" in caplog.text
    assert not canary.exists()
    assert history.rounds[-1].metrics is not None
    assert torch.isfinite(final["w"]).all()


@pytest.mark.parametrize("number", [0, 3, 6])
def test_t2_nothing_in_a_state_directory_is_unpickled(state, tmp_path, number):
    canary = tmp_path / "canary"
    attack = pickles(canary)[number]
    for path in [*(state / "models").glob("*.safetensors"), *(state / "updates").glob("*.safetensors")]:
        path.write_bytes(attack)
    with pytest.raises(StateError, match="none of its models can be read"):
        train(state, 3)
    assert {each.outcome for each in replay(state)} == {"damaged"}
    assert describe(state)["rounds"]
    (state / "ledger.db").write_bytes(attack)
    with pytest.raises(StateError, match="damaged"):
        train(state, 3)
    assert not canary.exists()
