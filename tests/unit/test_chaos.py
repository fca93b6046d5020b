"""The proxies that integration tests rely on: every fault does what it says, at the byte that it says."""

import math
import socket
import struct
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from time import monotonic

import pytest

from fedcore import Memory
from fedcore.errors import ConfigError, ConnectionLost, NotRegistered
from fedcore.messages import (
    Assigned,
    Beat,
    BeatReply,
    Fetch,
    Kind,
    Manifest,
    Outcome,
    Pull,
    Register,
    Registered,
    Session,
    Status,
    Submit,
    Submitted,
    Task,
    Wait,
)
from fedcore.testing import Doubling, Proxy
from fedcore.testing.chaos import Incident
from fedcore.transport import Reply

PATIENCE = 10.0


class Echo:
    """Sends back what it gets, and notes for each connection what came and how it ended."""

    def __init__(self):
        self.mute = False
        self.door = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self.door.getsockname())
        self.received, self.ended, self.news = [], {}, threading.Condition()
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    def accept(self):
        while True:
            try:
                end, _ = self.door.accept()
            except OSError:
                return
            self.received.append(bytearray())
            self.threads.append(threading.Thread(target=self.serve, args=(len(self.received) - 1, end), daemon=True))
            self.threads[-1].start()

    def serve(self, number, end):
        with end:
            try:
                while data := end.recv(1 << 16):
                    with self.news:
                        self.received[number] += data
                        self.news.notify_all()
                    if not self.mute:
                        end.sendall(data)
                how = "close"
            except OSError:
                how = "reset"
        with self.news:
            self.ended[number] = how
            self.news.notify_all()

    def end_of(self, number):
        with self.news:
            assert self.news.wait_for(lambda: number in self.ended, PATIENCE)
            return self.ended[number]

    def close(self):
        self.door.shutdown(socket.SHUT_RDWR)
        self.door.close()
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


@pytest.fixture
def echo():
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def proxy(echo):
    with Proxy(echo.address) as proxy:
        yield proxy


@contextmanager
def dialled(proxy, timeout=PATIENCE):
    host, port = proxy.address.split(":")
    with socket.create_connection((host, int(port)), timeout) as end:
        yield end


def read(end, size):
    """Return that many bytes, or fewer if the connection ends before."""
    got = bytearray()
    while len(got) < size and (data := end.recv(size - len(got))):
        got += data
    return bytes(got)


def exchange(end, data):
    """Send bytes and return as many that come back."""
    sender = threading.Thread(target=end.sendall, args=(data,))
    sender.start()
    got = read(end, len(data))
    sender.join(PATIENCE)
    return got


def silent(end, seconds=0.2):
    end.settimeout(seconds)
    try:
        end.recv(1)
    except TimeoutError:
        return True
    finally:
        end.settimeout(PATIENCE)
    return False


def noted(proxy, what, times=1):
    """Wait until something was written down so many times, and return that part of the log."""
    assert proxy.wait_for(lambda: [incident.what for incident in proxy.log].count(what) >= times, PATIENCE)
    return [incident for incident in proxy.log if incident.what == what]


# --- no fault ---


def test_everything_passes(proxy, echo):
    data = bytes(range(256)) * 8000
    with dialled(proxy) as first, dialled(proxy) as second:
        assert exchange(first, data) == data
        assert exchange(second, b"x") == b"x"
        first.shutdown(socket.SHUT_WR)
        assert first.recv(1) == b""
    ended = noted(proxy, "ended", 4)
    assert set(ended) == {Incident(n, "ended", way, size) for n, size in ((1, len(data)), (2, 1)) for way in ("up", "down")}
    assert proxy.log == ended
    assert proxy.connections == 2
    assert proxy.passed == {"up": len(data) + 1, "down": len(data) + 1}
    assert [echo.end_of(0), echo.end_of(1)] == ["close", "close"]


def test_a_reset_is_passed_on(proxy, echo):
    with dialled(proxy) as end:
        assert exchange(end, b"x") == b"x"
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert echo.end_of(0) == "reset"


def test_a_missing_server_is_a_reset():
    with socket.create_server(("127.0.0.1", 0)) as door:
        free = "{}:{}".format(*door.getsockname())
    with Proxy(free) as proxy:
        with pytest.raises(ConnectionResetError), dialled(proxy) as end:
            end.recv(1)
        assert noted(proxy, "unreachable", 2)[0] == Incident(1, "unreachable", "up", 0)


