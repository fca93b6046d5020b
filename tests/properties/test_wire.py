"""Laws of the wire: a configuration arrives with the values and the types it left with."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.messages import Beat, Manifest, Session, Status, Submit, TensorInfo
from fedcore.protos import fedcore_pb2 as pb
from fedcore.transports.grpc import wire
from fedcore.values import check_config

FAST = settings(max_examples=150, deadline=None, database=None)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
scalars = st.one_of(
    st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), st.sampled_from([0, 1, (1 << 53) + 1, -(1 << 63)]),
    st.floats(), text, st.binary(max_size=30),
)  # fmt: skip
configs = st.dictionaries(text, st.one_of(scalars, st.lists(scalars, max_size=5)), max_size=6)
counts = st.integers(0, (1 << 64) - 1)


def same(a, b):
    """Whether two values are of one type and equal, where NaN is equal to itself and 0.0 is not -0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    return a == b


@FAST
@given(configs)
def test_c16_a_config_keeps_values_and_types(config):
    task = pb.Task(config=wire.pack_config(config))
    again = wire.unpack_config(pb.Task.FromString(task.SerializeToString()).config)
    assert again.keys() == config.keys()
    assert all(same(again[key], config[key]) for key in config)


@FAST
@given(configs)
def test_what_travels_passes_the_check_and_the_other_way_round(config):
    checked = check_config(config)
    assert checked.keys() == config.keys()
    assert all(same(checked[key], config[key]) for key in config)


infos = st.builds(TensorInfo, text, text, st.lists(counts, max_size=4).map(tuple), text)
frames = st.lists(counts, max_size=4).map(tuple)
manifests = st.builds(Manifest, text, counts, frames, text, st.lists(infos, max_size=3).map(tuple))
sessions = st.builds(Session, text, text, text)


@FAST
@given(st.builds(Submit, sessions, text, counts, text, text, st.integers(-(1 << 63), (1 << 63) - 1), manifests))
def test_w11_an_update_header_comes_back_whole(submit):
    data = wire.pack_submit(submit).SerializeToString()
    assert wire.unpack_submit(pb.UpdateHeader.FromString(data)) == submit


@FAST
@given(st.builds(Beat, sessions, st.sampled_from(Status), counts, counts, counts, text, text))
def test_b3_a_beat_comes_back_whole(beat):
    assert wire.unpack_beat(pb.HeartbeatRequest.FromString(wire.pack_beat(beat).SerializeToString())) == beat
