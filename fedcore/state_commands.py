"""The commands that look back at a run in its state directory: ``fedcore runs`` and ``fedcore replay``. They change nothing."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcore.errors import ConfigError, StateError
from fedcore.observers.board import headline
from fedcore.observers.units import count, harmless, metric, natural, span, table

if TYPE_CHECKING:
    from fedcore.ledger import Ledger, Page
    from fedcore.replay import Replayed
    from fedcore.strategy import Strategy

__all__ = ["add_replay", "add_runs", "describe", "strategy_of"]

_SHORT = 16  # characters of a digest
_WORDS = {"agrees": "agree", "differs": "differ", "damaged": "damaged", "not kept": "not kept"}


# --- runs -------------------------------------------------------------------------------------------------------------


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Add what ``fedcore runs`` takes."""
    parser.description = (
        "Show the run that a state directory holds, round by round; of a folder of several, a line for each. Only reads, and "
        "may be used while the server runs."
    )
    parser.add_argument("folder", metavar="DIR", help="a state directory (ServerConfig.state_dir), or a folder of such")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=_runs)


def _runs(chosen: argparse.Namespace) -> int:
    folder = Path(chosen.folder)
    several = [] if _is_state(folder) or not folder.is_dir() else [each for each in folder.iterdir() if _is_state(each)]
    runs = [_described(each) for each in sorted(several, key=lambda each: natural(each.name))] or [describe(folder)]
    if chosen.json:
        sys.stdout.write(json.dumps({"runs": runs}) + "\n")
    else:
        lines = [f"{run['folder']}  {_heading(run)}" for run in runs] if several else _as_text(runs[0])
        sys.stdout.writelines(f"{line}\n" for line in lines)
    return 1 if any("error" in run for run in runs) else 0


def _is_state(folder: Path) -> bool:
    return (folder / "ledger.db").exists()


def _described(folder: Path) -> dict[str, Any]:
    try:
        return describe(folder)
    except StateError as error:
        return {"folder": str(folder), "error": str(error)}


def describe(folder: Path) -> dict[str, Any]:
    """Return what a state directory says of its run, as JSON may say it.

    Raises:
        StateError: it is none, or damaged.
    """
    from fedcore.replay import look
    from fedcore.rows import understood

    with closing(look(folder)) as ledger, understood(folder):
        facts = ledger.run_facts if ledger.run_id else {}
        rounds = [_round(ledger, page) for page in ledger.pages() if page.number]
        return {"folder": str(folder), "run_id": ledger.run_id, **facts, "rounds": rounds}


def _round(ledger: Ledger, page: Page) -> dict[str, Any]:
    facts, lost = page.facts, page.facts.get("lost", "")
    metrics = {**facts.get("metrics", {}), **page.metrics}
    return {
        "round": page.number,
        "state": "lost" if lost else page.state,
        "updates": len(ledger.entries(page.number)),
        "seconds": facts.get("seconds", page.elapsed),
        "digest": page.model,
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
        "reason": lost or facts.get("reason", ""),
    }


def _heading(run: Mapping[str, Any]) -> str:
    if problem := run.get("error"):
        return harmless(problem)
    if not run["run_id"]:
        return "no run has begun"
    begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run["begun"]))
    made = [each for each in run["rounds"] if each["state"] == "committed"]
    parts = [run["run_id"], f"begun {begun}", run["strategy"].rpartition(".")[2], f"{len(made)} of {run['num_rounds']} rounds"]
    return ", ".join(harmless(part) for part in parts) + ("  " + _metrics(made[-1]["metrics"]) if made else "").rstrip()


def _as_text(run: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            str(each["round"]), each["state"], str(each["updates"]), span(each["seconds"]), each["digest"][:_SHORT],
            harmless(each["reason"]) or _metrics(each["metrics"]),
        )
        for each in run["rounds"]
    ]  # fmt: skip
    head = ("round", "state", "updates", "took", "model", "")
    return [_heading(run), *(["", *table([head, *rows], left=(1, 4, 5))] if rows else [])]


def _metrics(metrics: Mapping[str, float | None]) -> str:
    finite = {name: math.nan if value is None else value for name, value in metrics.items()}
    return "  ".join(f"{name} {metric(value)}" for name, value in headline(finite).items())


# --- replay -----------------------------------------------------------------------------------------------------------


def add_replay(parser: argparse.ArgumentParser) -> None:
    """Add what ``fedcore replay`` takes."""
    parser.description = (
        "Make the model of each round once more of the updates that were kept for it (ServerConfig.keep_updates), and say "
        "whether it is the same, bit for bit."
    )
    parser.add_argument("folder", metavar="DIR", help="a state directory (ServerConfig.state_dir)")
    parser.add_argument("--verify", action="store_true", help="exit with status 1 unless all that is kept agrees")
    parser.add_argument(
        "--strategy", metavar="FILE.py:NAME",
        help="the run's strategy, or a function that returns it; by default the one that was noted",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=_replay)


def _replay(chosen: argparse.Namespace) -> int:
    from fedcore.replay import replay

    rounds = replay(chosen.folder, strategy_of(chosen.strategy) if chosen.strategy else None)
    found = Counter(each.outcome for each in rounds)
    good = not found["differs"] and not found["damaged"]
    if chosen.json:
        sys.stdout.write(json.dumps({"folder": chosen.folder, "agrees": good, "rounds": list(map(asdict, rounds))}) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in _report(rounds, found))
    return 0 if good or not chosen.verify else 1


def _report(rounds: Iterable[Replayed], found: Mapping[str, int]) -> Iterable[str]:
    rows = [(str(each.round), str(each.updates), each.outcome, each.digest[:_SHORT], _found(each)) for each in rounds]
    if not rows:
        return ["no round has made a model yet"]
    sums = ", ".join(f"{found[outcome]} {word}" for outcome, word in _WORDS.items() if found[outcome])
    hint = ["ServerConfig(keep_updates=N) keeps the updates of the last N rounds"] if found["not kept"] == len(rows) else []
    head = ("round", "updates", "result", "model", "")
    return [*table([head, *rows], left=(2, 3, 4)), "", f"{count(len(rows), 'round')}: {sums}", *hint]


def _found(each: Replayed) -> str:
    return f"now {each.again[:_SHORT]}" if each.outcome == "differs" and each.again else harmless(each.reason)


def strategy_of(text: str) -> Strategy:
    """Return the strategy that ``FILE.py:NAME`` names: an instance, or what a function without arguments returns.

    Raises:
        ConfigError: there is no such file, no such name in it, or it is no strategy.
    """
    from fedcore.strategy import Strategy

    place, _, name = text.rpartition(":")
    file = Path(place)
    if not place.endswith(".py") or not name.isidentifier():
        raise ConfigError(f"--strategy {text!r} is not of the form FILE.py:NAME")
    if not file.is_file():
        raise ConfigError(f"--strategy {text!r}: there is no file {place}")
    spec = importlib.util.spec_from_file_location(f"replayed_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--strategy {text!r}: {place} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(file.resolve().parent))  # as if it was run
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, name):
            raise ConfigError(f"--strategy {text!r}: {place} has no {name}")
        named = getattr(module, name)
        made = named if isinstance(named, Strategy) or not callable(named) else named()
    finally:
        sys.path.pop(0)
    if not isinstance(made, Strategy):
        raise ConfigError(f"--strategy {text!r} is a {type(made).__name__}: neither a strategy nor a function that makes one")
    return made
