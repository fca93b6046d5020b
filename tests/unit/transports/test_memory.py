"""The memory transport: one process, the caller's thread, nothing lost."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from fedcore import Client, FedAvg, Memory, ServerConfig
from fedcore.errors import AddressError, ConnectionLost, DeadlineExceeded, SchemaMismatch
from fedcore.messages import Manifest, Outcome, Pull, Session, StatusQuery, Submit, Submitted, Wait
from fedcore.testing import run_federation
from fedcore.transport import Reply

SESSION = Session("run", "a", "t")


def at_once(answer):
    """Return a handler that answers with what a function of the request returns or raises."""

    def handler(request):
        future = Future()
        try:
            future.set_result(Reply(answer(request)))
        except Exception as error:
            future.set_exception(error)
        return future

    return handler


def never(_):
    return Future()


def test_an_empty_address_is_replaced_by_a_free_one():
    memory = Memory()
    with memory.listen("", never) as first, memory.listen("", never) as second:
        assert first.address
        assert first.address != second.address


def test_l12_an_address_is_served_once_and_free_again_afterwards():
    memory = Memory()
    with memory.listen("here", never), pytest.raises(AddressError, match="'here'"):
        memory.listen("here", never)
    with memory.listen("here", never) as again:
        assert again.address == "here"


def test_stopping_an_old_listener_leaves_its_successor_alone():
    memory = Memory()
    old = memory.listen("here", never)
    old.stop()
    with memory.listen("here", at_once(lambda _: Wait(4))), memory.connect("here") as connection:
        old.stop()
        assert connection.request(Pull(SESSION)).message == Wait(4)


def test_an_empty_address_cannot_be_spoken_to():
    with pytest.raises(AddressError, match="empty"):
        Memory().connect("")


def test_the_server_need_not_run_yet():
    connection = Memory().connect("later")
    with pytest.raises(ConnectionLost, match="'later'"):
        connection.request(StatusQuery())
    with Memory().listen("later", at_once(lambda _: Wait(1))):
        assert connection.request(Pull(SESSION)).message == Wait(1)


def test_the_handler_runs_on_the_callers_thread_and_sees_message_and_body():
    seen = []
    with Memory().listen("", at_once(lambda request: seen.append((request, threading.get_ident())) or Wait())) as listener:
        body = [b"ab", b"c"]
        Memory().connect(listener.address).request(Pull(SESSION, 3.0), body)
    (request, thread), = seen
    assert request.message == Pull(SESSION, 3.0)
    assert request.body is body
    assert thread == threading.get_ident()
    assert listener.address in request.peer.address


@pytest.mark.parametrize("by_reference", [False, True])
def test_c18_tensors_are_handed_over_as_objects_only_if_asked_for(by_reference):
    seen = []
    memory = Memory(by_reference=by_reference)
    with memory.listen("", at_once(lambda request: seen.append(request.peer.by_reference) or Wait())) as listener:
        memory.connect(listener.address).request(Pull(SESSION))
    assert seen == [by_reference]
    assert Memory().by_reference is False
    assert repr(memory) == f"Memory(by_reference={by_reference})"


@pytest.mark.parametrize("by_reference", [False, True])
def test_c18_a_client_that_changes_what_it_sent_changes_nothing(by_reference):
    class Forgetful(Client):
        last = None

        def get_parameters(self):
            return {"w": torch.zeros(3)}

        def fit(self, parameters, config):
            if self.last is not None:
                self.last.fill_(1e6)  # it keeps hold of what it handed in
            self.last = parameters["w"] + 1
            return {"w": self.last}, 1

    strategy = FedAvg({"w": torch.zeros(3)}, min_fit_clients=2)
    config, memory = ServerConfig(num_rounds=3), Memory(by_reference=by_reference)
    _, final = run_federation([Forgetful(), Forgetful()], strategy=strategy, config=config, transport=memory)
    assert final["w"].tolist() == [3.0] * 3


def test_an_error_of_the_handler_is_the_very_same_error():
    error = SchemaMismatch("tensor 'w'", reason="BAD_DTYPE")

    def refuse(_):
        raise error

    with Memory().listen("", at_once(refuse)) as listener, pytest.raises(SchemaMismatch) as caught:
        Memory().connect(listener.address).request(Pull(SESSION))
    assert caught.value is error


def test_the_handlers_own_deadline_is_told_from_ones_own():
    def late(_):
        raise DeadlineExceeded("no chunk came", reason="STALLED_STREAM")

    with Memory().listen("", at_once(late)) as listener, pytest.raises(DeadlineExceeded) as caught:
        Memory().connect(listener.address).request(Pull(SESSION), timeout=5)
    assert caught.value.reason == "STALLED_STREAM"


def test_an_answer_that_does_not_come_in_time():
    parked = Future()
    with Memory().listen("", lambda _: parked) as listener, pytest.raises(DeadlineExceeded, match=r"0\.01 s"):
        Memory().connect(listener.address).request(Pull(SESSION), timeout=0.01)
    assert parked.cancelled()


def test_what_is_cut_off_before_anybody_waits_for_it_is_a_lost_connection():
    gone = Future()
    gone.cancel()
    with Memory().listen("", lambda _: gone) as listener, pytest.raises(ConnectionLost, match="went away"):
        Memory().connect(listener.address).request(Pull(SESSION))


@pytest.mark.parametrize("who", ["listener", "connection"])
def test_either_end_cuts_off_what_is_waiting(who):
    arrived = threading.Event()

    def park(_):
        arrived.set()
        return Future()

    listener = Memory().listen("", park)
    connection = Memory().connect(listener.address)
    with ThreadPoolExecutor(1) as pool:
        pull = pool.submit(connection.request, Pull(SESSION))
        assert arrived.wait(5)
        assert not pull.done()
        listener.stop() if who == "listener" else connection.close()
        with pytest.raises(ConnectionLost):
            pull.result(5)
    listener.stop(), connection.close(), listener.stop(), connection.close()


def test_a_closed_connection_stays_closed():
    with Memory().listen("", at_once(lambda _: Wait())) as listener:
        connection = Memory().connect(listener.address)
        connection.close()
        with pytest.raises(ConnectionLost, match="closed"):
            connection.request(Pull(SESSION))


def test_a_body_that_nobody_reads_is_not_read():
    def body():
        raise AssertionError("the body was read")
        yield b""

    submit = Submit(SESSION, "t", 1, "a", "", 1, Manifest("c", 4096, (5,)))
    refused = Submitted(Outcome.STALE, "STALE_ROUND")
    with Memory().listen("", at_once(lambda _: refused)) as listener:
        assert Memory().connect(listener.address).request(submit, body()).message == refused
