"""The coordinate-wise median.

Formula: each element of the model changes by the median of what the clients changed of it; of an even number of clients by the
mean of the middle two.

Paper: Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018.

Needs: ``n >= 2 f + 1`` updates. Memory: a few times 4 MiB and the model, whatever the number of clients.
"""

from __future__ import annotations

from fedcore.robust import Finish, Rows, median
from fedcore.strategies._robust import Robust

__all__ = ["Median"]


class Median(Robust):
    """The median of each element's changes.

    All arguments are :class:`~fedcore.strategies._robust.Robust`'s; ``f`` says how few updates are refused.
    """

    def least(self, f: int) -> int:
        """Return the fewest updates: honest ones must be more than half."""
        return 2 * f + 1

    def plan(self, rows: Rows, f: int) -> Finish:
        """Return the median."""
        return median