def test_close_cuts_everything(echo):
    proxy = Proxy(echo.address)
    with dialled(proxy) as end:
        assert exchange(end, b"x") == b"x"
        proxy.black_hole()
        proxy.close()
        proxy.close()
        assert end.recv(1) == b""
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("fedcore-chaos")]


@pytest.mark.parametrize("upstream", ["", "50051", ":50051", "localhost:", "localhost:http"])
def test_an_upstream_is_host_and_port(upstream):
    with pytest.raises(ConfigError, match="host:port"):
        Proxy(upstream)


def test_faults_that_make_no_sense(proxy):
    for fault in (
        lambda: proxy.cut(-1),
        lambda: proxy.cut(1, "gently"),
        lambda: proxy.cut(1, direction="sideways"),
        lambda: proxy.black_hole(direction="left"),
        lambda: proxy.latency(-1.0),
        lambda: proxy.bandwidth(0),
        lambda: proxy.slicer(0),
        lambda: proxy.flip(-1),
    ):
        with pytest.raises(ConfigError):
            fault()


# --- cuts ---


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("after", [1, 9, 70_000])
def test_exactly_so_many_bytes_go_up(proxy, echo, after, how):
    proxy.cut(after, how, times=1, direction="up")
    echo.mute = True  # what it sent to an end that has closed would be answered with a reset
    data = bytes(range(256)) * 400
    with dialled(proxy) as end:
        end.sendall(data[:after])
        assert echo.end_of(0) == how
        assert echo.received[0] == data[:after]
        if how == "reset":
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        else:
            assert end.recv(1) == b""
    assert noted(proxy, "cut") == [Incident(1, "cut", "up", after)]
    echo.mute = False
    with dialled(proxy) as end:  # it was to happen once
        assert exchange(end, data) == data


def test_a_cut_after_nothing_lets_nothing_in(proxy, echo):
    proxy.cut(0, "reset", times=1)
    with pytest.raises(ConnectionResetError), dialled(proxy) as end:
        end.recv(1)
    assert noted(proxy, "cut") == [Incident(1, "cut", "up", 0)]
    with dialled(proxy) as end:
        assert exchange(end, b"x") == b"x"
    assert echo.received == [b"x"]


def test_more_bytes_than_that_do_not_go_up(proxy, echo):
    proxy.cut(100, direction="up")
    with dialled(proxy) as end:
        end.sendall(bytes(range(200)))
        noted(proxy, "ended", 2)
    assert echo.end_of(0)
    assert echo.received == [bytes(range(100))]


def test_exactly_so_many_bytes_come_down(proxy):
    proxy.cut(50, direction="down")
    with dialled(proxy) as end:
        end.sendall(bytes(range(200)))
        assert read(end, 200) == bytes(range(50))
    assert noted(proxy, "cut") == [Incident(1, "cut", "down", 50)]


def test_a_present_connection_is_counted_from_now_on(proxy, echo):
    with dialled(proxy) as old:
        assert exchange(old, bytes(1000)) == bytes(1000)
        proxy.cut(10, direction="up")
        with dialled(proxy) as new:
            for end in (old, new):
                end.sendall(bytes(11))
            noted(proxy, "cut", 2)
    assert set(noted(proxy, "cut", 2)) == {Incident(1, "cut", "up", 1010), Incident(2, "cut", "up", 10)}
    assert [echo.end_of(0), echo.end_of(1)]
    assert list(map(len, echo.received)) == [1010, 10]


def test_a_cut_after_nothing_more_happens_now(proxy):
    with dialled(proxy) as end:
        assert exchange(end, b"x") == b"x"
        proxy.cut(0)
        assert end.recv(1) == b""


def test_a_hanging_connection_goes_on_when_it_is_healed(proxy, echo):
    proxy.cut(5, "hang", times=1, direction="up")
    with dialled(proxy) as stuck, dialled(proxy) as free:
        stuck.sendall(b"0123456789")
        assert noted(proxy, "hung") == [Incident(1, "hung", "up", 5)]
        assert silent(stuck)
        assert echo.received[0] == b"01234"
        assert exchange(free, b"x") == b"x"
        proxy.heal()
        assert read(stuck, 10) == b"0123456789"


def test_drop_cuts_those_that_are_there(proxy, echo):
    with dialled(proxy) as old:
        assert exchange(old, b"abc") == b"abc"
        proxy.drop("reset")
        with pytest.raises(ConnectionResetError):
            old.recv(1)
        assert echo.end_of(0) == "reset"
        assert noted(proxy, "dropped", 2) == [Incident(1, "dropped", "up", 3), Incident(1, "dropped", "down", 3)]
    with dialled(proxy) as new:
        assert exchange(new, b"x") == b"x"


