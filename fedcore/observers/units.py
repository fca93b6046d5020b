"""Numbers as people read them, and texts of others fit for a terminal."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

__all__ = ["count", "harmless", "metric", "natural", "size", "span", "sparkline", "table"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_LONGEST_TEXT = 160


def size(number: float) -> str:
    """Return a number of bytes in decimal units.

    >>> size(1_234_567)
    '1.2 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def span(seconds: float, *, whole: bool = False) -> str:
    """Return a length of time; with ``whole`` in whole seconds, for what changes while one looks at it.

    >>> span(0.308), span(75), span(7260), span(2.5, whole=True)
    ('0.31 s', '1 min 15 s', '2 h 01 min', '2 s')
    """
    if seconds < 59.5:
        digits = 0 if whole else 2 if seconds < 9.995 else 1
        return f"{seconds:.{digits}f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def metric(value: float) -> str:
    """Return a metric with three decimals, or three digits if it is too large or too small for those.

    >>> metric(0.41234), metric(0.00001)
    ('0.412', '1e-05')
    """
    return f"{value:.3f}" if value == 0 or 0.0005 <= abs(value) < 1e4 else f"{value:.3g}"


def count(number: int, what: str) -> str:
    """Return a number of things.

    >>> count(1, "client"), count(5, "client")
    ('1 client', '5 clients')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def sparkline(values: list[float], length: int = 20) -> str:
    """Return the last values as a row of bars, the lowest of them the shortest; infinite ones are left out.

    >>> sparkline([0.0, 0.5, 1.0])
    '▁▅█'
    """
    shown = [value for value in values if math.isfinite(value)][-length:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    width = high / 2 - low / 2  # halves, because the whole may be beyond a float
    shares = [(value / 2 - low / 2) / width if width else 0.0 for value in shown]
    return "".join(_BLOCKS[round(share * (len(_BLOCKS) - 1))] for share in shares)


def harmless(text: str) -> str:
    r"""Return a text that somebody else wrote on one line, cut to a bearable length and without control characters.

    >>> harmless("lost\x1b[2J")
    'lost [2J'
    """
    shown = "".join(c if c.isprintable() else " " for c in text)
    return shown if len(shown) <= _LONGEST_TEXT else f"{shown[: _LONGEST_TEXT - 3]}..."


def table(rows: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """Return rows as lines whose columns are aligned: to the right, as numbers are, but for those numbered in ``left``.

    >>> table([("client", "sent"), ("a", "9")], left=[0])
    ['client  sent', 'a          9']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:{'<' if at in left else '>'}{widths[at]}}" for at, cell in enumerate(row)).rstrip() for row in rows
    ]


def natural(name: str) -> tuple[str, int, str]:
    """Return a key that sorts client-2 before client-10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0), name
