"""What one peer may cost the other: sizes, rates, streams at once and time, in one object for both ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedcore.values import check_number

_COUNTS = (
    "max_examples", "max_model_bytes", "max_tensors", "streams_per_client", "registrations_per_minute", "beats_per_second",
    "refusals_per_minute",
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What is taken from a peer, and how long it is waited for; checked from headers, before anything is allocated.

    Of a model that the server has, the Spec says it all: names, shapes, dtypes, the number of tensors and metrics, and so every
    length on the wire. These fields are about what it cannot say. All of them are a server's (``ServerConfig(limits=)``); a
    client (``start_client(limits=)``) heeds ``stall_timeout`` alone: what it takes, a :class:`~fedcore.SitePolicy` says.

    Attributes:
        max_examples: the largest ``num_examples`` that is believed. 2**30: a billion, with which exact sums still have room
            for thousands of clients.
        max_model_bytes: the largest model that is taken from a client when the strategy has none. 16 GiB.
        max_tensors: the most tensors such a model may have; 65,536: many times what is in use, and a second's work to check.
        upload_memory: bytes that updates may occupy together, from the first byte until they are summed up; those beyond it
            wait without holding memory. None: room for two of the model's size, and for 64 MiB of small ones. More helps where
            the clients' links are slow; a single update is taken in however large it is.
        resume_memory: bytes that what has come of updates that broke off may occupy together, beside ``upload_memory``. It is
            kept for one lease (``heartbeat_timeout``) and a client that comes back sends only the rest. None: half of what
            ``upload_memory`` comes to; 0: nothing is kept.
        streams_per_client: downloads that one client may have under way at once, and as many uploads. Of two uploads for one
            task the newer one takes the other's place; whatever else is beyond it is refused until later. 2: one, and one that
            broke off without a word.
        registrations_per_minute: how often a client may register, beyond ten times in a row; one that comes more often is
            told to come later. Names that were never heard of may together a hundred times as often, beyond 10,000 in a row.
        beats_per_second: how often a client may send a heartbeat, beyond five seconds' worth in a row. 10: fifty times as
            often as it is asked to by default.
        refusals_per_minute: how often a peer, known by its address, is told and the log is told why something was refused that
            it may not do, beyond ten times in a row. Those beyond are refused without a reason and counted.
        stall_timeout: seconds a stream may go without a chunk before it is ended, by either side. 30.
        least_rate: bytes a second that a stream must move at, over ``stall_timeout`` seconds of waiting for the client; time
            in which the server is busy, or the stream waits for its turn, does not count. 256: gRPC's chunks of 64 KiB or more,
            one in each ``stall_timeout``, ask for more than that until ``stall_timeout`` is above four minutes. 0: any rate.

    Raises:
        ConfigError: a value cannot be one; the message names the field.
    """

    max_examples: int = 1 << 30
    max_model_bytes: int = 16 << 30
    max_tensors: int = 1 << 16
    upload_memory: int | None = None
    resume_memory: int | None = None
    streams_per_client: int = 2
    registrations_per_minute: int = 60
    beats_per_second: int = 10
    refusals_per_minute: int = 60
    stall_timeout: float = 30.0
    least_rate: int = 256

    def __post_init__(self) -> None:
        for name in _COUNTS:
            self._require(name, 1)
        for name, least in (("upload_memory", 1), ("resume_memory", 0)):
            if getattr(self, name) is not None:
                self._require(name, least)
        self._require("least_rate", 0)
        check_number("Limits.stall_timeout", self.stall_timeout, float, math.ulp(0.0))

    def _require(self, name: str, least: int) -> None:
        check_number(f"Limits.{name}", getattr(self, name), int, least)