# --- time ---


def test_nothing_leaves_a_black_hole_until_it_is_healed(proxy, echo):
    with dialled(proxy) as old:
        assert exchange(old, b"x") == b"x"
        proxy.black_hole()
        old.sendall(b"held")
        with dialled(proxy) as new:  # the kernel accepts it, nobody answers
            new.sendall(b"held, too")
            assert silent(old)
            assert silent(new)
            assert [bytes(data) for data in echo.received] == [b"x"]
            proxy.heal()
            assert read(old, 4) == b"held"
            assert read(new, 9) == b"held, too"


def test_a_black_hole_of_one_direction(proxy, echo):
    with dialled(proxy) as end:
        proxy.black_hole(direction="down")
        end.sendall(b"x")
        assert proxy.wait_for(lambda: proxy.passed["up"] == 1, PATIENCE)
        assert silent(end)
        assert proxy.passed == {"up": 1, "down": 0}
        proxy.black_hole(False)
        assert end.recv(1) == b"x"


def test_a_black_hole_hides_that_an_end_is_gone(proxy, echo):
    proxy.black_hole()
    with dialled(proxy) as end:
        end.sendall(b"x")
    assert not proxy.wait_for(lambda: proxy.log, 0.2)
    assert echo.received == []
    proxy.heal()
    assert echo.end_of(0)
    assert echo.received == [b"x"]


def test_latency_holds_for_each_byte_but_not_for_each_piece(proxy):
    proxy.latency(0.3, direction="up")
    data = bytes(1 << 20)  # at least 16 pieces
    with dialled(proxy) as end:
        began = monotonic()
        assert exchange(end, data) == data
        assert 0.3 <= monotonic() - began < 2.0


def test_jitter_keeps_the_order(proxy):
    proxy.latency(0.02, 0.02)
    with dialled(proxy) as end:
        for number in range(20):
            end.sendall(struct.pack("i", number))
            proxy.wait_for(lambda number=number: proxy.passed["up"] > 4 * number - 16, PATIENCE)
        assert struct.unpack("20i", read(end, 80)) == tuple(range(20))


def test_bandwidth_is_a_bound(proxy):
    proxy.bandwidth(100_000, direction="up")
    with dialled(proxy) as end:
        began = monotonic()
        assert exchange(end, bytes(40_000)) == bytes(40_000)
        assert monotonic() - began >= 0.38


def test_slices_with_rests_between(proxy):
    proxy.slicer(10, 0.01, direction="down")
    with dialled(proxy) as end:
        began = monotonic()
        assert exchange(end, bytes(range(200))) == bytes(range(200))
        assert monotonic() - began >= 19 * 0.01


def test_an_end_hears_later_that_the_other_has_closed(proxy, echo):
    proxy.slow_close(0.3, direction="up")
    with dialled(proxy) as end:
        assert exchange(end, b"x") == b"x"
    began = monotonic()
    assert echo.end_of(0) == "close"
    assert monotonic() - began >= 0.29


def test_an_end_does_not_hear_of_it_while_half_open(proxy, echo):
    proxy.slow_close()
    with dialled(proxy) as end:
        assert exchange(end, b"x") == b"x"
    with echo.news:
        assert not echo.news.wait_for(lambda: echo.ended, 0.2)
    proxy.heal()
    assert echo.end_of(0)


# --- bits, and doors ---


def flipped(sent, got):
    """Return offset and mask of each byte that changed."""
    return [(at, a ^ b) for at, (a, b) in enumerate(zip(sent, got, strict=True)) if a != b]


def through(echo, seed, every=1000, size=70_500, **options):
    with Proxy(echo.address, seed=seed) as proxy, dialled(proxy) as end:
        proxy.flip(every, **options)
        changed = flipped(bytes(size), exchange(end, bytes(size)))
        return changed, [i.offset for i in proxy.log if i.what == "flipped"]


