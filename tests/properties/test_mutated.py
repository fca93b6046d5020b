"""Valid messages with one field changed: accepted as one of the same kind, or refused with a reason the other side knows."""

import dataclasses
import json

import pytest
from fields import mutated, places, shaken
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import changed
from models import BASE, CODECS, MODEL, PARTS, SPEC

from fedcore.broadcast import encode
from fedcore.errors import ChecksumError, FedcoreError, RemoteError, from_reason
from fedcore.intake import Intake
from fedcore.messages import (
    Act,
    Assigned,
    AuditPage,
    AuditQuery,
    Beat,
    BeatReply,
    ClientStatus,
    Command,
    Directive,
    Fetch,
    Finished,
    Kind,
    Manifest,
    ModelQuery,
    Outcome,
    Pull,
    Register,
    Registered,
    ServerStatus,
    Session,
    Status,
    Submit,
    Submitted,
    Task,
    TensorInfo,
    Traffic,
    Wait,
)
from fedcore.parameters import DTYPES, Spec, digest
from fedcore.registry import accepted_codec
from fedcore.registry import codec as codec_of
from fedcore.transports.grpc import wire
from fedcore.transports.grpc.framing import parse
from fedcore.values import check_config, check_metrics

LAWS = settings(max_examples=100, deadline=None, database=None)

ids = st.text("abzAZ09", min_size=1, max_size=9)
digests = st.sampled_from(["d" * 64, "e" * 64, "0123456789abcdef" * 4])
counts = st.integers(0, 1 << 40)
seconds = st.floats(0.25, 3600)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
codecs = st.sampled_from(CODECS)
scalars = st.one_of(
    st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), st.floats(allow_nan=False), texts, st.binary(max_size=9)
)
configs = st.dictionaries(texts, st.one_of(scalars, st.lists(scalars, max_size=3)), max_size=4)
metrics = st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=3)
names = st.text("abz.", min_size=1, max_size=9)
tensors = st.lists(
    st.builds(TensorInfo, names, st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 9), max_size=4).map(tuple)),
    max_size=4, unique_by=lambda info: info.name,
).map(tuple)  # fmt: skip
manifests = st.builds(
    Manifest,
    codecs,
    st.integers(4096, 1 << 30),
    st.lists(counts, max_size=3).map(tuple),
    digests,
    tensors,
    st.just("") | digests,
)
sessions = st.builds(Session, ids, ids, digests)
traffic = st.builds(Traffic, counts, counts, counts, counts)
clients = st.builds(ClientStatus, ids, st.sampled_from(Status), counts, counts, counts, seconds, traffic)

DUPLICATE = st.just(Outcome.DUPLICATE)
KINDS = {
    "register": (
        st.builds(Register, ids, codecs, st.just(PARTS), st.booleans(), st.just(1), ids),
        wire.pack_register, wire.unpack_register,
    ),
    "pull": (st.builds(Pull, sessions, seconds, digests), lambda m: wire.pack_pull(m, stream=False), wire.unpack_pull),
    "fetch": (st.builds(Fetch, sessions, ids, counts, counts), wire.pack_fetch, wire.unpack_fetch),
    "model": (st.builds(ModelQuery, digests, counts, counts), wire.pack_fetch, wire.unpack_fetch),
    "submit": (
        st.builds(Submit, sessions, ids, counts, ids, digests, counts, manifests, metrics),
        wire.pack_submit, wire.unpack_submit,
    ),
    "beat": (
        st.builds(Beat, sessions, st.sampled_from(Status), counts, counts, counts, ids, texts),
        wire.pack_beat, wire.unpack_beat,
    ),
    "audit query": (st.builds(AuditQuery, counts), wire.pack_audit_query, wire.unpack_audit_query),
    "audit page": (st.builds(AuditPage, st.binary(max_size=99), counts), wire.pack_audit_page, wire.unpack_audit_page),
    "control": (st.builds(Command, st.sampled_from(Act), ids, texts), wire.pack_command, wire.unpack_command),
    "registered": (
        st.builds(Registered, sessions, codecs, seconds, seconds, codecs, st.booleans(), seconds),
        wire.pack_registered, wire.unpack_registered,
    ),
    "task": (
        st.builds(Assigned, st.builds(Task, ids, st.sampled_from(Kind), counts, digests, configs, tensors), manifests),
        lambda m: wire.pack_pulled(m, stream=False), wire.unpack_pulled,
    ),
    "wait": (st.builds(Wait, counts), lambda m: wire.pack_pulled(m, stream=False), wire.unpack_pulled),
    "finished": (st.builds(Finished, texts), lambda m: wire.pack_pulled(m, stream=False), wire.unpack_pulled),
    "submitted": (
        st.builds(Submitted, DUPLICATE, st.just("DUPLICATE"), texts, counts, st.sampled_from(Directive)),
        wire.pack_submitted, wire.unpack_submitted,
    ),
    "beat reply": (
        st.builds(BeatReply, st.booleans(), st.sampled_from(Directive), texts, seconds, seconds),
        wire.pack_beat_reply, wire.unpack_beat_reply,
    ),
    "status": (
        st.builds(
            ServerStatus, ids, texts, counts, counts, counts, counts, counts, codecs, seconds,
            st.lists(clients, max_size=2).map(tuple), metrics, traffic, counts,
        ),
        wire.pack_status, wire.unpack_status,
    ),
}  # fmt: skip


