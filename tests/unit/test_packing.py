"""What a strategy remembers is put together again, or refused; nothing else comes of what somebody wrote in its place."""

import pytest
import torch

from fedcore.errors import StateError
from fedcore.packing import pack, unpack

STATE = {"a": torch.ones(2), "b": [torch.zeros(1), None, True, 4], "c": {"tensor": "x", "dict": {}}, "d": 0.5}


def deep(levels):
    nested = []
    for _ in range(levels):
        nested = [nested]
    return nested


def test_a_state_comes_back():
    tensors, plain = pack(STATE)
    again = unpack(tensors, plain)
    assert again.keys() == STATE.keys()
    assert torch.equal(again["a"], STATE["a"])
    assert again["b"][1:] == [None, True, 4]
    assert (again["c"], again["d"]) == ({"tensor": "x", "dict": {}}, 0.5)


@pytest.mark.parametrize(
    "plain",
    [
        {}, {"tensor": "state/z"}, {"tensor": ["state/a"]}, {"tensor": None}, {"tensor": 1.5}, {"dict": [1]}, {"dict": None},
        {"other": {}}, {"tensor": "state/a", "dict": {}}, [{"dict": {"x": {}}}], deep(100_000),
    ],
    ids=lambda plain: str(plain)[:30] if plain == [] or not isinstance(plain, list) else "a list",
)  # fmt: skip
def test_t2_what_is_no_state_is_refused(plain):
    tensors, _ = pack(STATE)
    with pytest.raises(StateError) as caught:
        unpack(tensors, plain)
    assert caught.value.reason == "STATE_DAMAGED"
    assert len(str(caught.value)) < 300


def test_a_value_that_cannot_be_kept_is_named():
    with pytest.raises(StateError, match=r"state/a/1 is a set"):
        pack({"a": [1, {2}]})
