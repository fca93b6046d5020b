"""The body of a task on its way down: where it breaks off, the rest is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fedcore.errors import FedcoreError, Incomplete, SessionError
from fedcore.failpoints import reach
from fedcore.retry import Trial
from fedcore.transport import Body, Buffer, leave

_PULL_AGAIN = ("NOT_SELECTED", "BAD_OFFSET")  # the task, or its body, is another one now


class Download:
    """A body that is read to its end, over as many connections as it takes.

    Args:
        body: as it began.
        rest: asks for what is behind an offset.
        trial: how often it may break off.
    """

    def __init__(self, body: Body, rest: Callable[[int], Body], trial: Trial):
        self._body, self._rest, self._trial = body, rest, trial

    def __iter__(self) -> Iterator[Buffer]:
        received = 0
        reach("fetch.start")
        while True:
            parts = iter(self._body)
            try:
                for buffer in parts:
                    yield buffer
                    received += memoryview(buffer).nbytes
                    self._trial.succeeded()
                return
            except FedcoreError as error:
                self._go_on_after(error, received)
            finally:
                leave(parts)

    def _go_on_after(self, error: FedcoreError, received: int) -> None:
        wait = not isinstance(error, SessionError)  # the session is old: who asks again registers again
        while True:
            if error.reason in _PULL_AGAIN:
                raise Incomplete(f"the download cannot go on: {error}") from error
            if wait:
                self._trial.failed(error)
            wait = True
            try:
                self._body = self._rest(received)
                return
            except FedcoreError as again:
                error = again