def test_one_bit_flips_in_each_run(echo):
    changed, logged = through(echo, seed=1, direction="up")
    assert [at // 1000 for at, _ in changed if at < 70_000] == list(range(70))
    assert all(math.log2(mask).is_integer() for _, mask in changed)
    assert [at for at, _ in changed] == logged
    assert len({at % 1000 for at, _ in changed}) > 30
    assert len({mask for _, mask in changed}) == 8


def test_the_seed_says_which_bits_flip(echo):
    first, again, other = (through(echo, seed, direction="down") for seed in (1, 1, 2))
    assert first == again != other


def test_flips_are_counted_from_now_on_and_end(proxy):
    with dialled(proxy) as end:
        assert exchange(end, bytes(500)) == bytes(500)
        proxy.flip(100, direction="up")
        changed = flipped(bytes(100), exchange(end, bytes(100)))
        assert len(changed) == 1
        proxy.heal()
        assert exchange(end, bytes(500)) == bytes(500)
    assert noted(proxy, "flipped") == [Incident(1, "flipped", "up", 500 + changed[0][0])]


def test_refused_and_welcome_again(proxy):
    with dialled(proxy) as old:
        assert exchange(old, b"x") == b"x"
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError), dialled(proxy):
            pass
        assert exchange(old, b"x") == b"x"
        proxy.heal()
        with dialled(proxy) as new:
            assert exchange(new, b"x") == b"x"
    assert proxy.connections == 2


# --- requests ---


SESSION = Session("run-1", "client-1", "token-1")
OTHER = Session("run-1", "client-2", "token-2")
HOLDS_THE_FIRST = 2  # a seed
SUBMIT = Submit(SESSION, "fit-1-0", 1, "attempt", "", 1, Manifest("raw", 4096, (3,)))


class Upstream:
    """A server whose answers tell which request they belong to."""

    def __init__(self, answer):
        self.answer, self.requests, self.lock = answer, [], threading.Lock()

    def __call__(self, request):
        with self.lock:
            self.requests.append((request.message, b"".join(map(bytes, request.body))))
            number = len(self.requests)
        future = Future()
        try:
            given = self.answer(number, request.message)
        except Exception as error:
            future.set_exception(error)
            return future
        if isinstance(given, Future):
            return given
        future.set_result(given if isinstance(given, Reply) else Reply(given))
        return future


@contextmanager
def doubled(answer, *args, **options):
    """Yield a connection that leads through a proxy to such a server, the server and the proxy."""
    wire, upstream = Memory(), Upstream(answer)
    with (
        wire.listen("", upstream) as listener,
        Doubling(wire, listener.address, *args, **options) as doubling,
        wire.connect(doubling.address) as connection,
    ):
        yield connection, upstream, doubling


ORDERS = pytest.mark.parametrize("order", ["sequence", "concurrent"])


@ORDERS
def test_every_request_is_made_twice_with_its_body(order):
    def answer(number, message):
        return Submitted(Outcome.ACCEPTED, "ACCEPTED") if isinstance(message, Submit) else BeatReply(True)

    with doubled(answer, order) as (connection, upstream, doubling):
        assert connection.request(SUBMIT, iter([b"a", b"bc"]), PATIENCE).message.counted
        assert connection.request(Beat(SESSION, Status.IDLE), timeout=PATIENCE).message == BeatReply(True)
        assert upstream.requests == 2 * [(SUBMIT, b"abc")] + 2 * [(Beat(SESSION, Status.IDLE), b"")]
        assert doubling.doubled == {"Submit": 1, "Beat": 1}


def test_in_sequence_the_second_waits_for_the_first():
    asked, first = threading.Event(), Future()

    def answer(number, message):
        asked.set()
        return first if number == 1 else Wait(number)

    with doubled(answer) as (connection, upstream, _):
        begun = threading.Thread(target=connection.request, args=(Pull(SESSION),))
        begun.start()
        assert asked.wait(PATIENCE)
        assert connection.request(Pull(OTHER), timeout=PATIENCE).message.round in (2, 3)
        assert [message.session for message, _ in upstream.requests] == [SESSION, OTHER, OTHER]
        first.set_result(Reply(Wait(1)))
        begun.join(PATIENCE)
        assert [message.session for message, _ in upstream.requests] == [SESSION, OTHER, OTHER, SESSION]


def test_at_the_same_time_the_second_waits_for_nobody():
    both = threading.Barrier(2)

    def answer(number, message):
        both.wait(PATIENCE)
        return BeatReply(True)

    with doubled(answer, "concurrent") as (connection, _, _):
        assert connection.request(Beat(SESSION, Status.IDLE), timeout=PATIENCE).message == BeatReply(True)


