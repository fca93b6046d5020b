"""What has come of an update is kept for the very same update, for a while, and within a quota."""

from dataclasses import replace

import pytest
import torch

from fedcore.broadcast import encode
from fedcore.codecs.safetensors import Safetensors
from fedcore.errors import Incomplete
from fedcore.intake import Intake
from fedcore.messages import Session, Submit
from fedcore.parameters import Spec
from fedcore.unfinished import Unfinished

MODEL = {"w": torch.arange(1000.0)}
SPEC = Spec.of(MODEL)
PAYLOAD = encode(MODEL, SPEC, Safetensors(), 4096)
SESSION = Session("run-1", "client-1", "token")


def header(task="fit-1-client-1", attempt="a-1"):
    return Submit(SESSION, task, 1, attempt, "", 1, PAYLOAD.manifest)


def begun():
    intake = Intake(PAYLOAD.manifest, SPEC, Safetensors())
    with pytest.raises(Incomplete):
        intake.take(PAYLOAD.body[:1])
    return intake


def test_the_same_attempt_gets_it_once_under_any_session():
    kept, intake = Unfinished(10.0), begun()
    kept.keep(header(), intake, 4000, quota=8000, now=0.0)
    assert kept.claim(replace(header(), session=Session("run-1", "client-1", "another"))) is intake
    assert kept.claim(header()) is None


@pytest.mark.parametrize("other", [header(attempt="a-2"), replace(header(), manifest=replace(PAYLOAD.manifest, digest="0"))])
def test_another_update_does_not_get_it_and_ends_it(other):
    kept = Unfinished(10.0)
    kept.keep(header(), begun(), 4000, quota=8000, now=0.0)
    assert kept.claim(other) is None
    assert kept.claim(header()) is None
    assert kept.used == 0


def test_the_oldest_make_room():
    kept = Unfinished(10.0)
    for number in range(3):
        kept.keep(header(f"fit-1-{number}"), begun(), 4000, quota=8000, now=0.0)
    assert kept.used == 8000
    assert [kept.claim(header(f"fit-1-{number}")) is not None for number in range(3)] == [False, True, True]


def test_what_is_above_the_quota_on_its_own_is_not_kept():
    kept = Unfinished(10.0)
    kept.keep(header(), begun(), 4000, quota=3999, now=0.0)
    assert kept.claim(header()) is None


def test_it_is_kept_for_so_long_and_no_longer():
    kept = Unfinished(10.0)
    kept.keep(header("fit-1-a"), begun(), 4000, quota=8000, now=0.0)
    kept.keep(header("fit-1-b"), begun(), 4000, quota=8000, now=1.0)
    assert kept.ends() == [10.0, 11.0]
    kept.forget(9.9)
    assert kept.used == 8000
    kept.forget(10.0)
    assert kept.ends() == [11.0]
    assert kept.used == 4000
