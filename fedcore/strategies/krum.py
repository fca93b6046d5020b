"""Krum: the one update that has the nearest neighbours.

Formula: the score of an update is the sum of the squared distances to the ``n - f - 2`` others that are nearest to it (as in
the paper; there are libraries that take one more); the model becomes the update with the lowest score, of equal ones that of
the lowest client id. Scores that differ by less than 1e-12 of themselves are equal.

Paper: Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NeurIPS 2017.

Needs: ``n >= 2 f + 3`` updates. Memory: a few times 4 MiB and the model, whatever the number of clients; time: n^2 models.
"""

from __future__ import annotations

from fedcore.robust import Finish, Rows, krum_scores, lowest, mean_of, squared_distances
from fedcore.strategies._robust import Robust

__all__ = ["Krum"]


class Krum(Robust):
    """One client's update, that amid the others.

    All arguments are :class:`~fedcore.strategies._robust.Robust`'s.
    """

    def least(self, f: int) -> int:
        """Return the fewest updates."""
        return 2 * f + 3

    def plan(self, rows: Rows, f: int) -> Finish:
        """Return the choice."""
        return mean_of(lowest(krum_scores(squared_distances(rows), rows.count - f - 2)))
