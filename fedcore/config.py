"""The server's settings that are not mathematics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedcore.errors import ConfigError
from fedcore.goal import Goal
from fedcore.limits import Limits
from fedcore.policy import RoundPolicy
from fedcore.shards import SHARD_BYTES
from fedcore.strategy import Strategy
from fedcore.values import check_number


@dataclass(frozen=True)
class ServerConfig:
    """How a run goes.

    Attributes:
        num_rounds: rounds that must make a model; failed ones are not counted.
        round_timeout: seconds a round may last.
        heartbeat_interval: seconds between the clients' signs of life.
        heartbeat_timeout: seconds of silence after which a client counts as lost and its place in the round is free.
        start_wait: seconds to wait for the full number of clients once the fewest are there.
        start_clients: clients to choose from that the first round waits for, as long as ``start_wait`` says: where fewer train
            in a round than there are, a choice can be repeated only if it is among the same. 0: as many as train.
        extra_clients: clients invited beyond ``clients_per_round``; the first to answer count.
        max_failures: failed rounds in a row that end the run.
        evaluate_timeout: seconds an evaluation may take, on the server or on the clients; 0: clients are not asked.
        accept_codecs: parts of codec names to accept from clients; None: the own codec and all lossless built-in ones
            except ``torch``. Lossy codecs are accepted only if named.
        seed: of every random choice: selection, and the seeds in the clients' configs.
        policy: replaces what the fields above say about rounds.
        stop_grace: seconds clients have to hear that the run is over before the server goes.
        limits: what one client may cost the server; see :class:`~fedcore.Limits`.
        shard_bytes: models are cut into frames of this size.
        map_above: updates and sums of more bytes than this lie in mapped files without a name instead of in memory.
        map_folder: where those files are; None: the system's folder for temporary files.
        delta_codec: a lossless codec such as ``"delta+zstd"``. Clients that still hold the model before are sent the
            difference to it whenever that is smaller; both sides keep one model more for it. None: whole models are sent.
        state_dir: a folder in which the run is noted, so that the same command goes on with it after a crash or a restart.
            None: it lives in memory alone.
        audit_log: the file that tells who did what; see :mod:`fedcore.audit`. None: ``audit.jsonl`` in the state directory, and
            none without one.
        share_model: clients may download the last model whenever they like, as operators and admins may (``fedcore model``).
            Else they get what a task brings them.
        durability: ``"update"``: an update is on the disk before its client is told that it counts. ``"round"``: only the
            outcome of a round is; after a crash clients are asked to send what they trained once more, which costs them
            the memory of one more model.
        initial_model: a safetensors file with the model that the first round starts from, instead of the strategy's.
        goal: a metric by which the best model is kept, and the run may end early.
        max_run_time: seconds after which the run ends with the rounds it has, those before a restart included. None: no limit.
        keep_updates: of how many of the last rounds the updates stay in the state directory, for ``fedcore replay``.
    """

    num_rounds: int = 3
    round_timeout: float = 3600.0
    heartbeat_interval: float = 5.0
    heartbeat_timeout: float = 300.0
    start_wait: float = 10.0
    start_clients: int = 0
    extra_clients: int = 0
    max_failures: int = 3
    evaluate_timeout: float = 600.0
    accept_codecs: Sequence[str] | None = None
    seed: int = 0
    policy: RoundPolicy | None = None
    stop_grace: float = 5.0
    limits: Limits = Limits()
    shard_bytes: int = SHARD_BYTES
    map_above: int = 2 << 30
    map_folder: str | None = None
    delta_codec: str | None = None
    state_dir: str | None = None
    audit_log: str | None = None
    share_model: bool = False
    durability: Literal["update", "round"] = "update"
    keep_updates: int = 0
    initial_model: str | None = None
    goal: Goal | None = None
    max_run_time: float | None = None

    def __post_init__(self) -> None:
        for name in ("num_rounds", "max_failures", "shard_bytes", "map_above"):
            self._require(name, int, 1)
        for name in ("start_clients", "extra_clients", "seed", "keep_updates"):
            self._require(name, int, 0)
        for name in ("round_timeout", "heartbeat_interval", "heartbeat_timeout"):
            self._require(name, float, 1e-9)
        for name in ("start_wait", "evaluate_timeout", "stop_grace"):
            self._require(name, float, 0.0)
        if self.heartbeat_timeout <= self.heartbeat_interval:
            raise ConfigError(
                f"ServerConfig.heartbeat_timeout is {self.heartbeat_timeout:g} s, not above heartbeat_interval "
                f"{self.heartbeat_interval:g} s: every client would count as lost"
            )
        if self.max_run_time is not None:
            self._require("max_run_time", float, 1e-9)
        if self.goal is not None and not isinstance(self.goal, Goal):
            raise ConfigError(f"ServerConfig.goal must be a Goal, not {self.goal!r}")
        if self.policy is not None and not isinstance(self.policy, RoundPolicy):
            raise ConfigError(f"ServerConfig.policy must be a RoundPolicy, not {self.policy!r}")
        if not isinstance(self.limits, Limits):
            raise ConfigError(f"ServerConfig.limits must be a Limits, not {self.limits!r}")
        if not isinstance(self.share_model, bool):
            raise ConfigError(f"ServerConfig.share_model must be True or False, not {self.share_model!r}")
        names = self.accept_codecs
        if names is not None and (isinstance(names, str) or not isinstance(names, Sequence)):
            raise ConfigError(f"ServerConfig.accept_codecs must be a list of names, not {names!r}")
        if self.durability not in ("update", "round"):
            raise ConfigError(f"ServerConfig.durability must be 'update' or 'round', not {self.durability!r}")
        if self.keep_updates and (self.state_dir is None or self.durability != "update"):
            raise ConfigError("ServerConfig.keep_updates needs a state_dir, and durability 'update'")
        if not 4096 <= self.shard_bytes <= 1 << 30:
            raise ConfigError(f"ServerConfig.shard_bytes must be from 4 KiB to 1 GiB, not {self.shard_bytes}")

    def _require(self, name: str, kind: type, least: float) -> None:
        check_number(f"ServerConfig.{name}", getattr(self, name), kind, least)

    def policy_for(self, strategy: Strategy) -> RoundPolicy:
        """Return the policy that was given, or the one that the strategy's numbers and these settings make.

        Raises:
            ConfigError: they contradict one another.
        """
        found = self.policy or RoundPolicy(**{
            "target": strategy.clients_per_round, "quorum": strategy.min_fit_clients, "deadline": self.round_timeout,
            "extra": self.extra_clients, "start_wait": self.start_wait, "start_clients": self.start_clients,
            "max_failures": self.max_failures, **strategy.policy,
        })  # fmt: skip
        if found.pace not in strategy.paces:
            which = " or ".join(strategy.paces)
            raise ConfigError(f"{type(strategy).__name__} makes sense with RoundPolicy.pace {which}, not with {found.pace!r}")
        if found.carries and not strategy.carries:
            raise ConfigError(f"updates of {type(strategy).__name__} belong to their round: leave RoundPolicy.late at 'drop'")
        return found
