"""Replays a run from its state directory: each model is made once more of the updates that were kept for it, and compared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from fedcore.cores import Cores
from fedcore.errors import ConfigError, MissingDependency, StateError
from fedcore.filter import Filter, incoming
from fedcore.journal import remembered
from fedcore.ledger import Entry, Ledger, Page
from fedcore.packing import pack, unpack
from fedcore.parameters import Parameters, Spec, copy_parameters, digest
from fedcore.policy import RoundPolicy
from fedcore.registry import available, find
from fedcore.registry import codec as find_codec
from fedcore.rows import understood
from fedcore.strategy import Strategy, aggregator_of

__all__ = ["Replayed", "look", "replay"]

AGREES, DIFFERS, DAMAGED, NOT_KEPT = "agrees", "differs", "damaged", "not kept"

_FILES = "safetensors"  # what models and updates are written with


@dataclass(frozen=True)
class Replayed:
    """What came of one round.

    Attributes:
        round: its number.
        outcome: ``"agrees"``: the same model, bit for bit. ``"differs"``: another one, or none. ``"damaged"``: what was kept
            cannot be read. ``"not kept"``: the files it takes are gone, as those of all rounds are after a while.
        updates: how many the round was made of.
        digest: of the model it made.
        again: of the model it makes now, or "".
        reason: why the two cannot be compared, or "".
    """

    round: int
    outcome: str
    updates: int
    digest: str
    again: str = ""
    reason: str = ""


def replay(
    folder: str | os.PathLike[str], strategy: Strategy | None = None, filters: Sequence[Filter] = ()
) -> list[Replayed]:
    """Make the models of a run once more, and say of each committed round whether it is the same.

    ``ServerConfig.keep_updates`` says of how many rounds the updates are there. The folder is only read, and its server may
    run meanwhile.

    Args:
        folder: the state directory.
        strategy: a fresh one like the run's; what it remembers is changed. None: the one that was noted, if it is of
            fedcore or an installed package, and can say what it was built with (``Strategy.settings``).
        filters: those of the run's server.

    Raises:
        StateError: there is no ledger in the folder, or it is damaged.
        ConfigError: the strategy cannot be built again: hand one in; or the filters are others.
    """
    ledger, cores = look(folder), Cores()
    try:
        if not ledger.run_id:
            return []
        return _Rerun(ledger, _noted(ledger) if strategy is None else strategy, cores, filters).rounds()
    finally:
        cores.close()
        ledger.close()


def look(folder: str | os.PathLike[str]) -> Ledger:
    """Open a ledger only to read it: beside the server that writes it, or behind one that was killed.

    What a killed server was just writing is taken back first, as the next server would.

    Raises:
        StateError: there is no ledger, or it is damaged.
    """
    codec = find_codec(_FILES)
    try:
        return Ledger(folder, codec, looking=True)
    except StateError:
        if not (Path(folder) / "ledger.db-journal").exists():
            raise
    with suppress(StateError):  # a server that runs has done it already
        Ledger(folder, codec).close()
    return Ledger(folder, codec, looking=True)


class _Rerun:
    """One pass through the rounds of a ledger."""

    def __init__(self, ledger: Ledger, strategy: Strategy, cores: Cores, filters: Sequence[Filter]):
        self._ledger, self._strategy, self._cores, self._filters = ledger, strategy, cores, filters
        noted = ledger.run_facts.get("filters") or []
        if noted != [repr(each) for each in filters]:
            raise ConfigError(f"{ledger.run_id} was made with the filters {noted}: in code, replay(folder, strategy, filters)")
        self._pages = ledger.pages()
        with understood(ledger.folder):
            self._pace = RoundPolicy(**(ledger.run_facts.get("pace") or {"target": 1}))
        tensors, self._plain = pack(strategy.state_dict())
        self._tensors = copy_parameters(tensors)

    def rounds(self) -> list[Replayed]:
        """Return what came of each committed round; they are replayed in their order."""
        done: list[Replayed] = []
        for page in self._pages:
            if page.number and page.state == "committed":
                found = self._round(page)
                if found.outcome == NOT_KEPT and any(each.again for each in done):  # it is the last rounds that are kept
                    found = replace(found, outcome=DAMAGED, reason="files are missing, though a round before it has its own")
                done.append(found)
        return done

    def _round(self, page: Page) -> Replayed:
        entries = self._ledger.entries(page.number)
        result = Replayed(page.number, NOT_KEPT, len(entries), page.model)
        there: list[Path] = []
        try:
            files = self._files(page, entries)
            there = [file for file in files if file.exists()]
            if files[0] in there and "lost" not in page.facts:
                self._model(page.model)
            if there != files:
                return result
            again = self._again(page, entries)
        except StateError as error:
            swept = not all(file.exists() for file in there)  # by the server, just now
            return result if swept else replace(result, outcome=DAMAGED, reason=str(error))
        except Exception as error:  # noqa: BLE001 - the strategy is somebody else's code
            return replace(result, outcome=DIFFERS, reason=f"it makes no model: {type(error).__name__}: {error}")
        return replace(result, outcome=AGREES if again == page.model else DIFFERS, again=again)

    def _again(self, page: Page, entries: Sequence[Entry]) -> str:
        """Return the digest of the model that a round makes now."""
        before, strategy = self._before(page), self._strategy
        fresh = not before.number  # nothing is noted of what a strategy remembers when it begins
        strategy.load_state_dict(
            unpack(copy_parameters(self._tensors), self._plain) if fresh else remembered(self._ledger, before)
        )
        parameters, spec = self._model(page.base)
        _, extents = self._cores.measured(parameters, spec)
        aggregator = aggregator_of(strategy, page.number, parameters)
        aggregator.each, aggregator.difference = self._cores.each, self._pace.asynchronous
        aggregator.prepare(spec, extents)
        for entry in entries:
            update = self._ledger.updates.get(self._ledger.manifest(entry.digest))
            aggregator.add(entry.update(update, self._pace))
        aggregate = incoming(
            self._filters, aggregator.result(), parameters, difference=aggregator.difference,
            seed=int(self._ledger.run_facts["seed"]), number=page.number, updates=len(entries),
        )  # fmt: skip
        made = strategy.step(page.number, parameters, aggregate)
        spec.check(made)
        return digest(made, spec)

    def _files(self, page: Page, entries: Sequence[Entry]) -> list[Path]:
        """Return the files it takes to replay a round, and compare it; its own model comes first, unless that is lost."""
        models = ["" if "lost" in page.facts else page.model, page.base, self._before(page).memory]
        return [
            *(self._ledger.folder / "models" / f"{name}.{_FILES}" for name in models if name),
            *(self._ledger.folder / "updates" / f"{entry.digest}.{_FILES}" for entry in entries),
        ]

    def _before(self, page: Page) -> Page:
        """Return the round whose model this one started from: the last one before it that is not lost."""
        for each in reversed(self._pages[: page.number]):
            lasted = each.state == "committed" and "lost" not in each.facts
            if each.model == page.base and (lasted or "lost" in page.facts):
                return each
            if lasted:
                break
        raise StateError(f"round {page.number} does not go on from the model before it", reason="STATE_DAMAGED")

    def _model(self, name: str) -> tuple[Parameters, Spec]:
        manifest = self._ledger.manifest(name)
        return self._ledger.models.get(manifest), Spec.checked(manifest.tensors)


def _noted(ledger: Ledger) -> Strategy:
    """Build the strategy of a run again from what was noted of it."""
    facts = ledger.run_facts
    name, settings = str(facts.get("strategy", "")), facts.get("settings")
    if settings is not None:
        for part in available("strategies"):
            with suppress(MissingDependency), understood(ledger.folder):
                kind = find("strategies", part)
                if isinstance(kind, type) and f"{kind.__module__}.{kind.__qualname__}" == name:
                    return cast(Strategy, kind(**settings))
    raise ConfigError(
        f"{ledger.run_id} was made with {name}, which cannot be built again from what was noted: name it with "
        "--strategy FILE.py:NAME, an instance or a function that returns one (in code: replay(folder, strategy))"
    )
