import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.codec import frame_bytes, joined
from fedcore.codecs.topk import TopK
from fedcore.errors import ConfigError, DecodeError
from fedcore.messages import TensorInfo
from fedcore.parameters import Spec
from fedcore.tensorwise import fingerprint
from fedcore.views import raw_bytes

COUNT = 3000
INFO = TensorInfo("w", "float32", (COUNT,))


def normal(seed, dtype=torch.float32):
    return torch.randn(COUNT, generator=torch.Generator().manual_seed(seed)).to(dtype)


def change(codec, tensor, base, state=None):
    """Return what the receiver's tensor changed by."""
    frame = joined(codec.encode({"w": tensor}, base={"w": base}, state=state))
    return codec.decode(frame, Spec.of({"w": tensor}), base={"w": base})["w"] - base


def decoded(gaps, values, count=COUNT):
    payload = raw_bytes(torch.tensor(gaps, dtype=torch.uint32)).tobytes() + raw_bytes(torch.tensor(values)).tobytes()
    info = TensorInfo("w", "float32", (count,))
    frame = fingerprint([info]) + b"\2" + len(payload).to_bytes(8, "little") + payload
    return TopK().decode(frame, Spec((info,)), base={"w": torch.zeros(count)})["w"]


@pytest.mark.parametrize(("fraction", "number"), [(0.01, 30), (0.0101, 31), (1e-9, 1), (0.4, 1200)])
def test_the_largest_changes_are_sent(fraction, number):
    base, difference = torch.zeros(COUNT), normal(0)
    sent = change(TopK(fraction), base + difference, base)
    assert (sent != 0).sum() == number
    assert torch.equal(sent[sent != 0], difference[sent != 0])
    assert difference[sent != 0].abs().min() >= difference[sent == 0].abs().max()
    assert frame_bytes(TopK(fraction).encode({"w": difference}, base={"w": base})) == 17 + 8 * number


def test_of_equal_changes_the_first_are_sent():
    sent = change(TopK(), torch.where(torch.arange(COUNT) % 2 == 0, -1.0, 1.0), torch.zeros(COUNT))
    assert sent.nonzero().flatten().tolist() == list(range(30))
    largest = torch.full((COUNT,), 0.5)
    largest[2000:2010] = -0.75
    assert change(TopK(), largest, torch.zeros(COUNT)).nonzero().flatten().tolist() == [*range(20), *range(2000, 2010)]


def test_without_a_base_nothing_is_left_out():
    state = {}
    frame = joined(TopK().encode({"w": normal(0)}, state=state))
    assert torch.equal(TopK().decode(frame, Spec((INFO,)))["w"], normal(0))
    assert state == {}


def test_what_is_not_sent_is_the_base_to_the_bit():
    base = normal(1)
    tensor = base + normal(2) / 100
    frame = joined(TopK().encode({"w": tensor}, base={"w": base}))
    made = TopK().decode(frame, Spec((INFO,)), base={"w": base})["w"]
    assert (made == base).sum() == COUNT - 30


# --- error feedback ---------------------------------------------------------------------------------------------------


@given(rounds=st.integers(1, 8), seed=st.integers(0, 1000), fraction=st.sampled_from([0.001, 0.01, 0.2]))
@settings(deadline=None, derandomize=True, database=None, max_examples=40)
def test_whole_numbers_are_neither_lost_nor_made(rounds, seed, fraction):
    draw = torch.Generator().manual_seed(seed)
    codec, state = TopK(fraction), {}
    sent, true = torch.zeros(COUNT), torch.zeros(COUNT)
    for _ in range(rounds):
        base = torch.randint(-1000, 1000, (COUNT,), generator=draw).float()
        difference = torch.randint(-1000, 1000, (COUNT,), generator=draw).float()
        sent += change(codec, base + difference, base, state)
        true += difference
        assert torch.equal(sent + state["w"], true)  # all sums are exact in float32


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-14), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
def test_what_was_sent_and_what_is_left_are_all_there_was(dtype, error):
    state, sent, true = {}, torch.zeros(COUNT).double(), torch.zeros(COUNT).double()
    for number in range(20):
        base = normal(2 * number, dtype)
        tensor = (base + normal(2 * number + 1) / 100).to(dtype)
        frame = joined(TopK().encode({"w": tensor}, base={"w": base}, state=state))
        made = TopK().decode(frame, Spec.of({"w": tensor}), base={"w": base})["w"]
        sent += made.double() - base.double()
        true += tensor.double() - base.double()
    assert (sent + state["w"].double() - true).abs().max() < error
    assert (sent - true).abs().max() > 0.01


