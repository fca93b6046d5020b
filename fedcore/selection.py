"""Which clients a round invites: a strategy's ``selection`` puts them in order, and is told what came of it."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedcore.aggregator import Update
from fedcore.errors import ConfigError
from fedcore.values import check_number


@dataclass(frozen=True)
class Seen:
    """What is known of a client from the last round that it was in.

    Attributes:
        round: its number.
        num_examples: what it trained on.
        seconds: from the task to the update, over the network both ways.
        loss: the metric that the selection goes by; None: it sent none.
    """

    round: int
    num_examples: int
    seconds: float
    loss: float | None


class Selection(ABC):
    """Puts the clients that may be invited in order; a round invites the first ones, as many as its policy wants.

    Args:
        metric: of clients' updates, what ``loss`` is.

    Attributes:
        seen: what is known of each client.
    """

    def __init__(self, metric: str = "loss"):
        self.metric = metric
        self.seen: dict[str, Seen] = {}

    @abstractmethod
    def order(self, server_round: int, available: Sequence[str], wanted: int, rng: random.Random) -> Sequence[str]:
        """Return some or all of the clients in the order in which they are invited.

        Args:
            server_round: the number of the round.
            available: those that may be invited, sorted.
            wanted: how many will be.
            rng: a generator seeded by the run and the round, so that the choice can be repeated.
        """

    def observe(self, server_round: int, updates: Sequence[Update]) -> None:
        """Learn what came of a round: its updates, without tensors."""
        for each in updates:
            self.seen[each.client_id] = Seen(server_round, each.num_examples, each.seconds, each.metrics.get(self.metric))

    def state_dict(self) -> dict[str, Any]:
        """Return what is to be remembered across a restart."""
        return {name: [s.round, s.num_examples, s.seconds, s.loss] for name, s in self.seen.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.seen = {name: Seen(*each) for name, each in state.items()}


class All(Selection):
    """Everybody, in the order of their names."""

    def order(self, server_round: int, available: Sequence[str], wanted: int, rng: random.Random) -> Sequence[str]:
        """Return all."""
        return available


class Uniform(Selection):
    """A fair draw."""

    def order(self, server_round: int, available: Sequence[str], wanted: int, rng: random.Random) -> Sequence[str]:
        """Return all in random order."""
        return rng.sample(available, len(available))


class RoundRobin(Selection):
    """Those whose last turn is longest ago; of those that never had one, in the order of their names."""

    def order(self, server_round: int, available: Sequence[str], wanted: int, rng: random.Random) -> Sequence[str]:
        """Return all, who was last in a round first."""
        return sorted(available, key=lambda name: self.seen[name].round if name in self.seen else 0)


class BySize(Selection):
    """A draw without replacement, each time with probabilities in proportion to the numbers of examples.

    A client of which nothing is known counts as the middle one of those that are known.
    """

    def order(self, server_round: int, available: Sequence[str], wanted: int, rng: random.Random) -> Sequence[str]:
        """Return all in random order, large ones rather first."""
        return weighted(available, self.sizes(available), rng)

    def sizes(self, available: Sequence[str]) -> list[float]:
        """Return the number of examples of each, as far as it is known."""
        known = sorted(self.seen[name].num_examples for name in available if name in self.seen)
        middle = known[len(known) // 2] if known else 1
        return [float(self.seen[name].num_examples) if name in self.seen else float(middle) for name in available]


class PowerOfChoice(BySize):
    """Of ``d`` candidates drawn by size those with the highest loss.

    The losses are those that clients last reported (``pow-d`` with stale losses, the paper's ``rpow-d``); a client that never
    has counts as the highest, so that everybody is heard once.

    Paper: Cho, Wang and Joshi, Towards Understanding Biased Client Selection in Federated Learning, AISTATS 2022.

    Args:
        d: how many candidates are drawn; more than are wanted, or it is no choice.
        metric: of clients' updates, what their loss is.
    """

    def __init__(self, d: int, metric: str = "loss"):
        super().__init__(metric)
        check_number("PowerOfChoice d", d, int, 1)
        self.d = d

    def order(self, server_round: int, available: Sequence[str], wanted: int, rng: random.Random) -> Sequence[str]:
        """Return the candidates, the highest loss first, and then the others."""
        drawn = list(super().order(server_round, available, wanted, rng))
        many = max(self.d, wanted)
        return sorted(drawn[:many], key=lambda name: -self._loss(name)) + drawn[many:]

    def _loss(self, name: str) -> float:
        loss = self.seen[name].loss if name in self.seen else None
        return math.inf if loss is None else loss


class Oort(Selection):
    """Clients that have much to learn and are fast, and now and then those of which nothing is known.

    Utility of client i, after the paper: ``n_i * loss_i``, plus ``sqrt(0.1 * ln(round) / last round)`` of the largest, times
    ``(T / t_i) ** penalty`` if its round took ``t_i`` seconds and that is more than ``T``, within which ``fast`` of the known
    clients are. (The paper takes the root of the mean *squared* loss over a client's examples; a client may send that as
    its metric.) A part of the places, ``explore``, goes to clients that were never in a round.

    Paper: Lai et al., Oort: Efficient Federated Learning via Guided Participant Selection, OSDI 2021.

    Args:
        explore: part of the places for unknown clients, while there are any.
        penalty: how much slow clients are set back; 0: not at all.
        fast: part of the known clients that count as fast.
        metric: of clients' updates, what their loss is.
    """

    def __init__(self, explore: float = 0.3, penalty: float = 2.0, fast: float = 0.8, metric: str = "loss"):
        super().__init__(metric)
        for name, value in (("explore", explore), ("fast", fast)):
            if not 0 <= value <= 1:
                raise ConfigError(f"Oort {name} must be a number from 0 to 1, not {value!r}")
        check_number("Oort penalty", penalty, float, 0)
        self.explore, self.penalty, self.fast = explore, penalty, fast

    def order(self, server_round: int, available: Sequence[str], wanted: int, rng: random.Random) -> Sequence[str]:
        """Return unknown clients for their part of the places, then the known ones by utility, then all others."""
        unknown = [name for name in available if name not in self.seen]
        known = self._by_utility([name for name in available if name in self.seen], server_round)
        new = rng.sample(unknown, len(unknown))
        places = max(round(self.explore * wanted), wanted - len(known))
        return [*new[:places], *known, *new[places:]]

    def _by_utility(self, known: Sequence[str], server_round: int) -> list[str]:
        gains = {name: self.seen[name].num_examples * max(self.seen[name].loss or 0.0, 0.0) for name in known}
        largest = max(gains.values(), default=0.0) or 1.0
        times = sorted(self.seen[name].seconds for name in known)
        limit = times[min(len(times) - 1, int(self.fast * len(times)))] if times else 0.0

        def utility(name: str) -> float:
            seen = self.seen[name]
            bonus = math.sqrt(0.1 * math.log(max(server_round, 1)) / max(seen.round, 1)) * largest
            slow = (limit / seen.seconds) ** self.penalty if seen.seconds > limit > 0 else 1.0
            return (gains[name] + bonus) * slow

        return sorted(known, key=utility, reverse=True)


def weighted(names: Sequence[str], weights: Sequence[float], rng: random.Random) -> list[str]:
    """Return names in an order drawn without replacement in proportion to weights above 0 (Efraimidis and Spirakis, 2006)."""
    keys = {name: math.log(1.0 - rng.random()) / weight for name, weight in zip(names, weights, strict=True)}
    return sorted(names, key=keys.__getitem__, reverse=True)