def test_the_seed_draws_which_reply_is_the_answer():
    def drawn(seed):
        with doubled(lambda number, _: Wait(number), seed=seed) as (connection, _, _):
            return [connection.request(Pull(SESSION), timeout=PATIENCE).message.round % 2 for _ in range(20)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert set(drawn(1)) == {0, 1}


@ORDERS
def test_who_registers_gets_the_session_that_lives(order):
    def answer(number, message):
        return Registered(Session("run-1", "client-1", f"token-{number}"), "safetensors", 1.0, 10.0)

    for seed in range(5):
        with doubled(answer, order, seed=seed) as (connection, _, _):
            assert connection.request(Register("client-1"), timeout=PATIENCE).message.session.token == "token-2"


def test_a_second_session_that_nobody_knows_of_is_an_error():
    def answer(number, message):
        if number == 2:
            raise ConnectionLost("no answer")
        return Registered(SESSION, "safetensors", 1.0, 10.0)

    with doubled(answer) as (connection, _, _), pytest.raises(ConnectionLost, match="no answer"):
        connection.request(Register("client-1"), timeout=PATIENCE)


@ORDERS
@pytest.mark.parametrize("failing", [{1}, {2}, {1, 2}])
def test_an_error_is_the_answer_if_there_is_no_other(order, failing):
    def answer(number, message):
        if number in failing:
            raise NotRegistered("who?")
        return Wait(7)

    for seed in range(5):
        with doubled(answer, order, seed=seed) as (connection, _, _):
            if len(failing) == 1:
                assert connection.request(Pull(SESSION), timeout=PATIENCE).message == Wait(7)
            else:
                with pytest.raises(NotRegistered, match="who"):
                    connection.request(Pull(SESSION), timeout=PATIENCE)


def test_a_body_can_be_fetched_behind_its_pull():
    task = Assigned(Task("fit-1-0", Kind.FIT, 1), Manifest("raw", 4096, (3,)))

    with doubled(lambda number, _: Reply(task, iter([b"a", b"bc"]))) as (connection, upstream, _):
        assert b"".join(connection.request(Pull(SESSION), timeout=PATIENCE).body) == b"abc"
        assert b"".join(connection.request(Fetch(SESSION, "fit-1-0", 3), timeout=PATIENCE).body) == b"abc"
        assert b"".join(connection.request(Fetch(SESSION, "fit-1-0", 3, 2), timeout=PATIENCE).body) == b"c"
        assert [type(message) for message, _ in upstream.requests] == [Pull, Pull]


def test_a_body_that_breaks_off_is_not_sent_on():
    def body():
        yield b"a"
        raise ConnectionLost("the upload broke off")

    with doubled(lambda number, _: Wait(number)) as (connection, upstream, _):
        with pytest.raises(ConnectionLost, match="broke off"):
            connection.request(SUBMIT, body(), PATIENCE)
        assert upstream.requests == []


def test_a_request_is_held_until_one_of_another_client_is_answered():
    here = threading.Event()

    def body():
        here.set()
        yield b"abc"

    with doubled(lambda *_: Wait(1), reorder=0.5, hold=PATIENCE, seed=HOLDS_THE_FIRST) as (connection, upstream, _):
        held = threading.Thread(target=connection.request, args=(SUBMIT, body()))
        held.start()
        assert here.wait(PATIENCE)
        connection.request(Pull(OTHER), timeout=PATIENCE)
        held.join(PATIENCE)
        assert not held.is_alive()
        assert [message.session for message, _ in upstream.requests] == [OTHER, OTHER, SESSION, SESSION]


def test_who_is_alone_is_held_only_for_a_while():
    with doubled(lambda number, _: Wait(number), reorder=1.0, hold=0.1) as (connection, _, _):
        began = monotonic()
        connection.request(Pull(SESSION), timeout=PATIENCE)
        assert monotonic() - began >= 0.1


def test_stop_cuts_off_what_is_in_progress():
    asked, failures = threading.Event(), []

    def answer(number, message):
        asked.set()
        return Future()

    def ask(connection):
        try:
            connection.request(Pull(SESSION))
        except ConnectionLost as error:
            failures.append(error)

    with doubled(answer) as (connection, _, doubling):
        thread = threading.Thread(target=ask, args=(connection,))
        thread.start()
        assert asked.wait(PATIENCE)
        doubling.stop()
        doubling.stop()
        thread.join(PATIENCE)
    assert len(failures) == 1


def test_there_are_two_orders():
    with pytest.raises(ConfigError, match="order"):
        Doubling(Memory(), "nowhere", "random")
