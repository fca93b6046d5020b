"""What a server notes while a run goes on, and takes up again when it starts: in a state directory, or nowhere.

The order is the promise. An update is on the disk and in the ledger before its client is told that it counts; which updates
a closed round is made of, before they are made into a model; a model, before anybody is sent it or told of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedcore import events as ev
from fedcore.aggregator import Update
from fedcore.blobs import SHARD_BYTES
from fedcore.broadcast import Payload, encode
from fedcore.codec import Codec
from fedcore.database import damaged
from fedcore.errors import StateError
from fedcore.ledger import Entry, Ledger, Page
from fedcore.messages import Kind, Manifest, Traffic
from fedcore.packing import pack, unpack
from fedcore.parameters import Parameters, Spec
from fedcore.rounds import REMEMBERED
from fedcore.rows import understood

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Past:
    """A run as it was when it was interrupted.

    Attributes:
        run_id: its name.
        facts: what was noted when it began.
        parameters: the last model that could be read.
        spec: what it looks like.
        digest: of it.
        number: of the round that was open, or is next.
        outcomes: of the rounds before: the seconds of each that made a model, None for those that made none or lost it.
        page: the round that was open or closed, if one was.
        entries: its updates.
        events: what happened in the rounds before, and which updates the round has.
        memory: what the strategy remembered.
        clients: the processes of each client, the newest last.
        unmeasured: the rounds of late whose models may not have been evaluated.
        made: the round that made the last model that could be read; 0: it is the first.
        spent: seconds that all rounds took together.
        recent: the updates of the last rounds that are over; whoever sends one again hears that it counts.
    """

    run_id: str
    facts: Mapping[str, Any]
    parameters: Parameters
    spec: Spec
    digest: str
    number: int
    outcomes: tuple[float | None, ...]
    page: Page | None
    entries: list[Entry]
    events: tuple[ev.Event, ...]
    memory: dict[str, Any]
    clients: dict[str, list[str]] = field(default_factory=dict)
    unmeasured: tuple[int, ...] = ()
    made: int = 0
    spent: float = 0.0
    recent: tuple[Entry, ...] = ()


class Journal:
    """Notes nothing: a run without a state directory lives in memory alone.

    Attributes:
        lasting: whether anything is noted.
        each_update: whether an update is on the disk before it is acknowledged.
    """

    lasting = False
    each_update = False

    def restore(self, now: float) -> Past | None:
        """Return the run that was interrupted, if there is one.

        Raises:
            StateError: there is, but it cannot be trusted.
        """
        return None

    def read(self, entry: Entry) -> Parameters:
        """Return the tensors of an update that was noted."""
        raise StateError(f"the update of {entry.client_id} for round {entry.round} was not kept")

    def model(self, number: int) -> Parameters:
        """Return the model that a round made."""
        raise StateError(f"the model of round {number} was not kept")

    def begin(self, run_id: str, facts: Mapping[str, Any], parameters: Parameters, spec: Spec, name: str) -> None:
        """Note a run and its first model."""

    def open(self, number: int, base: str, invited: Iterable[str]) -> None:
        """Note a round, before anybody is sent its tasks."""

    def elapse(self, number: int, seconds: float) -> None:
        """Note how long the open round has lasted."""

    def accept(self, entry: Entry, update: Update, spec: Spec, elapsed: float) -> bool:
        """Note an update, before it is acknowledged; returns whether it may count.

        Raises:
            UpdateRejected: another update is noted for this task.
            OutOfStorage: the disk has no room.
        """
        return True

    def withdraw(self, task_id: str) -> None:
        """Take back an update that does not count after all."""

    def close(self, number: int, tasks: Iterable[str]) -> None:
        """Note which updates the round is made of, before they are."""

    def commit(
        self, event: ev.RoundCommitted, parameters: Parameters, spec: Spec, memory: Mapping[str, Any], made_of: Sequence[Entry]
    ) -> None:
        """Note a model, before anybody is sent it."""

    def fail(self, event: ev.RoundFailed) -> None:
        """Note that a round made no model, before anybody is told."""

    def measure(self, number: int, metrics: Mapping[str, float]) -> None:
        """Note metrics of a round's model."""

    def cherish(self, number: int) -> None:
        """Keep the model of this round from now on, as the best one."""

    def tidy(self) -> None:
        """Take away what an interruption left half written, and what nothing needs any more."""

    def join(self, client_id: str, instances: Sequence[str]) -> None:
        """Note which process speaks for a client."""

    def end(self) -> None:
        """Let go of everything."""


