"""The last model of a run: what is offered is what is fetched, in as many pieces as it takes."""

from concurrent.futures import Future

import pytest
import torch

from fedcore.broadcast import Broadcast
from fedcore.errors import ChecksumError, ConnectionLost, FedcoreError, ProtocolError
from fedcore.last_model import LastModel, fetch
from fedcore.messages import Committed, ModelQuery, Rest
from fedcore.parameters import Spec, digest
from fedcore.transport import Connection, Reply


def model(value, shape=(300, 7)):
    tied = torch.full(shape, float(value))
    return {"w": tied, "twin": tied, "n": torch.tensor(value)}


@pytest.fixture
def last():
    made = Broadcast(4096)
    yield LastModel(made)
    made.close()


def put(last, number, value, shape=(300, 7)):
    parameters = model(value, shape)
    last.put(number, parameters, Spec.of(parameters), digest(parameters))
    return parameters


class Line(Connection):
    """Asks for it over a line that breaks when it is told to."""

    def __init__(self, last, *, breaks=0, after=5000, meanwhile=lambda: None, spoil=lambda part: part):
        self.last, self.breaks, self.after, self.meanwhile, self.spoil = last, breaks, after, meanwhile, spoil
        self.asked = []

    def request(self, message, body=(), timeout=None):
        self.asked.append(message)
        future = Future[Reply]()
        self.last.answer(message, future)
        reply = future.result(10.0)
        return Reply(reply.message, self._broken(reply.body) if self.breaks else map(self.spoil, reply.body))

    def _broken(self, body):
        self.breaks -= 1
        left = self.after
        for part in body:
            yield memoryview(part).cast("B")[:left]
            left -= memoryview(part).nbytes
            if left <= 0:
                break
        self.meanwhile()
        raise ConnectionLost("gone")

    def close(self):
        pass


def test_it_comes_whole_with_its_ties(last):
    parameters = put(last, 3, 1)
    found, got = fetch(Line(last))
    assert (found.round, found.manifest.digest) == (3, digest(parameters))
    assert digest(got) == digest(parameters)
    assert got["twin"] is got["w"]


def test_there_may_be_none_yet(last):
    with pytest.raises(ProtocolError) as caught:
        fetch(Line(last))
    assert caught.value.reason == "NO_MODEL"


def test_what_breaks_off_goes_on_where_it_was(last):
    parameters, line = put(last, 1, 1), Line(last, breaks=1)
    put(last, 1, 1)
    _, got = fetch(line)
    assert digest(got) == digest(parameters)
    total = line.asked[1].total_bytes
    assert line.asked == [
        ModelQuery(), ModelQuery(digest(parameters), total), ModelQuery(digest(parameters), total, 5000),
    ]  # fmt: skip


@pytest.mark.parametrize("before", [True, False])
def test_when_the_next_model_is_made_meanwhile_that_one_is_fetched(last, before):
    put(last, 1, 1)
    line = Line(last, breaks=1, meanwhile=lambda: put(last, 2, 2))
    if before:  # between what it is told and what it asks
        line = Line(last)
        ask = line.request

        def request(message, body=(), timeout=None):
            reply = ask(message, body, timeout)
            if len(line.asked) == 1:
                put(last, 2, 2)
            return reply

        line.request = request
    found, got = fetch(line)
    assert (found.round, digest(got)) == (2, digest(model(2)))


def test_it_does_not_run_after_models_for_ever(last):
    numbers = iter(range(100))

    def another():
        put(last, 1, next(numbers))

    another()
    line = Line(last, breaks=100, meanwhile=another)
    with pytest.raises(FedcoreError, match="another model is the last one now"):
        fetch(line)
    assert len(line.asked) < 20


def test_what_is_not_the_model_is_refused(last):
    put(last, 1, 1)
    with pytest.raises(ChecksumError):
        fetch(Line(last, spoil=lambda part: bytes(memoryview(part)[:-1]) + b"\x01" if memoryview(part).nbytes > 1000 else part))


@pytest.mark.parametrize("query", [(1, 0), (0, 0), (None, -1), (None, 1), (1 << 62, 1 << 61)])
def test_there_is_no_other_body(last, query):
    parameters, future = put(last, 1, 1), Future()
    last.answer(ModelQuery(), future)
    total = future.result(10.0).message.manifest.total_bytes
    size, offset = query
    future = Future()
    last.answer(
        ModelQuery(digest(parameters), total if size is None else size, offset if offset < 1 else total + offset), future
    )
    with pytest.raises(ProtocolError) as caught:
        future.result(10.0)
    assert caught.value.reason == "BAD_OFFSET"


def test_at_its_end_nothing_is_left(last):
    parameters, future = put(last, 1, 1), Future()
    last.answer(ModelQuery(), future)
    found = future.result(10.0).message
    assert isinstance(found, Committed)
    future = Future()
    last.answer(ModelQuery(digest(parameters), found.manifest.total_bytes, found.manifest.total_bytes), future)
    reply = future.result(10.0)
    assert reply.message == Rest(found.manifest.total_bytes)
    assert b"".join(map(bytes, reply.body)) == b""
