"""What a site lets a server ask of it, and what it lets leave its premises. The server cannot override any of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from fedcore.errors import ConfigError, SiteRefused
from fedcore.exchange import fits
from fedcore.extents import squared_norm
from fedcore.parameters import Parameters, Spec
from fedcore.values import Config

_SET_BY_SERVER = {"round", "seed"}  # in every config; numbers of which nothing follows


@dataclass(frozen=True)
class SitePolicy:
    """The rules of a site, for :func:`fedcore.start_client`; what breaks one is refused with ``SiteRefused``.

    Attributes:
        tensors: patterns of tensor names that may leave, such as ``["head.*"]``; ``*`` and ``?`` are wildcards, case matters.
            None: all may. An update with another tensor is refused as a whole.
        max_rounds: training rounds that the site takes part in; then it leaves. None: all.
        max_model_bytes: the largest model it takes, judged before memory is allocated for it.
        max_sent_bytes: bytes of tensors, before the codec, that it sends in all. None: no limit.
        clip: the largest L2 norm of what an update changes of the model, over all floating-point tensors; a larger change is
            scaled down to it before it leaves, and one with tensors beside the model's, which that would not bound, is
            refused. It costs the memory of one more model. None: nothing is clipped.
        config: for each key that the server's config may have, the smallest and the largest value; ``round`` and ``seed`` are
            always allowed. None: anything is.

    Raises:
        ConfigError: a rule makes no sense.
    """

    tensors: Sequence[str] | None = None
    max_rounds: int | None = None
    max_model_bytes: int = 16 << 30
    max_sent_bytes: int | None = None
    clip: float | None = None
    config: Mapping[str, tuple[float, float]] | None = field(default=None)

    def __post_init__(self) -> None:
        for name in ("max_rounds", "max_model_bytes", "max_sent_bytes"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"SitePolicy.{name} must be an integer of at least 1, not {value!r}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ConfigError(f"SitePolicy.clip must be a number above 0, not {self.clip!r}")
        if isinstance(self.tensors, str):
            raise ConfigError("SitePolicy.tensors is a list of patterns, not one")
        for key, bounds in (self.config or {}).items():
            if len(bounds) != 2 or not bounds[0] <= bounds[1]:
                raise ConfigError(f"SitePolicy.config[{key!r}] must be the smallest and the largest value, not {bounds!r}")

    def check_model(self, spec: Spec) -> None:
        """Check a model that is about to be received.

        Raises:
            SiteRefused: it is too large.
        """
        if spec.nbytes > self.max_model_bytes:
            raise SiteRefused(f"a model of {spec.nbytes} bytes is above this site's limit, {self.max_model_bytes}")

    def check_config(self, config: Config) -> None:
        """Check what the server wants of the training.

        Raises:
            SiteRefused: a key or a value is not allowed.
        """
        if self.config is None:
            return
        for key, value in config.items():
            if key in _SET_BY_SERVER:
                continue
            if key not in self.config:
                allowed = ", ".join(sorted(self.config))
                raise SiteRefused(f"config[{key[:80]!r}] is none of those that this site allows: {allowed}")
            least, most = self.config[key]
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise SiteRefused(f"config[{key!r}] is {value!r:.80}; this site allows a number from {least!r} to {most!r}")

    def check_outgoing(self, spec: Spec, sent: int) -> None:
        """Check an update that is about to leave, behind ``sent`` bytes that have left.

        Raises:
            SiteRefused: it may not.
        """
        for name in (info.name for info in spec.infos) if self.tensors is not None else ():
            if not fits(name, self.tensors or ()):
                raise SiteRefused(f"tensor {name!r} may not leave this site: it matches none of {list(self.tensors or ())}")
        if self.max_sent_bytes is not None and sent + spec.nbytes > self.max_sent_bytes:
            more = f"{spec.nbytes} more are above its limit, {self.max_sent_bytes}"
            raise SiteRefused(f"{sent} bytes have left this site; {more}")

    def clipped(self, parameters: Parameters, base: Parameters) -> Parameters:
        """Return an update whose change from ``base`` is no longer than :attr:`clip`; integers stay as they are.

        Raises:
            SiteRefused: it has a tensor beside the model's, which that does not bound.
        """
        if self.clip is None:
            return parameters
        changed = [name for name, value in parameters.items() if value.is_floating_point()]
        if beside := next((name for name in changed if name not in base), None):
            raise SiteRefused(f"tensor {beside!r} is none of the model's, and this site's clip bounds only what those change")
        norm = math.sqrt(squared_norm(parameters[name].double() - base[name].double() for name in changed))
        if not norm > self.clip:  # nor is one that is not finite: the server's check says so by name
            return parameters
        scale = self.clip / norm
        return {**parameters, **{name: _towards(base[name], parameters[name], scale) for name in changed}}


def _towards(base: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    return (base.double() + (value.double() - base.double()) * scale).to(value.dtype)
