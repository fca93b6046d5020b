"""What a client sends up: encoded once for each time it trained, and the same bytes however often they are sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

from fedcore.broadcast import Payload, encode
from fedcore.codec import Base, Codec
from fedcore.messages import Session, Submit, Submitted, Task
from fedcore.parameters import Parameters, Spec
from fedcore.shards import SHARD_BYTES


@dataclass(frozen=True)
class Parcel:
    """An answer to a task, ready to be sent."""

    task: Task
    attempt: str
    num_examples: int
    metrics: Mapping[str, float]
    payload: Payload
    feedback: dict[str, object]

    def header(self, session: Session) -> Submit:
        """Return what goes before its body under a session."""
        return Submit(
            session, self.task.id, self.task.round, self.attempt, self.task.base_digest, self.num_examples,
            self.payload.manifest, self.metrics,
        )  # fmt: skip


class Outbox:
    """Packs answers, and keeps the last one where the server may ask for it again.

    Args:
        instance: names the process; attempts are named after it.
    """

    def __init__(self, instance: str):
        self._instance, self._numbers = instance, count(1)
        self._feedback: dict[str, object] = {}
        self._kept: Parcel | None = None

    def pack(
        self,
        task: Task,
        spec: Spec,
        parameters: Parameters,
        num_examples: int,
        metrics: Mapping[str, float],
        *,
        codec: Codec | None,
        base: Base | None,
        keeps: bool,
    ) -> Parcel:
        """Encode an answer.

        Args:
            task: what it answers.
            spec: what it looks like.
            parameters: the tensors; the parcel may hold views of them, unless it ``keeps`` a copy.
            num_examples: their weight.
            metrics: what the client measured.
            codec: what to encode with; None hands the tensors over as they are.
            base: the model that was received, for codecs that send differences; of what is one itself they send it to zeros.
            keeps: whether the server may ask for it again when the client has gone on.
        """
        self._kept, feedback = None, dict(self._feedback)
        if task.difference:
            base = Base.zero(spec) if codec is not None and codec.uses_base else None
        own = spec.copy(parameters) if keeps else parameters
        payload = encode(own, spec, codec, SHARD_BYTES, base=base, state=feedback)
        return Parcel(task, f"{self._instance}-{next(self._numbers)}", num_examples, metrics, payload, feedback)

    def settle(self, parcel: Parcel, submitted: Submitted, *, keeps: bool) -> None:
        """Take note of what became of a parcel: what was lost of an update that does not count is lost with it."""
        if submitted.counted:
            self._feedback = parcel.feedback
        self._kept = parcel if submitted.counted and keeps else None

    def answer_to(self, task: Task) -> Parcel | None:
        """Return the answer to a task that was given before and is asked for again."""
        kept = self._kept
        asked = kept is not None and (kept.task.id, kept.task.base_digest) == (task.id, task.base_digest)
        return kept if asked else None