def test_everything_arrives_in_the_end():
    state, base, goal = {}, torch.zeros(COUNT), normal(0)
    held = base.clone()
    held += change(TopK(), goal, base, state)
    for _ in range(99):
        held += change(TopK(), base, base, state)  # nothing new
    assert torch.allclose(held, goal, rtol=0, atol=1e-6)


def test_a_state_is_rolled_back_by_a_shallow_copy():
    state = {}
    change(TopK(), normal(1), normal(0), state)
    before, left = dict(state), state["w"].clone()
    first = change(TopK(), normal(3), normal(2), state)
    assert state["w"] is not before["w"]
    assert torch.equal(before["w"], left)
    assert torch.equal(change(TopK(), normal(3), normal(2), before), first)
    assert torch.equal(before["w"], state["w"])


def test_each_entry_has_its_own_and_what_goes_raw_leaves_it():
    shard = {"a": normal(0), "b": normal(1), "small": torch.ones(5), "count": torch.arange(9)}
    base, state = {name: torch.zeros_like(tensor) for name, tensor in shard.items()}, {}
    TopK().encode(shard, base=base, state=state)
    assert set(state) == {"a", "b"}
    left = dict(state)
    TopK().encode(shard, state=state)
    TopK().encode(shard | {"a": torch.full((COUNT,), float("nan"))}, base=base, state=state)
    assert state["a"] is left["a"]
    assert state["b"] is not left["b"]


# --- what must be refused ---------------------------------------------------------------------------------------------


def test_a_frame_by_hand():
    made = decoded([0, 0, 2997], [1.0, -2.0, 3.0])
    assert made.nonzero().flatten().tolist() == [0, 1, 2999]
    assert made[[0, 1, 2999]].tolist() == [1, -2, 3]


@pytest.mark.parametrize("gaps", [[3000], [2**32 - 1], [0, 2999], [1500, 1499], [2**32 - 1] * 100, [30] * 100])
def test_places_beyond_the_end(gaps):
    with pytest.raises(DecodeError, match="beyond the last"):
        decoded(gaps, [1.0] * len(gaps))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), float("-inf")])
def test_numbers_that_are_none(value):
    with pytest.raises(DecodeError, match="not finite"):
        decoded([5], [value])


def test_odd_lengths():
    for gaps, values in (([], []), ([1, 2], [1.0]), ([1], [1.0, 2.0])):
        with pytest.raises(DecodeError):
            decoded(gaps, values)


def test_a_difference_beyond_float32_goes_raw():
    tensor = torch.zeros(COUNT, dtype=torch.float64)
    tensor[5] = 1e200
    state = {}
    assert change(TopK(), tensor, torch.zeros_like(tensor), state)[5] == 1e200
    assert state == {}


@pytest.mark.parametrize("fraction", [0, 0.0, -0.1, 0.51, 1, True, "0.1", None, float("nan")])
def test_fractions_that_are_none(fraction):
    with pytest.raises(ConfigError, match="TopK fraction must be"):
        TopK(fraction)


def test_repr():
    assert repr(TopK(0.1)) == "TopK(fraction=0.1)"
    assert TopK(0.1) == TopK()
