"""A checkpoint that was torn, swapped or removed is never loaded: the run goes on from the one before, and says so."""

import logging
import os
import random
import threading
from contextlib import suppress

import pytest
import torch

from fedcore import Client, ConnectionLost, FedAvg, Memory, RunFailed, Server, ServerConfig, start_client
from fedcore.errors import StateError
from fedcore.events import UpdateAccepted
from fedcore.messages import Pull, Register
from fedcore.testing import run_federation

pytestmark = pytest.mark.chaos

INITIAL = {"w": torch.zeros(5000)}


class Adds(Client):
    def get_parameters(self):
        return INITIAL

    def fit(self, parameters, config):
        return {"w": parameters["w"] + config["round"]}, 10


def train(folder, rounds, **config):
    settings = ServerConfig(num_rounds=rounds, state_dir=str(folder), **config)
    return run_federation([Adds(), Adds()], strategy=FedAvg(INITIAL), config=settings)


@pytest.fixture
def folder(tmp_path):
    train(tmp_path / "state", 3)
    return tmp_path / "state"


def models(folder):
    """Return the files of the models, the oldest first."""
    return sorted((folder / "models").glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)


def sizes():
    whole = 8 + 5000 * 4
    around = {at + off for at in range(0, whole + 4096, 4096) for off in (-1, 0, 1)}
    return sorted(size for size in around if 0 <= size < whole)


def cut(size):
    return lambda newest, _: os.truncate(newest, size)


def flipped(seed):
    def flip(newest, _):
        content = bytearray(newest.read_bytes())
        at = random.Random(seed).randrange(8 * len(content))
        content[at // 8] ^= 1 << at % 8
        newest.write_bytes(content)

    return flip


def zeroed(newest, _):
    content = newest.read_bytes()
    newest.write_bytes(content[:-4096] + bytes(4096))


def swapped(newest, before):
    one, other = newest.read_bytes(), before.read_bytes()
    newest.write_bytes(other)
    before.write_bytes(one)


def linked(newest, before):
    newest.unlink()
    newest.symlink_to(before)


def foldered(newest, _):
    newest.unlink()
    newest.mkdir()


DAMAGES = {
    **{f"cut-{size}": cut(size) for size in sizes()},
    **{f"bit-{seed}": flipped(seed) for seed in range(64)},
    "zeroed": zeroed,
    "deleted": lambda newest, _: newest.unlink(),
    "link": linked,
    "folder": foldered,
}


MANY = [pytest.param(name, marks=pytest.mark.slow) if name[:4] == "bit-" and name > "bit-13" else name for name in DAMAGES]


@pytest.mark.parametrize("damage", MANY)
def test_f16_the_run_goes_on_from_the_model_before(folder, damage, caplog):
    before, newest = models(folder)[-2:]
    DAMAGES[damage](newest, before)
    with caplog.at_level(logging.ERROR):
        history, final = train(folder, 3)
    assert "the model of round 3 is lost" in caplog.text
    # round 3 keeps its number and its outcome; round 4 takes its place, from the model of round 2
    assert [record.number for record in history.rounds] == [1, 2, 3, 4]
    assert final["w"][0] == 1 + 2 + 4


def test_f16_two_that_were_swapped_are_both_lost(folder):
    before, newest = models(folder)[-2:]
    swapped(newest, before)
    for _ in range(2):
        with pytest.raises(StateError, match="none of its models can be read") as caught:
            train(folder, 3)
        assert "Nothing was changed" in str(caught.value)
    swapped(newest, before)  # swapped back, as from a copy
    assert train(folder, 3)[1]["w"][0] == 1 + 2 + 3


def serve(folder, rounds, observers=(), target=2):
    settings = ServerConfig(num_rounds=rounds, state_dir=str(folder), stop_grace=1.0)
    strategy = FedAvg(INITIAL, clients_per_round=target, min_fit_clients=1)
    return Server("", config=settings, strategy=strategy, transport=Memory(), observers=observers)


def test_what_was_lost_once_is_lost_for_good(folder):
    newest = models(folder)[-1]
    content = newest.read_bytes()
    newest.write_bytes(content[:-1])
    serve(folder, 9).start().suspend()
    newest.write_bytes(content)
    _, final = train(folder, 3)
    assert final["w"][0] == 1 + 2 + 4


def test_an_update_that_was_acknowledged_and_cannot_be_read_again_ends_the_run(tmp_path):
    accepted = threading.Event()
    server = serve(
        tmp_path / "state", 1, [lambda event: accepted.set() if isinstance(event, UpdateAccepted) else None]
    ).start()

    def work():
        with suppress(ConnectionLost):
            start_client(server.address, Adds(), "a", transport=Memory(), patience=1.0)

    client = threading.Thread(target=work)
    with Memory().connect(server.address) as other:  # fills the second place, and never answers
        session = other.request(Register("b", accepts=("safetensors",))).message.session
        client.start()
        other.request(Pull(session, 10.0))
        assert accepted.wait(20)
        server.suspend()
    client.join(20)
    (file,) = (tmp_path / "state" / "updates").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with serve(tmp_path / "state", 1) as again, pytest.raises(RunFailed, match=f"cannot be read again.*{file.name}"):
        again.wait(20)
