"""A journal in memory that outlives the server that writes it, and a place for a crash before and behind every step of it.

It keeps what :class:`~fedcore.journal.Diary` keeps and answers as that does, but each step happens at once or not at all, and
no file is touched: what a server does with its journal can be tried out thousands of times, at every point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from fedcore import events as ev
from fedcore.aggregator import Update
from fedcore.errors import StateError, UpdateRejected
from fedcore.journal import Journal, Past
from fedcore.ledger import Entry, Page
from fedcore.messages import Kind
from fedcore.packing import pack, unpack
from fedcore.parameters import Parameters, Spec, copy_parameters
from fedcore.rounds import REMEMBERED

Points: TypeAlias = Callable[[str], object]
"""Called at each point that a server passes; may raise."""

STEPS = ("begin", "join", "open", "elapse", "accept", "withdraw", "close", "commit", "fail", "measure")
"""What a journal writes; a point ``"accept.before"`` and a point ``"accept.after"`` belong to each."""


class Crashed(BaseException):
    """The process ends here, and what it had in memory is lost. Nothing that handles errors handles this."""


@dataclass
class Disk:
    """What is left of a server when it crashes.

    Attributes:
        run_id: the run's name, or "" before it begins.
        facts: what was noted when it began.
        pages: the rounds by number; 0 stands for the first model.
        outcomes: how each round ended.
        entries: the updates by task id.
        clients: the processes of each client, the newest last.
        models: models by digest.
        updates: the tensors of updates by digest.
        memories: by round, what the strategy remembered after it.
        known: the digests of all models and updates that were ever noted.
        holder: the journal that writes here; an older one can no more.
    """

    run_id: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    pages: dict[int, Page] = field(default_factory=dict)
    outcomes: dict[int, ev.RoundCommitted | ev.RoundFailed] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    clients: dict[str, list[str]] = field(default_factory=dict)
    models: dict[str, Parameters] = field(default_factory=dict)
    updates: dict[str, Parameters] = field(default_factory=dict)
    memories: dict[int, tuple[Parameters, Any]] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    holder: MemoryJournal | None = field(default=None, repr=False)

    def of(self, number: int) -> list[Entry]:
        """Return the updates that count in a round, by client id."""
        return sorted((each for each in self.entries.values() if each.counted == number), key=lambda each: each.client_id)


class MemoryJournal(Journal):
    """Notes a run on a :class:`Disk`.

    >>> journal = MemoryJournal(passed=crash_at("accept.after"))  # a function that raises Crashed when it is called with that
    >>> again = MemoryJournal(journal.disk)  # the next server's

    Args:
        disk: what a journal before left; None: nothing.
        each_update: see :class:`~fedcore.journal.Journal`.
        keep_updates: of how many of the last rounds the updates are kept.
        passed: called before and behind each of :data:`STEPS` with the name of the point. What it raises in front of a step
            prevents it: :class:`Crashed`, or :class:`~fedcore.errors.OutOfStorage` for a disk that is full.
    """

    lasting = True

    def __init__(
        self, disk: Disk | None = None, *, each_update: bool = True, keep_updates: int = 0, passed: Points = str
    ):
        self.disk, self.each_update, self._keep, self._passed = disk or Disk(), each_update, keep_updates, passed
        self.disk.holder = self
        self._best: int | None = None

    # --- what is there ---

    def restore(self, now: float) -> Past | None:
        """Return the run that was interrupted, if there is one."""
        disk = self._mine()
        if not disk.run_id:
            return None
        pages = [page for _, page in sorted(disk.pages.items())]
        page = pages[-1] if pages[-1].state in ("open", "closed") else None
        ended = [each for each in pages[1:] if each is not page]
        last = [each for each in pages if each.state == "committed"][-1]
        parameters = copy_parameters(self._stored(disk.models, last.model))
        return Past(
            run_id=disk.run_id, facts=dict(disk.facts), parameters=parameters, spec=Spec.of(parameters), digest=last.model,
            number=pages[-1].number + (page is None), made=last.number,
            outcomes=tuple(disk.outcomes[each.number].seconds if each.state == "committed" else None for each in ended),
            page=page, entries=disk.of(page.number) if page else [],
            events=tuple(event for each in pages[1:] for event in self._story(each, now)),
            memory=self._memory(last.number), clients={name: list(each) for name, each in disk.clients.items()},
            unmeasured=tuple(each.number for each in ended[-2:] if each.state == "committed" and not each.metrics),
            spent=sum(disk.outcomes[each.number].seconds for each in ended) + (page.elapsed if page else 0.0),
            recent=tuple(entry for each in ended[-REMEMBERED:] for entry in disk.of(each.number)),
        )  # fmt: skip

    def read(self, entry: Entry) -> Parameters:
        """Return the tensors of an update that was noted."""
        disk = self._mine()
        return copy_parameters(self._stored(disk.updates, entry.digest if entry.digest in disk.known else ""))

    def model(self, number: int) -> Parameters:
        """Return the model that a round made."""
        return copy_parameters(self._stored(self._mine().models, self.disk.pages[number].model))

    # --- what happens ---

    def begin(self, run_id: str, facts: Mapping[str, Any], parameters: Parameters, spec: Spec, name: str) -> None:
        """Note a run and its first model."""
        with self._step("begin") as disk:
            _require(not disk.run_id, "a run has begun here already")
            disk.run_id, disk.facts = run_id, {**facts, "begun": 0.0}
            disk.models[name] = spec.copy(parameters)
            disk.known.add(name)
            disk.pages[0] = Page(0, "committed", name, name)

    def join(self, client_id: str, instances: Sequence[str]) -> None:
        """Note which process speaks for a client."""
        with self._step("join") as disk:
            disk.clients[client_id] = list(instances)

    def open(self, number: int, base: str, invited: Iterable[str]) -> None:
        """Note a round, before anybody is sent its tasks."""
        with self._step("open") as disk:
            _require(number not in disk.pages, f"there is a round {number} already")
            _require(base in disk.known, f"nothing is known of {base[:16]}")
            disk.pages[number] = Page(number, "open", base, invited=tuple(invited))

    def elapse(self, number: int, seconds: float) -> None:
        """Note how long the open round has lasted."""
        with self._step("elapse") as disk:
            if number in disk.pages:
                disk.pages[number] = replace(disk.pages[number], elapsed=max(disk.pages[number].elapsed, seconds))

    def accept(self, entry: Entry, update: Update, spec: Spec, elapsed: float) -> bool:
        """Note an update, before it is acknowledged."""
        with self._step("accept") as disk:
            disk.updates.setdefault(entry.digest, spec.copy(update.parameters))
            page = disk.pages.get(entry.counted)
            if page is None or page.state != "open":
                return False
            self._note(entry)
            disk.pages[entry.counted] = replace(page, elapsed=max(page.elapsed, elapsed))
            return True

    def withdraw(self, task_id: str) -> None:
        """Take back an update that does not count after all."""
        with self._step("withdraw") as disk:
            disk.entries.pop(task_id, None)

    def close(self, number: int, tasks: Iterable[str]) -> None:
        """Note which updates the round is made of, before they are."""
        if not self.each_update:
            return
        kept = set(tasks)
        with self._step("close") as disk:
            page, there = disk.pages.get(number), {entry.task_id for entry in disk.of(number)}
            if page and page.state == "closed":
                if kept != there:
                    raise StateError(f"round {number} was closed with other updates")
                return
            for task_id in there - kept:
                del disk.entries[task_id]
            self._turn(number, ("open",), "closed")

    def commit(
        self, event: ev.RoundCommitted, parameters: Parameters, spec: Spec, memory: Mapping[str, Any], made_of: Sequence[Entry]
    ) -> None:
        """Note a model, before anybody is sent it."""
        made_of = () if self.each_update else made_of
        tensors, plain = pack(memory)
        with self._step("commit") as disk:
            for entry in made_of:
                self._note(entry)
            self._turn(event.round, ("open" if made_of else "closed",), "committed", event.digest)
            disk.models[event.digest] = spec.copy(parameters)
            disk.known.add(event.digest)
            disk.memories[event.round] = copy_parameters(tensors), plain
            disk.outcomes[event.round] = event
            self._sweep()

    def fail(self, event: ev.RoundFailed) -> None:
        """Note that a round made no model, before anybody is told."""
        with self._step("fail") as disk:
            self._turn(event.round, ("open", "closed"), "failed")
            disk.outcomes[event.round] = event

    def measure(self, number: int, metrics: Mapping[str, float]) -> None:
        """Note metrics of a round's model."""
        with self._step("measure") as disk:
            if page := disk.pages.get(number):
                disk.pages[number] = replace(page, metrics={**page.metrics, **metrics})

    def cherish(self, number: int) -> None:
        """Keep the model of this round from now on, as the best one."""
        self._best = number

    def tidy(self) -> None:
        """Take away what nothing needs any more."""
        self._mine()
        self._sweep()

    def end(self) -> None:
        """Let go of everything."""
        if self.disk.holder is self:
            self.disk.holder = None

    # --- inside ---

    def _mine(self) -> Disk:
        if self.disk.holder is not self:
            raise Crashed("this journal's server is no more")
        return self.disk

    @contextmanager
    def _step(self, name: str) -> Iterator[Disk]:
        self._mine()
        self._passed(f"{name}.before")
        disk = self._mine()
        pages, entries, known = dict(disk.pages), dict(disk.entries), set(disk.known)
        try:
            yield disk
        except BaseException:  # all of it, or nothing
            disk.pages, disk.entries, disk.known = pages, entries, known
            raise
        self._passed(f"{name}.after")

    def _note(self, entry: Entry) -> None:
        for other in self.disk.entries.values():
            same = (other.task_id, other.digest, other.num_examples) == (entry.task_id, entry.digest, entry.num_examples)
            if other.task_id == entry.task_id or (other.round, other.client_id) == (entry.round, entry.client_id):
                if same:
                    return
                text = f"client {entry.client_id} has another update in round {entry.round} already"
                raise UpdateRejected(text, reason="ROUND_ALREADY_ANSWERED")
        _require({entry.round, entry.counted} <= self.disk.pages.keys(), f"there is no round {entry.round}, {entry.counted}")
        self.disk.entries[entry.task_id] = entry
        self.disk.known.add(entry.digest)

    def _turn(self, number: int, before: Sequence[str], state: str, model: str = "") -> None:
        page = self.disk.pages.get(number)
        if page is None or page.state not in before:
            raise StateError(f"round {number} cannot become {state}: it is not {' or '.join(before)}")
        self.disk.pages[number] = replace(page, state=state, model=model)

    def _sweep(self) -> None:
        """Forget the files that nothing needs any more, as the real journal does behind each commit."""
        disk, keep = self.disk, self._keep
        committed = [page for _, page in sorted(disk.pages.items()) if page.state == "committed"]
        working = [page for page in disk.pages.values() if page.state in ("open", "closed")]
        cherished = [page for page in committed if page.number == self._best]
        lasting = {page.model for page in [*committed[-max(2, keep + 1) :], *cherished]} | {page.base for page in working}
        of = {page.number for page in [*working, *(committed[-keep:] if keep else [])]}
        needed = {entry.digest for entry in disk.entries.values() if entry.counted in of}
        disk.models = {name: each for name, each in disk.models.items() if name in lasting}
        disk.updates = {name: each for name, each in disk.updates.items() if name in needed}

    def _memory(self, number: int) -> dict[str, Any]:
        tensors, plain = self.disk.memories.get(number, ({}, {"dict": {}}))
        found: dict[str, Any] = unpack(copy_parameters(tensors), plain)
        return found

    def _stored(self, files: Mapping[str, Parameters], name: str) -> Parameters:
        if name not in files:
            raise StateError(f"there is no file of {name[:16]!r} (any more)", reason="STATE_DAMAGED")
        return files[name]

    def _story(self, page: Page, now: float) -> Iterator[ev.Event]:
        entries = self.disk.of(page.number)
        for count, entry in enumerate(entries, 1):
            yield ev.UpdateAccepted(
                at=now, round=page.number, kind=Kind.FIT, client_id=entry.client_id, num_examples=entry.num_examples,
                accepted=count, target=len(entries),
            )  # fmt: skip
        if page.number in self.disk.outcomes:
            yield replace(self.disk.outcomes[page.number], at=now)
        if page.metrics and page.state == "committed":
            yield ev.Evaluated(at=now, round=page.number, metrics=page.metrics)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise StateError(what, reason="STATE_DAMAGED")
