"""Bulyan: Krum's choices, and of each element of them the values near the median.

Formula: ``t = n - 2 f`` updates are picked, each by Krum from those that are left, f of which count as Byzantine to the end;
each element of the model changes by the mean of the ``t - 2 f`` of their changes that are nearest to their median, of equally
near ones the lower.

Paper: El Mhamdi et al., The Hidden Vulnerability of Distributed Learning in Byzantium, ICML 2018.

Needs: ``n >= 4 f + 3`` updates. Memory: a few times 4 MiB and the model, whatever the number of clients; time: n^2 models.
"""

from __future__ import annotations

from fedcore.robust import Finish, Rows, bulyan_picks, mean_near_median, squared_distances
from fedcore.strategies._robust import Robust

__all__ = ["Bulyan"]


class Bulyan(Robust):
    """The mean of what is nearest to the median of Krum's choices.

    All arguments are :class:`~fedcore.strategies._robust.Robust`'s.
    """

    def least(self, f: int) -> int:
        """Return the fewest updates."""
        return 4 * f + 3

    def plan(self, rows: Rows, f: int) -> Finish:
        """Return the mean near the median."""
        picks = bulyan_picks(squared_distances(rows), f)
        return mean_near_median(picks, len(picks) - 2 * f)
