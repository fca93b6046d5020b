"""What one client may have at once and how often it may come: more of it is refused, and nobody else feels it."""

import logging
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import replace

import grpc
import pytest
import torch

from fedcore import Client, FedAvg, Grpc, Limits, Memory, Server, ServerConfig, start_client
from fedcore.broadcast import encode
from fedcore.codecs.safetensors import Safetensors
from fedcore.errors import ConnectionLost, DeadlineExceeded, FedcoreError, Fenced, TooMany, TooOften, Unauthenticated
from fedcore.events import AccessRefused
from fedcore.messages import Assigned, Beat, Fetch, Outcome, Pull, Register, Status, StatusQuery, Submit
from fedcore.parameters import Spec
from fedcore.security import Identity, Role
from fedcore.testing import FakeClock
from fedcore.transport import leave
from fedcore.transports.grpc import TransferPolicy, wire
from fedcore.transports.grpc.client import SERVICE

MIB = 1 << 20
MODEL = {"w": torch.zeros(2 * MIB)}  # 8 MiB: more than a connection holds that nobody reads
SPEC = Spec.of(MODEL)
PATIENCE = 20.0
WIRES = {"memory": Memory, "stream": lambda: Grpc(transfer=TransferPolicy(mode="stream"), chunk_bytes=MIB // 4)}


@pytest.fixture(params=WIRES)
def through(request):
    return WIRES[request.param]()


def serve(through, clients=2, limits=Limits(), model=MODEL, **options):
    config = ServerConfig(num_rounds=1, stop_grace=0, start_wait=0, limits=limits)
    strategy = FedAvg(model, min_fit_clients=clients, clients_per_round=clients)
    return Server(through.anywhere, config=config, strategy=strategy, transport=through, **options)


class Hand:
    """A client by hand."""

    def __init__(self, through, server, name):
        self.connection = through.connect(server.address)
        self.session = self.connection.request(Register(name, accepts=("safetensors",))).message.session

    def pull(self):
        reply = self.connection.request(Pull(self.session, PATIENCE), timeout=PATIENCE)
        assert isinstance(reply.message, Assigned)
        self.task, self.total = reply.message.task, reply.message.manifest.total_bytes
        return self

    def begin(self):
        """Begin to download the model, and return what is to come of it."""
        body = iter(self.connection.request(Fetch(self.session, self.task.id, self.total)).body)
        next(body)
        return body

    def submit(self, attempt="1", spoil=lambda body: body):
        payload = encode(MODEL, SPEC, Safetensors(), MIB)
        header = Submit(self.session, self.task.id, 1, attempt, self.task.base_digest, 1, payload.manifest)
        return self.connection.request(header, spoil(payload.body), timeout=PATIENCE).message


def soon(holds):
    """Wait until something holds, for as long as that makes sense."""
    pause, end = threading.Event(), time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        pause.wait(0.01)


class TestStreams:
    def test_m5_a_hundred_downloads_of_one_client(self, through):
        with serve(through) as server, ExitStack() as open_:
            a, b = (Hand(through, server, name) for name in "ab")
            for hand in (a, b):
                open_.callback(hand.connection.close)
                hand.pull()
            bodies, refused = [], []
            for _ in range(100):
                try:
                    bodies.append(a.begin())
                except TooMany as error:
                    refused.append(error)
            assert len(bodies) == 2
            assert {(error.reason, error.retry_after) for error in refused} == {("QUOTA", 1.0)}
            assert sum(memoryview(part).nbytes for part in b.begin()) > SPEC.nbytes // 2  # others get theirs
            leave(bodies[0])
            soon(lambda: len(server.hub.tasks.downloads) == 1)
            again = a.begin()
            assert sum(memoryview(part).nbytes for part in again) > SPEC.nbytes // 2
            leave(bodies[1])
            soon(lambda: len(server.hub.tasks.downloads) == 0)

    def test_m5_answers_in_one_message_count_until_they_are_taken(self):
        """What is put together for a client that does not read it would be a model each time."""
        through = Grpc(transfer=TransferPolicy(threshold_bytes=16 * MIB, mode="unary"))
        with serve(through, clients=1) as server, through.connect(server.address) as connection:
            session = connection.request(Register("a", accepts=("safetensors",))).message.session
            assert isinstance(connection.request(Pull(session, PATIENCE)).message, Assigned)
            soon(lambda: len(server.hub.tasks.downloads) == 0)
            pull = wire.pack_pull(Pull(session, 0.0), stream=False).SerializeToString()
            with grpc.insecure_channel(server.address, [("grpc.max_receive_message_length", 16 * MIB)]) as other:
                calls = [other.unary_stream(f"/{SERVICE}/GetGlobalModel")(pull) for _ in range(2)]  # read message by message
                soon(lambda: len(server.hub.tasks.downloads) == 2)
                with pytest.raises(TooMany, match="client 'a' has 2 downloads under way"):
                    connection.request(Pull(session, PATIENCE))
                for call in calls:
                    call.cancel()
                soon(lambda: len(server.hub.tasks.downloads) == 0)
            assert isinstance(connection.request(Pull(session, PATIENCE)).message, Assigned)

    def test_k13_twelve_uploads_of_one_client(self, through):
        """The newest two stay: who comes back over a new connection must not wait until the old one is known to be dead."""
        gate, outcomes, news = threading.Event(), [], threading.Condition()

        def held(body):
            gate.wait(PATIENCE)
            yield from body

        def send(number):
            try:
                said = a.submit("same", held).outcome
            except FedcoreError as error:
                said = error
            with news:
                outcomes.append(said)
                news.notify_all()

        room = Limits(upload_memory=20 * SPEC.nbytes)  # in memory nobody can interrupt who reads from the client's own code
        with serve(through, limits=room) as server:
            a, b = (Hand(through, server, name) for name in "ab")
            a.pull()
            b.pull()
            threads = [threading.Thread(target=send, args=(number,)) for number in range(12)]
            for thread in threads:
                thread.start()
            with news:
                assert news.wait_for(lambda: len(outcomes) == 10, PATIENCE)
            refused = list(outcomes)
            assert len(server.hub.uploads.streams) == 2
            assert {(type(error), error.reason, error.retry_after) for error in refused} == {(TooMany, "QUOTA", 1.0)}
            assert b.submit().outcome is Outcome.ACCEPTED  # others get theirs
            gate.set()
            for thread in threads:
                thread.join(PATIENCE)
            assert set(outcomes[10:]) <= {Outcome.ACCEPTED, Outcome.DUPLICATE}
            history, _ = server.wait(PATIENCE)
            soon(lambda: len(server.hub.uploads.streams) == 0)
            for hand in (a, b):
                hand.connection.close()
        assert history.rounds[0].accepted == ["a", "b"]

    def test_of_two_uploads_for_one_task_the_newer_one_counts(self, through):
        dead = threading.Event()

        def lost(body):
            yield body[0]
            dead.set()
            over.wait(PATIENCE)
            raise ConnectionLost("nobody sends this any more")

        over, errors = threading.Event(), []

        def send():
            try:
                a.submit("old", lost)
            except FedcoreError as error:
                errors.append(error)

        with serve(through, clients=1, limits=Limits(streams_per_client=1)) as server:
            a = Hand(through, server, "a").pull()
            thread = threading.Thread(target=send)
            thread.start()
            assert dead.wait(PATIENCE)
            assert a.submit("new").outcome is Outcome.ACCEPTED
            over.set()
            thread.join(PATIENCE)
            a.connection.close()
        assert [type(error) for error in errors] == [TooMany]

    @pytest.mark.parametrize("most", [1, 5])
    def test_the_number_is_the_configured_one(self, through, most):
        with serve(through, clients=1, limits=Limits(streams_per_client=most)) as server:
            a = Hand(through, server, "a").pull()
            bodies = [a.begin() for _ in range(most)]
            with pytest.raises(TooMany, match=f"has {most} downloads under way"):
                a.begin()
            for body in bodies:
                leave(body)
            a.connection.close()

    def test_a_client_that_is_refused_tries_again_by_itself(self):
        """Its downloads are taken by somebody who does not read them, and let go after a while."""

        class Adds(Client):
            def get_parameters(self):
                raise AssertionError("the server has a model")

            def fit(self, parameters, config):
                return parameters, 1

        through = WIRES["stream"]()
        with serve(through, clients=1, limits=Limits(streams_per_client=1)) as server:
            with through.connect(server.address) as thief:
                process = "same"
                session = thief.request(Register("a", accepts=("safetensors",), instance=process)).message.session
                assigned = thief.request(Pull(session, PATIENCE)).message
                body = iter(thief.request(Fetch(session, assigned.task.id, assigned.manifest.total_bytes)).body)
                next(body)
                timer = threading.Timer(0.5, lambda: leave(body))
                timer.start()
                start_client(server.address, Adds(), "a", transport=through, patience=PATIENCE)
                timer.join()
            history, _ = server.wait(PATIENCE)
        assert history.rounds[0].accepted == ["a"]


class TestBeats:
    def site(self, rate=10):
        clock = FakeClock(100.0)
        server = serve(Memory(), limits=Limits(beats_per_second=rate), model={"w": torch.zeros(3)}, clock=clock)
        return server, clock

    def passes(self, connection, session, times):
        passed = 0
        for _ in range(times):
            with suppress(TooOften):
                passed += connection.request(Beat(session, Status.IDLE)).message.acknowledged
        return passed

    @pytest.mark.parametrize("rate", [10, 2])
    def test_b4_ten_thousand_beats(self, rate):
        server, clock = self.site(rate)
        with server, Memory().connect(server.address) as connection:
            a, b = (connection.request(Register(name, accepts=("safetensors",))).message.session for name in "ab")
            assert self.passes(connection, a, 10_000) == 5 * rate
            with pytest.raises(TooOften, match=f"client 'a' beats too often; it may again in {1 / rate:.1f} s") as caught:
                connection.request(Beat(a, Status.IDLE))
            assert (caught.value.reason, caught.value.retry_after) == ("RATE", pytest.approx(1 / rate))
            assert self.passes(connection, b, 5 * rate) == 5 * rate  # each client has its own
            clock.advance(1.0)
            assert self.passes(connection, a, 1000) == rate
            clock.advance(5.0)
            assert self.passes(connection, a, 1000) == 5 * rate

    def test_b4_who_does_not_have_the_session_does_not_use_it_up(self):
        server, _ = self.site()
        with server, Memory().connect(server.address) as connection:
            a = connection.request(Register("a", accepts=("safetensors",))).message.session
            for _ in range(100):
                with pytest.raises(Fenced):
                    connection.request(Beat(replace(a, token="guessed"), Status.IDLE))
            assert self.passes(connection, a, 50) == 50

    def test_b4_the_status_is_resource_exhausted(self):
        with serve(Grpc(), limits=Limits(beats_per_second=1)) as server, Grpc().connect(server.address) as connection:
            a = connection.request(Register("a", accepts=("safetensors",))).message.session
            beat = wire.pack_beat(Beat(a, Status.IDLE)).SerializeToString()
            with grpc.insecure_channel(server.address) as channel:
                calls = [channel.unary_unary(f"/{SERVICE}/Heartbeat").future(beat) for _ in range(50)]
                codes = [call.code() for call in calls]
        assert 5 <= codes.count(grpc.StatusCode.OK) <= 8
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}


class Strangers(Memory):
    """Peers are who the test says."""

    def __init__(self):
        super().__init__()
        self.peer = Identity()

    def listen(self, address, handler, limits=Limits()):
        return super().listen(address, lambda request: handler(replace(request, peer=self.peer)), limits)


class TestRefusals:
    def ask(self, peers, connection, peer, times=1):
        """Ask many times; return how often that was refused for want of a right, and for coming too often."""
        peers.peer, kinds = peer, []
        for _ in range(times):
            with pytest.raises(FedcoreError) as caught:
                connection.request(StatusQuery())
            kinds.append(type(caught.value))
        return kinds.count(Unauthenticated), kinds.count(TooOften)

    @pytest.mark.parametrize("a_minute", [60, 600])
    def test_g13_a_thousand_refusals_a_second(self, caplog, a_minute):
        peers, clock, events = Strangers(), FakeClock(100.0), []
        limits, model = Limits(refusals_per_minute=a_minute), {"w": torch.zeros(3)}
        server = serve(peers, limits=limits, model=model, clock=clock, observers=[events.append])
        with server, peers.connect(server.address) as connection:
            evil, other = (Identity(f"ipv4:10.0.0.{number}:4711", role=Role.ANONYMOUS) for number in (6, 7))
            assert self.ask(peers, connection, evil, 1000) == (10, 990)
            assert self.ask(peers, connection, replace(evil, address="ipv4:10.0.0.6:4712"), 10) == (0, 10)  # the same machine
            assert self.ask(peers, connection, other, 10) == (10, 0)
            for _ in range(100):  # honest peers behind the same address are served as ever
                peers.peer = Identity("ipv4:10.0.0.6:5", "the-operator", Role.OPERATOR)
                assert connection.request(StatusQuery()).message.phase == "waiting"
            clock.advance(1.0)
            assert self.ask(peers, connection, evil, 1000) == (min(10, a_minute // 60), 1000 - min(10, a_minute // 60))
            server.hub.flush_events()
        lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert [line.partition(": ")[0] for line in lines] == [
            "refused StatusQuery of somebody at ipv4:10.0.0.6:4711", "refused StatusQuery of somebody at ipv4:10.0.0.7:4711",
            "refused StatusQuery of somebody at ipv4:10.0.0.6:4711",
        ]  # fmt: skip
        assert [line.rpartition("(")[2].split()[0] for line in lines[1:]] == ["1009", "9"]  # more, which are not in the log
        assert sum(isinstance(event, AccessRefused) for event in events) == 2020  # whoever counts them has them all

    def test_g13_it_is_told_when_to_come_again(self):
        peers, evil = Strangers(), Identity("ipv6:%5B2001:db8::1%5D:4711", role=Role.ANONYMOUS)
        server = serve(peers, model={"w": torch.zeros(3)}, clock=FakeClock(100.0))
        with server, peers.connect(server.address) as connection:
            assert self.ask(peers, connection, evil, 10) == (10, 0)
            with pytest.raises(TooOften, match=r"you may ask again in 1\.0 s") as caught:
                connection.request(StatusQuery())
        assert (caught.value.reason, caught.value.retry_after) == ("RATE", 1.0)


class TestLeastRate:
    """Chunks that come too slowly all together, though each of them is well within ``stall_timeout``."""

    SLOW = Limits(stall_timeout=0.6, least_rate=100 * MIB)

    def test_k12_an_upload_that_crawls_is_ended(self):
        through = Grpc(transfer=TransferPolicy(mode="stream"), chunk_bytes=1 << 16)
        pause, sent = threading.Event(), []

        def crawl(body):
            whole = b"".join(body)
            for start in range(0, len(whole), 1 << 16):
                pause.wait(0.05)
                sent.append(start)
                yield whole[start : start + (1 << 16)]

        with serve(through, clients=1, limits=self.SLOW) as server:
            a = Hand(through, server, "a").pull()
            with pytest.raises(DeadlineExceeded, match=r"bytes moved in 1 s, less than Limits\.least_rate") as caught:
                a.submit(spoil=crawl)
            assert caught.value.reason == "STALLED_STREAM"
            assert len(sent) < 100  # of 129, which would take six seconds
            soon(lambda: len(server.hub.uploads.streams) == 0)
            assert a.submit().outcome is Outcome.ACCEPTED  # at full speed it is taken
            a.connection.close()

    def test_the_turn_that_an_upload_waits_for_does_not_count(self):
        through = Grpc(transfer=TransferPolicy(mode="stream"), chunk_bytes=MIB // 4)
        limits = Limits(stall_timeout=1.0, least_rate=MIB // 8, upload_memory=SPEC.nbytes)
        reading, over = threading.Event(), threading.Event()

        def slow(body):
            """Take longer than the stall timeout as a whole."""
            whole = b"".join(body)
            for start in range(0, len(whole), MIB // 4):
                reading.set()
                over.wait(0.05)
                yield whole[start : start + MIB // 4]

        with serve(through, limits=limits) as server:
            hands = [Hand(through, server, name) for name in "ab"]
            first, second = (hand.pull() for hand in hands)
            counted = []
            thread = threading.Thread(target=lambda: counted.append(first.submit(spoil=slow).outcome))
            thread.start()
            assert reading.wait(PATIENCE)
            assert second.submit().outcome is Outcome.ACCEPTED
            thread.join(PATIENCE)
            assert counted == [Outcome.ACCEPTED]
            for hand in hands:
                hand.connection.close()
