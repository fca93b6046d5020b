"""What of a model is common to all clients, what stays with each, and how buffers are joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Literal, TypeAlias

from torch import Tensor

from fedcore.errors import ConfigError
from fedcore.parameters import Parameters

Rule: TypeAlias = Literal["average", "max", "server"]


@dataclass(frozen=True)
class Exchange:
    """Says by patterns of tensor names what travels. ``*`` and ``?`` are wildcards, case matters.

    The server has the common part alone. A client's own part never leaves it: what ``fit`` and ``evaluate`` are given is the
    common part and the client's own beside it, and of what ``fit`` returns only the common part is sent.

    >>> FedAvg(model.state_dict(), exchange=Exchange(exclude=["*.bn.*"]))       # FedBN
    >>> FedAvg(model.state_dict(), exchange=Exchange(exclude=["head.*"]))       # FedPer, FedRep
    >>> FedAvg(model.state_dict(), exchange=Exchange(include=["*lora_*"]))      # adapters

    Papers: FedBN: Li et al., ICLR 2021. FedPer: Arivazhagan et al., arXiv 1912.00818. FedRep: Collins et al., ICML 2021.

    Attributes:
        include: patterns of what is common.
        exclude: patterns of what is not, nevertheless.
        buffers: for patterns of common tensors, the first that fits: ``"average"``: the weighted mean; an integer is rounded,
            halves to even; ``"max"``: the largest value of each element; ``"server"``: it stays what it is at the server, and
            clients are told. For others: floating-point tensors are averaged, integers take the largest value. What is averaged
            by a rule is not the server's optimizer's, nor are ``running_mean`` and ``running_var``, with or without a rule.

    Raises:
        ConfigError: a pattern or a rule is none.
    """

    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    buffers: Mapping[str, Rule] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            patterns = getattr(self, name)
            if isinstance(patterns, str) or not all(isinstance(each, str) for each in patterns):
                raise ConfigError(f"Exchange.{name} is a list of patterns, not {patterns!r}")
        for pattern, rule in self.buffers.items():
            if rule not in ("average", "max", "server"):
                raise ConfigError(f"Exchange.buffers[{pattern!r}] must be 'average', 'max' or 'server', not {rule!r}")

    def travels(self, name: str) -> bool:
        """Return whether a tensor is common."""
        return fits(name, self.include) and not fits(name, self.exclude)

    def common(self, parameters: Mapping[str, Tensor]) -> Parameters:
        """Return the common part of a model.

        Raises:
            ConfigError: there is none.
        """
        found = {name: value for name, value in parameters.items() if self.travels(name)}
        if not found:
            raise ConfigError(f"no tensor of the model is common: include={list(self.include)}, exclude={list(self.exclude)}")
        return found

    def rule(self, name: str) -> Rule | None:
        """Return how a tensor is joined; None: as usual."""
        return next((rule for pattern, rule in self.buffers.items() if fnmatchcase(name, pattern)), None)


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a name is one of those that a pattern means."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
