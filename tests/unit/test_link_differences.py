"""A link whose codec tells differences: it keeps what it received, and what was left out, until they count."""

from concurrent.futures import Future

import pytest
import torch

from fedcore import Memory, registry
from fedcore.broadcast import encode
from fedcore.codec import Base
from fedcore.intake import receive
from fedcore.link import Link
from fedcore.messages import Assigned, BeatReply, Kind, Outcome, Pull, Register, Registered, Session, Submit, Submitted, Task
from fedcore.parameters import Spec, digest
from fedcore.transport import Reply

MODEL = {"w": torch.linspace(-1, 1, 5000)}
SPEC, DIGEST = Spec.of(MODEL), digest(MODEL)
SAFETENSORS, TOPK = registry.codec("safetensors"), registry.codec("topk")
ACCEPTED = Submitted(Outcome.ACCEPTED, "ACCEPTED", round=1)
CLOSED = Submitted(Outcome.CLOSED, "ROUND_CLOSED", "too late", 2)


class Desk:
    """A server's handler that hands out one task again and again, and keeps what comes back."""

    def __init__(self, verdicts, delta=""):
        self.verdicts, self.delta, self.updates, self.seen = list(verdicts), delta, [], []

    def __call__(self, request):
        future = Future()
        future.set_result(self.answer(request))
        return future

    def answer(self, request):
        message = request.message
        self.seen.append(message)
        if isinstance(message, Register):
            return Reply(Registered(Session("run", "client-1", "t"), "topk", 5.0, 300.0, self.delta))
        if isinstance(message, Pull):
            payload = encode(MODEL, SPEC, SAFETENSORS, 1 << 20)
            number = 1 + sum(isinstance(other, Submit) for other in self.seen)
            return Reply(Assigned(Task(f"fit-{number}", Kind.FIT, number, DIGEST), payload.manifest), payload.body)
        if isinstance(message, Submit):
            manifest = message.manifest
            assert manifest.base == DIGEST
            base = Base(DIGEST, SPEC, MODEL)
            self.updates.append(receive(manifest, request.body, SPEC, TOPK, base=base)["w"] - MODEL["w"])
            return Reply(self.verdicts.pop(0))
        return Reply(BeatReply(True))


@pytest.fixture
def link_to():
    opened = []

    def link_to(desk, codec="topk"):
        listener = Memory().listen("", desk)
        opened.extend((connection := Memory().connect(listener.address), listener))
        link = Link(connection, "client-1", codec=codec)
        link.register()
        return link

    yield link_to
    for one in opened:
        one.close() if hasattr(one, "close") else one.stop()


def hand_in(link, step):
    task, parameters = link.next_task()
    parameters["w"] += step  # in place, as users do: the base must not move with it
    return link.submit(task, SPEC, parameters, 7, {})


def test_what_was_left_out_is_sent_in_the_next_round(link_to):
    desk, step = Desk([ACCEPTED, ACCEPTED]), torch.linspace(0.1, 0.2, 5000)
    link = link_to(desk)
    hand_in(link, step), hand_in(link, 0 * step)
    first, second = desk.updates
    assert int((first != 0).sum()) == int((second != 0).sum()) == 50
    assert not ((first != 0) & (second != 0)).any()
    assert torch.allclose(second[second != 0], step[second != 0], atol=1e-6)


def test_an_update_that_does_not_count_leaves_no_trace(link_to):
    desk, step = Desk([CLOSED, ACCEPTED]), torch.linspace(0.1, 0.2, 5000)
    link = link_to(desk)
    hand_in(link, step), hand_in(link, 0 * step)
    assert int((desk.updates[1] != 0).sum()) == 0


def test_feedback_outlives_a_new_registration(link_to):
    desk, step = Desk([ACCEPTED, ACCEPTED]), torch.linspace(0.1, 0.2, 5000)
    link = link_to(desk)
    hand_in(link, step)
    link.register()
    hand_in(link, 0 * step)
    assert int((desk.updates[1] != 0).sum()) == 50


def test_it_says_what_it_holds_only_where_that_is_of_use(link_to):
    for delta, holds in (("", ["", ""]), ("delta+zstd", ["", DIGEST])):
        desk = Desk([ACCEPTED], delta)
        link = link_to(desk)
        hand_in(link, 0.5)
        link.next_task()
        assert [message.holds for message in desk.seen if isinstance(message, Pull)] == holds