class Diary(Journal):
    """Notes a run in a state directory.

    Args:
        folder: the directory.
        codec: what files are written with; lossless.
        each_update: see :class:`Journal`.
        keep_updates: of how many of the last rounds the updates are kept, for replaying them.

    Raises:
        StateError: the directory is in use, damaged, or something else.
    """

    lasting = True

    def __init__(self, folder: str, codec: Codec, *, each_update: bool, keep_updates: int):
        self.each_update = each_update
        self._codec, self._keep = codec, keep_updates
        self._ledger = Ledger(folder, codec)
        self._best: int | None = None

    def read(self, entry: Entry) -> Parameters:
        """Return the tensors of an update that was noted."""
        return self._ledger.updates.get(self._ledger.manifest(entry.digest))

    def begin(self, run_id: str, facts: Mapping[str, Any], parameters: Parameters, spec: Spec, name: str) -> None:
        """Note a run and its first model."""
        payload = self._payload(parameters, spec, name)
        self._ledger.models.put(payload, "ckpt")
        self._ledger.begin(run_id, facts, payload.manifest)

    def open(self, number: int, base: str, invited: Iterable[str]) -> None:
        """Note a round, before anybody is sent its tasks."""
        self._ledger.open_round(number, base, invited)

    def elapse(self, number: int, seconds: float) -> None:
        """Note how long the open round has lasted."""
        self._ledger.elapse(number, seconds)

    def accept(self, entry: Entry, update: Update, spec: Spec, elapsed: float) -> bool:
        """Note an update, before it is acknowledged."""
        payload = self._payload(update.parameters, spec, entry.digest)
        self._ledger.updates.put(payload, "upd")
        return self._ledger.accept(entry, payload.manifest, elapsed)

    def withdraw(self, task_id: str) -> None:
        """Take back an update that does not count after all."""
        self._ledger.withdraw(task_id)

    def close(self, number: int, tasks: Iterable[str]) -> None:
        """Note which updates the round is made of, before they are."""
        if self.each_update:
            self._ledger.close_round(number, tasks)

    def commit(
        self, event: ev.RoundCommitted, parameters: Parameters, spec: Spec, memory: Mapping[str, Any], made_of: Sequence[Entry]
    ) -> None:
        """Note a model, before anybody is sent it."""
        model = self._payload(parameters, spec, event.digest)
        self._ledger.models.put(model, "ckpt")
        tensors, plain = pack(memory)
        kept = self._payload(tensors, Spec.of(tensors), "") if tensors else None
        if kept:
            self._ledger.models.put(kept, "ckpt")
        unread = [(entry, Manifest(self._codec.name, SHARD_BYTES, (), entry.digest)) for entry in made_of]
        self._ledger.commit_round(
            event.round, model.manifest, {**_facts(event), "memory": plain}, memory=kept.manifest if kept else None,
            made_of=[] if self.each_update else unread,
        )  # fmt: skip
        self._sweep()

    def fail(self, event: ev.RoundFailed) -> None:
        """Note that a round made no model, before anybody is told."""
        self._ledger.fail_round(event.round, _facts(event))

    def measure(self, number: int, metrics: Mapping[str, float]) -> None:
        """Note metrics of a round's model."""
        self._ledger.measure(number, metrics)

    def cherish(self, number: int) -> None:
        """Keep the model of this round from now on, as the best one."""
        self._best = number

    def join(self, client_id: str, instances: Sequence[str]) -> None:
        """Note which process speaks for a client."""
        self._ledger.join(client_id, instances)

    def end(self) -> None:
        """Let go of everything."""
        self._ledger.close()

    def restore(self, now: float) -> Past | None:
        """Return the run that was interrupted, if there is one."""
        with understood(self._ledger.folder):
            return self._past(now) if self._ledger.run_id else None

    def _past(self, now: float) -> Past:
        last = self._last_readable(self._ledger.pages())
        pages = self._ledger.pages()
        page = pages[-1] if pages[-1].state in ("open", "closed") else None
        ended = pages[1:-1] if page else pages[1:]
        manifest = self._ledger.manifest(last.model)
        made = [each.state == "committed" and "lost" not in each.facts for each in ended]
        return Past(
            self._ledger.run_id, self._ledger.run_facts, self._ledger.models.get(manifest), Spec.checked(manifest.tensors),
            last.model, page.number if page else pages[-1].number + 1, made=last.number,
            outcomes=tuple(each.facts["seconds"] if good else None for each, good in zip(ended, made, strict=True)),
            page=page,
            entries=self._ledger.entries(page.number) if page else [], events=tuple(self._story(pages[1:], now)),
            memory=remembered(self._ledger, last), clients=self._ledger.clients(),
            spent=sum(each.facts["seconds"] for each in ended) + (page.elapsed if page else 0.0),
            unmeasured=tuple(each.number for each in ended[-2:] if each.state == "committed" and not each.metrics),
            recent=tuple(entry for each in ended[-REMEMBERED:] for entry in self._ledger.entries(each.number)),
        )  # fmt: skip

    def model(self, number: int) -> Parameters:
        """Return the model that a round made."""
        page = next(page for page in self._ledger.pages() if page.number == number)
        return self._ledger.models.get(self._ledger.manifest(page.model))

    def _last_readable(self, pages: Sequence[Page]) -> Page:
        """Return the last committed round whose model is whole; those behind it are given up, and that is said."""
        lost: list[tuple[int, StateError]] = []
        for page in reversed(pages):
            if page.state != "committed" or "lost" in page.facts:
                continue
            try:
                self._ledger.models.get(self._ledger.manifest(page.model))
                remembered(self._ledger, page)
            except StateError as error:
                lost.append((page.number, error))
                continue
            for number, why in lost:
                log.error("the model of round %d is lost, going on from the one before: %s", number, why)
                self._ledger.lose(number, str(why))
            return page
        raise damaged(self._ledger.folder, f"none of its models can be read, the newest because {lost[0][1]}")

    def _story(self, pages: Iterable[Page], now: float) -> Iterable[ev.Event]:
        for page in pages:
            facts = {name: value for name, value in page.facts.items() if name not in ("memory", "lost")}
            entries = self._ledger.entries(page.number)
            for count, entry in enumerate(entries, 1):
                yield ev.UpdateAccepted(
                    at=now, round=page.number, kind=Kind.FIT, client_id=entry.client_id, num_examples=entry.num_examples,
                    accepted=count, target=len(entries),
                )  # fmt: skip
            if page.state == "failed":
                yield ev.RoundFailed(at=now, round=page.number, **facts)
            if page.state != "committed":
                continue
            traffic = {name: Traffic(**each) for name, each in facts.pop("traffic").items()}
            accepted = tuple(facts.pop("accepted"))
            yield ev.RoundCommitted(
                at=now, round=page.number, digest=page.model, accepted=accepted, traffic=traffic, **facts
            )
            if page.metrics:
                yield ev.Evaluated(at=now, round=page.number, metrics=page.metrics)

    def _payload(self, parameters: Parameters, spec: Spec, name: str) -> Payload:
        return encode(parameters, spec, self._codec, SHARD_BYTES, name=name)

    def tidy(self) -> None:
        """Take away what an interruption left half written, and what nothing needs any more."""
        self._sweep(remnants=True)

    def _sweep(self, *, remnants: bool = False) -> None:
        models, best = max(2, self._keep + 1), [] if self._best is None else [self._best]
        self._ledger.sweep(keep_models=models, keep_updates=self._keep, remnants=remnants, also=best)


def remembered(ledger: Ledger, page: Page) -> dict[str, Any]:
    """Return what the strategy remembered after a round; nothing after the first model.

    Raises:
        StateError: it cannot be read.
    """
    tensors = ledger.models.get(ledger.manifest(page.memory)) if page.memory else {}
    found: dict[str, Any] = unpack(tensors, page.facts.get("memory", {"dict": {}}))
    return found


def _facts(event: ev.RoundCommitted | ev.RoundFailed) -> dict[str, Any]:
    """Return what an event says, but for what the ledger has a column for."""
    return {name: value for name, value in asdict(event).items() if name not in ("at", "round", "digest")}
