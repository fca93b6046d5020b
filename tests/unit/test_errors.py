"""The tree of errors is the one that is documented, and each error survives a wire by its reason."""

import re
from pathlib import Path

import pytest

import fedcore.errors
from fedcore.errors import FedcoreError, RemoteError, from_reason

_LINE = re.compile(r"    (?P<branch>[│├└─ ]*)(?P<name>[A-Z]\w+)(?: \((?P<also>\w+)\))?(?:  .*)?")


def tree(root=FedcoreError):
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


def own(kind):
    return kind.__module__ == fedcore.errors.__name__


CLASSES = [kind for kind in tree() if own(kind)]


def documented():
    """Return (name, parent, second base) of every line of the tree in the module's docstring."""
    rows, path = [], []
    for match in filter(None, map(_LINE.fullmatch, fedcore.errors.__doc__.splitlines())):
        depth = len(match["branch"]) // 4
        path[depth:] = [match["name"]]
        rows.append((match["name"], path[depth - 1] if depth else "Exception", match["also"] or ""))
    return rows


def test_the_tree_in_the_docstring_is_the_tree():
    actual = []
    for kind in CLASSES:
        first, *others = kind.__bases__
        actual.append((kind.__name__, first.__name__, others[0].__name__ if others else ""))
    assert len(actual) > 20
    assert documented() == actual


def test_reasons_are_unique_and_look_like_constants():
    reasons = [kind.reason for kind in CLASSES]
    assert len(set(reasons)) == len(reasons)
    assert all(re.fullmatch(r"[A-Z][A-Z_]+", reason) for reason in reasons)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_is_rebuilt_from_its_reason(kind):
    again = from_reason(kind.reason, "what happened")
    assert type(again) is kind
    assert (again.reason, str(again), again.retryable) == (kind.reason, "what happened", kind.retryable)


def test_when_there_is_sense_in_trying_again_survives_a_wire():
    assert from_reason("RATE", "later", 2.5).retry_after == 2.5
    assert from_reason("RATE", "later").retry_after is None
    assert from_reason("BAD_DTYPE", "w").retry_after is None
    assert from_reason("STALLED_STREAM", "slow", 0.0).retry_after == 0.0
    assert from_reason("FROM_THE_FUTURE", "text", 3.0).retry_after == 3.0


def test_an_unknown_reason_becomes_a_remote_error_that_keeps_it():
    again = from_reason("FROM_THE_FUTURE", "text")
    assert type(again) is RemoteError
    assert (again.reason, str(again)) == ("FROM_THE_FUTURE", "text")


FINER = [
    ("BAD_CLIENT_ID", "ConfigError"), ("INSECURE_ADDRESS", "AddressError"), ("BAD_DTYPE", "SchemaMismatch"),
    ("TOO_MANY_FIELDS", "BadMetric"), ("STALLED_STREAM", "DeadlineExceeded"), ("UNDECODABLE", "DecodeError"),
    ("LENGTH_MISMATCH", "ProtocolError"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "nearest"), FINER)
def test_a_finer_reason_keeps_its_name_on_the_nearest_class(reason, nearest):
    again = from_reason(reason, "text")
    assert again.reason == reason
    assert isinstance(again, getattr(fedcore.errors, nearest))


def test_every_reason_that_is_written_in_the_sources_is_known():
    root = Path(fedcore.errors.__file__).parents[1]
    files = [path for folder in ("fedcore", "transports", "codecs") for path in (root / folder).rglob("*.py")]
    written = {reason for path in files for reason in re.findall(r'reason="([A-Z_]+)"', path.read_text())}
    assert len(written) > 10
    assert sorted(reason for reason in written if type(from_reason(reason, "")) is RemoteError) == []


def test_an_instance_may_carry_a_finer_reason_than_its_class():
    error = fedcore.errors.SchemaMismatch("w", reason="BAD_DTYPE")
    assert error.reason == "BAD_DTYPE"
    assert fedcore.errors.SchemaMismatch.reason == "SCHEMA_MISMATCH"


def test_only_what_may_work_again_is_retryable():
    assert {kind.__name__ for kind in CLASSES if kind.retryable} == {
        "ChecksumError", "ConnectionLost", "DeadlineExceeded", "Incomplete", "OutOfStorage", "TooMany", "TooOften",
    }  # fmt: skip
