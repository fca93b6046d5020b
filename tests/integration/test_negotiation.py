"""Who sends what with which codec: chosen by name or object on either side, accepted part by part, refused with a reason."""

import threading

import pytest
import torch

from fedcore import Client, FedAvg, Limits, Memory, Server, ServerConfig, UnknownName, registry, start_client
from fedcore.codec import Wrapper
from fedcore.codecs.lz4 import Lz4
from fedcore.codecs.msgpack import Msgpack
from fedcore.codecs.safetensors import Safetensors
from fedcore.errors import CodecRefused, ConfigError
from fedcore.messages import Assigned, Submit

INITIAL = {"w": torch.arange(2000.0)}


class Adds(Client):
    def get_parameters(self):
        return INITIAL

    def fit(self, parameters, config):
        return {"w": parameters["w"] + 1}, 1


class Watched(Memory):
    """Notes the codec of every body, each way."""

    def __init__(self):
        super().__init__()
        self.down, self.up = set(), set()

    def listen(self, address, handler, limits=Limits()):
        def watch(request):
            if isinstance(request.message, Submit):
                self.up.add(request.message.manifest.codec)
            future = handler(request)
            future.add_done_callback(self.note)
            return future

        return super().listen(address, watch, limits)

    def note(self, future):
        if not future.cancelled() and not future.exception() and isinstance(future.result().message, Assigned):
            self.down.add(future.result().message.manifest.codec)


def federation(server_options, *client_options, config=None):
    wire, raised = Watched(), []

    def work(index, options):
        try:
            start_client(server.address, Adds(), f"client-{index}", transport=wire, **options)
        except Exception as error:
            raised.append(error)
            server.hub.stop("a client failed")

    strategy = FedAvg(INITIAL, min_fit_clients=len(client_options), clients_per_round=len(client_options))
    config = ServerConfig(num_rounds=1, stop_grace=0.2, **(config or {}))
    with Server("", config=config, strategy=strategy, transport=wire, **server_options) as server:
        threads = [threading.Thread(target=work, args=pair) for pair in enumerate(client_options)]
        for thread in threads:
            thread.start()
        if not raised:
            server._director.done.wait(20)
        for thread in threads:
            thread.join(10)
        final = server.parameters["w"]
    return wire, raised, final


def test_a_client_that_names_none_sends_what_the_server_sends():
    wire, raised, final = federation({"codec": "msgpack+lz4"}, {}, {})
    assert (wire.down, wire.up, raised) == ({"msgpack+lz4"}, {"msgpack+lz4"}, [])
    assert torch.equal(final, INITIAL["w"] + 1)


def test_each_side_sends_what_it_names_by_name_or_as_an_object():
    wire, raised, final = federation({"codec": Lz4(Safetensors())}, {"codec": Msgpack()}, {"codec": "protobuf"}, {})
    assert wire.down == {"safetensors+lz4"}
    assert wire.up == {"msgpack", "protobuf", "safetensors+lz4"}
    assert (raised, torch.equal(final, INITIAL["w"] + 1)) == ([], True)


def test_torch_is_refused_unless_the_server_names_it():
    _, raised, _ = federation({}, {"codec": "torch"})
    assert isinstance(raised[0], CodecRefused)
    assert "'torch'" in str(raised[0])


@pytest.mark.parametrize(
    ("server", "config"), [({"codec": "torch"}, {}), ({}, {"accept_codecs": ["torch", "safetensors"]})]
)
def test_naming_it_as_codec_or_in_the_accept_list_is_enough(server, config):
    wire, raised, _ = federation(server, {"codec": "torch", "accept_codecs": ["safetensors"]}, config=config)
    assert (wire.up, raised) == ({"torch"}, [])


def test_a_client_accepts_torch_only_if_it_names_it():
    _, raised, _ = federation({"codec": "torch"}, {})
    assert isinstance(raised[0], CodecRefused)
    assert "accept_codecs=['torch']" in str(raised[0])


def test_an_accept_list_is_kept_part_by_part():
    _, raised, _ = federation({}, {"codec": "safetensors+lz4"}, config={"accept_codecs": ["safetensors"]})
    assert isinstance(raised[0], CodecRefused)
    assert "'lz4'" in str(raised[0])


def test_lossy_codecs_must_be_named(monkeypatch):
    class Coarse(Wrapper):
        part, lossless = "coarse", False

        def encode(self, shard, *, base=None, state=None):
            return self.inner.encode({name: (t / 100).round() * 100 for name, t in shard.items()})

        def decode(self, frame, spec, *, base=None, into=None):
            return self.inner.decode(frame, spec, into=into)

    monkeypatch.setattr(registry, "_registered", {})
    registry.register("codecs", "coarse", Coarse)
    _, raised, _ = federation({}, {"codec": "safetensors+coarse"})
    assert isinstance(raised[0], CodecRefused)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"codec": "safetensor"}, UnknownName, "did you mean 'safetensors'"),
        ({"codec": "lz4"}, ConfigError, "safetensors\\+lz4"),
        ({"codec": "lz4+safetensors"}, ConfigError, "wraps"),
        ({"transport": "carrier_pigeon"}, UnknownName, "grpc, memory"),
    ],
)
def test_names_that_cannot_be_are_errors_before_anything_runs(options, error, text):
    with pytest.raises(error, match=text):
        Server("", strategy=FedAvg(INITIAL), **{"transport": Memory(), **options})