def meaning(message):
    """Return what can be compared: NaN is NaN, and the fields of a map have no order."""
    return json.dumps(dataclasses.asdict(message), sort_keys=True, default=repr)


def check(error, field):
    """Check an error for what every refusal has: a reason that the other side knows, and a text that fits a log."""
    assert type(error) is RemoteError or not isinstance(from_reason(error.reason, ""), RemoteError), (field, error.reason)
    assert len(str(error)) < 500, field


@pytest.mark.parametrize("kind", KINDS)
@LAWS
@given(data=st.data(), chance=st.randoms(use_true_random=False))
def test_r13_one_changed_field_is_accepted_or_refused_by_a_known_reason(kind, data, chance):
    messages, pack, unpack = KINDS[kind]
    message = data.draw(messages)
    packed = pack(message)
    assert unpack(parse(type(packed), packed.SerializeToString())) == message
    other, field = mutated(packed, chance)
    try:
        found = unpack(parse(type(other), other.SerializeToString()))
    except FedcoreError as error:
        check(error, field)
        return
    assert type(found) is type(message) or kind in ("pull", "fetch", "model", "task", "wait", "finished"), field
    again = unpack(parse(type(other), pack(found).SerializeToString()))
    assert meaning(again) == meaning(found), f"{field}: what was accepted means something else when it is passed on"


@pytest.mark.parametrize("kind", ["submit", "task"])
@LAWS
@given(data=st.data(), chance=st.randoms(use_true_random=False))
def test_u20_what_is_checked_behind_the_wire_refuses_in_the_same_way(kind, data, chance):
    messages, pack, unpack = KINDS[kind]
    other, field = mutated(pack(data.draw(messages)), chance)
    try:
        found = unpack(parse(type(other), other.SerializeToString()))
        values = getattr(found, "metrics", None) if kind == "submit" else getattr(getattr(found, "task", None), "config", {})
        checked = check_metrics(values) if kind == "submit" else check_config(values)
        Spec.checked(found.manifest.tensors if hasattr(found, "manifest") else ())
    except FedcoreError as error:
        check(error, field)
        return
    assert all(isinstance(value, float) for value in checked.values()) or kind == "task"


ENCODED = {
    (name, differs): encode(MODEL, SPEC, codec_of(name), 16 << 20, base=BASE if differs else None)
    for name in CODECS
    for differs in ([False, True] if codec_of(name).uses_base else [False])
}


@pytest.mark.parametrize(("name", "differs"), ENCODED)
@settings(LAWS, max_examples=30)
@given(chance=st.randoms(use_true_random=False))
def test_s3_one_changed_layer_of_a_body_gives_the_announced_values_or_none(name, differs, chance):
    payload = ENCODED[name, differs]
    whole = b"".join(bytes(part) for part in payload.body)
    codec = accepted_codec(name, PARTS)
    assert digest(Intake(payload.manifest, SPEC, codec, base=BASE).take([whole])) == payload.manifest.digest
    body = changed(codec, whole, chance, shaken)
    manifest = dataclasses.replace(payload.manifest, frames=(len(body),))
    try:
        found = Intake(manifest, SPEC, codec, base=BASE).take([body])
    except ChecksumError:
        return
    except FedcoreError as error:
        check(error, name)
        return
    assert digest(found) == payload.manifest.digest


def reached(messages, pack):
    found = set()

    @settings(LAWS, max_examples=40)
    @given(messages)
    def note(message):
        found.update(place.path for place in places(pack(message)))

    note()
    return found


def test_the_fields_of_every_message_are_reached():
    found = set().union(*(reached(messages, pack) for messages, pack, _ in KINDS.values()))
    wanted = {f"{kind}.{field}" for kind, field in (
        ("Session", "token"), ("Manifest", "frames"), ("Manifest", "base"), ("TensorInfo", "shape"), ("Scalar", "integer"),
        ("Task", "config"), ("UpdateHeader", "metrics"), ("HeartbeatRequest", "status"), ("RegisterClientRequest", "accepts"),
        ("GetGlobalModelRequest", "wait_seconds"), ("ClientStatus", "silent_seconds"), ("LastModel", "digest"),
    )}  # fmt: skip
    assert wanted <= found
