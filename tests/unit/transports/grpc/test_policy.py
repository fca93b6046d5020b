"""One message or a stream."""

import pytest

from fedcore.errors import ConfigError
from fedcore.transports.grpc import TransferPolicy
from fedcore.transports.grpc.framing import LARGEST_CHUNK

PLAIN, BERT = ["fc.weight", "fc.bias"], ["fc.weight", "Encoder.BERT.layer.0"]


@pytest.mark.parametrize(
    ("options", "nbytes", "names", "streams"),
    [
        ({}, 1 << 20, PLAIN, False), ({}, (1 << 20) + 1, PLAIN, True), ({}, 0, [], False), ({}, 1, BERT, True),
        ({"threshold_bytes": 0}, 0, PLAIN, False), ({"threshold_bytes": 0}, 1, PLAIN, True),
        ({"stream_transformers": False}, 1, BERT, False), ({"stream_transformers": False}, 1 << 30, BERT, True),
        ({"mode": "unary"}, 1, BERT, False), ({"mode": "unary"}, 1 << 20, BERT, False),
        ({"mode": "unary"}, (1 << 20) + 1, PLAIN, True),  # no message is that large
        ({"mode": "stream"}, 0, [], True), ({"mode": "stream"}, 1, PLAIN, True),
        ({"keywords": ("fc",)}, 1, PLAIN, True), ({"keywords": ()}, 1, BERT, False),
    ],
)  # fmt: skip
def test_the_choice(options, nbytes, names, streams):
    assert TransferPolicy(**options).streams(nbytes, names) is streams


@pytest.mark.parametrize("name", ["transformer.h.0", "my_BERT", "gpt2", "self_attention.q", "Attention", "DistilBert.x"])
def test_names_that_tell_a_transformer(name):
    assert TransferPolicy().is_transformer(["fc", name])


@pytest.mark.parametrize("names", [[], ["fc.weight"], ["trans", "former"], ["att", "ention"]])
def test_names_that_do_not(names):
    assert not TransferPolicy().is_transformer(names)


@pytest.mark.parametrize("threshold", [0, 5, 2_000_000_000])
def test_the_limit_leaves_room_for_a_header_before_the_largest_body_or_chunk(threshold):
    assert TransferPolicy(threshold_bytes=threshold).message_limit == max(threshold, LARGEST_CHUNK) + (1 << 20)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"threshold_bytes": -1}, "threshold_bytes"), ({"threshold_bytes": 2_000_000_001}, "threshold_bytes"),
     ({"mode": "auto"}, "mode"), ({"mode": None}, "mode")],
)  # fmt: skip
def test_values_that_make_no_sense_are_named(options, name):
    with pytest.raises(ConfigError, match=rf"TransferPolicy\.{name}"):
        TransferPolicy(**options)


def test_the_largest_message_is_one_protobuf_allows():
    assert TransferPolicy(threshold_bytes=2_000_000_000).message_limit < 1 << 31
