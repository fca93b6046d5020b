"""The conformance suite of transports, as a plain function."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from fedcore.errors import (
    AddressError,
    ChecksumError,
    ConnectionLost,
    DeadlineExceeded,
    FedcoreError,
    Fenced,
    NotRegistered,
    SchemaMismatch,
)
from fedcore.messages import (
    Act,
    Answer,
    Assigned,
    AuditPage,
    AuditQuery,
    Beat,
    BeatReply,
    ClientStatus,
    Command,
    Committed,
    Directive,
    Done,
    Fetch,
    Finished,
    Kind,
    Manifest,
    Message,
    ModelQuery,
    Outcome,
    Pull,
    Register,
    Registered,
    Rest,
    ServerStatus,
    Session,
    Status,
    StatusQuery,
    Submit,
    Submitted,
    Task,
    TensorInfo,
    Traffic,
    Wait,
)
from fedcore.transport import Buffer, Connection, Reply, Request, Transport, behind
from fedcore.values import Value

_SESSION = Session("run-1", "client-1", "token-1")
_CONFIG: dict[str, Value] = {
    "flag": True, "count": 1, "big": -(1 << 62), "rate": 0.1, "whole": 1.0, "inf": float("inf"), "name": "größe",
    "raw": b"\x00\xff", "empty": "", "list": [1, 2.5, "x", False, b""],
}  # fmt: skip
_TENSORS = (TensorInfo("w", "float32", (2, 3)), TensorInfo("n", "int64", ()), TensorInfo("v", "float32", (2, 3), "w"))
_SIZES = (0, 1, 1000, (1 << 20) - 1, 1 << 20, (3 << 20) + 17)


def check_transport(make: Callable[[], Transport], *, patience: float = 10.0) -> None:
    """Check that a transport keeps the promises of :class:`~fedcore.transport.Transport`.

    Args:
        make: builds the transport.
        patience: seconds to wait for what must happen.

    Raises:
        AssertionError: it does not; the message says which promise.
    """
    for check in (_messages, _bodies, _errors, _outcomes, _parking, _absence, _closing):
        check(make(), patience)


@contextmanager
def _served(transport: Transport, answer: Callable[[Request], Reply | Future[Reply]]) -> Iterator[tuple[str, Connection]]:
    def handler(request: Request) -> Future[Reply]:
        future: Future[Reply] = Future()
        try:
            given = answer(request)
        except FedcoreError as error:
            future.set_exception(error)
            return future
        if isinstance(given, Future):
            return given
        future.set_result(given)
        return future

    with transport.listen(transport.anywhere, handler) as listener, transport.connect(listener.address) as connection:
        yield listener.address, connection


def _messages(transport: Transport, patience: float) -> None:
    manifest = Manifest("safetensors+lz4", 4096, (0,), "d" * 64, _TENSORS, "c" * 64)
    submit = Submit(_SESSION, "fit-1-0", 1, "attempt", "b" * 64, 7, manifest, {"loss": 0.5})
    clients = (ClientStatus("client-1", Status.TRAINING, 1, 2, 3, 0.5, Traffic(6, 7, 8, 9)),)
    status = ServerStatus("run-1", "waiting", 1, 0, 3, 0, 2, "torch", 1.5, clients, {"loss": 0.25}, Traffic(1, 2, 3, 4), 1)
    exchanges: list[tuple[Message, Answer]] = [
        (Register("client-1", "torch", ("a", "b"), True), Registered(_SESSION, "safetensors", 2.5, 300.0, "delta")),
        (Pull(_SESSION, 1.5, "c" * 64), Wait(3)),
        (Pull(_SESSION), Finished("done")),
        (Pull(_SESSION), Assigned(Task("fit-1-0", Kind.FIT, 1, "b" * 64, _CONFIG, _TENSORS[:1]), manifest)),
        (submit, Submitted(Outcome.ACCEPTED, "ACCEPTED", "", 1, Directive.STOP)),
        (submit, Submitted(Outcome.DUPLICATE, "DUPLICATE", "counted before", 2)),
        (Beat(_SESSION, Status.ERROR, 1, 2, 3, "fit-1-0", "boom"), BeatReply(True, Directive.ABORT_TASK, "late")),
        (StatusQuery(), status),
        (ModelQuery(), Committed(7, manifest)),
        (AuditQuery(1 << 40), AuditPage(b"one line\nand one\n", 1 << 41)),
        (Command(Act.EVICT, "client-1", "because", False), Done("done")),
    ]
    seen: list[Request] = []
    pending = iter([answer for _, answer in exchanges])

    def answer(request: Request) -> Reply:
        seen.append(request)
        return Reply(next(pending))

    with _served(transport, answer) as (_, connection):
        for message, expected in exchanges:
            reply = connection.request(message, timeout=patience)
            _claim(seen[-1].message == message, f"{message} arrived as {seen[-1].message}")
            _claim(reply.message == expected, f"{expected} came back as {reply.message}")
            if isinstance(reply.message, Assigned):
                sent, got = _CONFIG, reply.message.task.config
                same = all(type(got[key]) is type(sent[key]) for key in sent)
                _claim(same and got == sent, f"the types in a config changed: {got}")


def _bodies(transport: Transport, patience: float) -> None:
    data = bytes(range(256)) * ((4 << 20) // 256)
    received: list[bytes] = []

    def answer(request: Request) -> Reply | Future[Reply]:
        message = request.message
        if isinstance(message, Submit):
            return pool.submit(_read, request)
        size = message.total_bytes if isinstance(message, ModelQuery) else int(message.session.token)  # type: ignore[union-attr]
        body: list[Buffer] = [data[: size // 3], memoryview(data)[size // 3 : size]]
        if isinstance(message, Fetch | ModelQuery):
            return Reply(Rest(size), behind(body, message.offset))
        return Reply(Assigned(Task(f"size-{size}", Kind.FIT, 1), Manifest("raw", 4096, (size,))), body)

    def _read(request: Request) -> Reply:
        known = int(request.message.attempt_id)  # type: ignore[union-attr]
        received.append(b"".join(bytes(part) for part in behind(request.body, known)))
        return Reply(Submitted(Outcome.ACCEPTED, "ACCEPTED"))

    with ThreadPoolExecutor(2) as pool, _served(transport, answer) as (_, connection):
        for size in _SIZES:
            session = Session("run-1", "client-1", str(size))
            reply = connection.request(Pull(session), timeout=patience)
            _claim(b"".join(bytes(part) for part in reply.body) == data[:size], f"a download of {size} bytes changed")
            for known in {0, size // 2, size - 1, size} - {-1}:
                for ask in (Fetch(session, f"size-{size}", size, known), ModelQuery("d" * 64, size, known)):
                    rest = connection.request(ask, timeout=patience)
                    got = b"".join(bytes(part) for part in rest.body)
                    same = rest.message == Rest(size) and got == data[known:size]
                    _claim(same, f"a download changed behind {known} bytes of {size}")
                submit = Submit(session, "t", 1, str(known), "", 1, Manifest("raw", 4096, (size,)))
                up: list[Buffer] = [data[: size // 2], memoryview(data)[size // 2 : size]]
                connection.request(submit, up, timeout=patience)
                _claim(received[-1] == data[known:size], f"an upload changed behind {known} bytes of {size}")


def _errors(transport: Transport, patience: float) -> None:
    errors = [NotRegistered("who?"), Fenced("newer"), SchemaMismatch("tensor 'w'"), ChecksumError("bits"), AddressError("x")]
    for error in errors:

        def answer(_: Request, error: FedcoreError = error) -> Reply:
            raise error

        with _served(transport, answer) as (_, connection):
            for message in (Beat(_SESSION, Status.IDLE), Pull(_SESSION), Register("client-1")):
                got = _raised(lambda message=message: connection.request(message, timeout=patience))  # type: ignore[misc]
                _claim(type(got) is type(error), f"{error!r} came back as {got!r}")
                _claim(str(error) in str(got), f"the text of {error!r} was lost: {got}")


def _outcomes(transport: Transport, patience: float) -> None:
    submit = Submit(_SESSION, "t", 1, "a", "", 1, Manifest("raw", 4096, (3 << 20,)))
    for outcome in Outcome:
        expected = Submitted(outcome, outcome.name, "because", 4, Directive.CONTINUE)
        with _served(transport, lambda _, expected=expected: Reply(expected)) as (_, connection):  # type: ignore[misc]
            reply = connection.request(submit, [bytes(3 << 20)], timeout=patience)  # nobody reads the body
            _claim(reply.message == expected, f"{expected} came back as {reply.message}")


def _parking(transport: Transport, patience: float) -> None:
    parked: list[Future[Reply]] = []

    def answer(request: Request) -> Reply | Future[Reply]:
        if isinstance(request.message, Pull):
            parked.append(Future())
            return parked[-1]
        return Reply(BeatReply(True))

    waiting = 50
    with _served(transport, answer) as (_, connection), ThreadPoolExecutor(waiting) as pool:
        pulls = [pool.submit(connection.request, Pull(_SESSION, 60.0)) for _ in range(waiting)]
        while len(parked) < waiting:
            reply = connection.request(Beat(_SESSION, Status.WAITING), timeout=patience)
            _claim(reply.message == BeatReply(True), "a heartbeat got no answer while pulls were parked")
        for future in parked:
            future.set_result(Reply(Wait(9)))
        _claim(all(pull.result(patience).message == Wait(9) for pull in pulls), "a parked pull got no answer")


def _absence(transport: Transport, patience: float) -> None:
    never: Future[Reply] = Future()
    with _served(transport, lambda _: never) as (address, connection):
        late = _raised(lambda: connection.request(Beat(_SESSION, Status.IDLE), timeout=0.05))
        _claim(isinstance(late, DeadlineExceeded), f"an answer that is late raised {late!r}")
        taken = _raised(lambda: transport.listen(address, lambda _: never))
        _claim(isinstance(taken, AddressError), f"listening twice at {address} raised {taken!r}")
    gone = _raised(lambda: connection.request(Beat(_SESSION, Status.IDLE), timeout=patience))
    _claim(isinstance(gone, ConnectionLost), f"a closed connection raised {gone!r}")
    with transport.connect(address) as stranger:
        alone = _raised(lambda: stranger.request(Beat(_SESSION, Status.IDLE), timeout=patience))
        _claim(isinstance(alone, ConnectionLost), f"a request to nobody raised {alone!r}")


def _closing(transport: Transport, patience: float) -> None:
    arrived = threading.Event()

    def answer(_: Request) -> Future[Reply]:
        arrived.set()
        return Future()

    with _served(transport, answer) as (_, connection), ThreadPoolExecutor(1) as pool:
        pull = pool.submit(connection.request, Pull(_SESSION, 60.0))
        arrived.wait(patience)
        connection.close()
        cut = _raised(lambda: pull.result(patience))
        _claim(isinstance(cut, ConnectionLost), f"closing a connection in use raised {cut!r}")


def _raised(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the caller judges it
        return error
    return None


def _claim(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(f"not a conforming transport: {otherwise}")
