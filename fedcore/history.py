"""What a run did, round by round."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedcore import events as ev
from fedcore.errors import MissingDependency
from fedcore.messages import Traffic


@dataclass
class RoundRecord:
    """The facts of one round.

    Attributes:
        number: from 1; a failed round keeps its number.
        outcome: ``"committed"`` or ``"failed"``.
        reason: why it failed, or "".
        accepted: the clients whose updates count, sorted.
        missing: the clients that were asked and do not count, and why.
        metrics: the server's under their own names and ``loss``; the clients' under ``fit/`` and ``evaluate/``.
        seconds: from opening to the end.
        bytes_sent: bodies sent to clients for this round, on the wire.
        bytes_received: bodies of the accepted updates, on the wire.
        tensor_bytes_sent: the same before the codec.
        tensor_bytes_received: the same before the codec.
        traffic: these four for each client.
        digest: of the model it made, or "".
    """

    number: int
    outcome: str
    reason: str = ""
    accepted: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    tensor_bytes_sent: int = 0
    tensor_bytes_received: int = 0
    traffic: dict[str, Traffic] = field(default_factory=dict)
    digest: str = ""

    @classmethod
    def of(cls, event: ev.RoundCommitted) -> RoundRecord:
        """Return the record of a committed round."""
        total, alike = sum(event.traffic.values(), Traffic()), dict[Traffic, Traffic]()
        return cls(
            event.round, "committed", accepted=list(event.accepted), missing=dict(event.missing),
            metrics=dict(event.metrics), seconds=event.seconds, digest=event.digest, **asdict(total),
            traffic={name: alike.setdefault(each, each) for name, each in event.traffic.items()},
        )  # fmt: skip


class History(list[tuple[int, dict[str, float]]]):
    """A list of ``(round, metrics)`` pairs, failed rounds included (without metrics), and :attr:`rounds` with all facts."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds: list[RoundRecord] = []

    def take(self, event: ev.Event) -> None:
        """Note what an event says about a round."""
        if isinstance(event, ev.RoundCommitted):
            self.add(RoundRecord.of(event))
        elif isinstance(event, ev.RoundFailed):
            missing = dict(event.missing)
            self.add(RoundRecord(event.round, "failed", event.reason, [], missing, seconds=event.seconds))
        elif isinstance(event, ev.Evaluated):
            self.note(event.round, event.metrics)

    def add(self, record: RoundRecord) -> None:
        """Append a round; its metrics may still be added to."""
        self.rounds.append(record)
        self.append((record.number, record.metrics))

    def note(self, number: int, metrics: Mapping[str, float]) -> None:
        """Add metrics to a round that is in the history."""
        for record in self.rounds:
            if record.number == number:
                record.metrics.update(metrics)

    @property
    def latest(self) -> dict[str, float]:
        """The metrics of the last committed round, or an empty dict."""
        return next((r.metrics for r in reversed(self.rounds) if r.outcome == "committed"), {})

    def to_json(self, **extra: Any) -> str:
        """Return the history as JSON text: ``extra`` and a list ``rounds`` of all records; what is not finite becomes null."""
        return json.dumps({**extra, "rounds": [_plain(record) for record in self.rounds]}, indent=2, allow_nan=False)

    def plot(self, path: str | Path, title: str = "") -> Path:
        """Draw the server's loss and metrics over the rounds into a picture at ``path``.

        Raises:
            MissingDependency: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingDependency("plotting needs matplotlib: pip install 'fedcore[plot]'") from error
        names = sorted({name for record in self.rounds for name in record.metrics if "/" not in name})
        names = sorted(names, key=lambda name: name != "loss") or ["loss"]
        figure = Figure(figsize=(5.2 * len(names), 3.8), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            points = [(r.number, r.metrics[name]) for r in self.rounds if name in r.metrics]
            axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3.5, color="#1f6feb")
            for record in self.rounds:
                if record.outcome == "failed":
                    axes.axvline(record.number, color="#d1242f", linestyle=":", label="failed round")
            axes.set_xlabel("round")
            axes.set_title(name)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        if title:
            figure.suptitle(title)
        figure.savefig(path, dpi=144)
        return Path(path)


def _plain(record: RoundRecord) -> dict[str, Any]:
    metrics = {name: value if math.isfinite(value) else None for name, value in record.metrics.items()}
    return {**asdict(record), "metrics": metrics}
