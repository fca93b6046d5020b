"""Federated learning for PyTorch: exact, durable, transport-agnostic.

The shop window. Names are imported when they are first used, so that ``import fedcore`` does not pay for torch.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a checkout the shelves lie beside this folder, and an import from the root would not find them.
if (_beside := Path(__file__).resolve().parent.parent).joinpath("transports", "memory.py").is_file():
    __path__.append(str(_beside))

__version__ = "0.1.0"

_HOMES = {
    "aggregator": ("Aggregator", "Update"),
    "averaging": ("FedAvgAggregator",),
    "client": ("Client",),
    "codec": ("Codec", "Wrapper"),
    "config": ("ServerConfig",),
    "coordinator": ("Coordinator",),
    "errors": (
        "AccessError",
        "AddressError",
        "AggregationError",
        "ConfigError",
        "ConnectionLost",
        "DeadlineExceeded",
        "DecodeError",
        "FedcoreError",
        "MissingDependency",
        "ProtocolError",
        "RunFailed",
        "RunSuspended",
        "SessionError",
        "SiteRefused",
        "StateError",
        "TransportError",
        "UnknownName",
        "UpdateRejected",
    ),
    "estimators.decomfl": ("DeComFLClient",),
    "estimators.zeroth_order": ("ZerothOrder",),
    "exchange": ("Exchange",),
    "filter": ("Context", "Filter"),
    "filters.clip": ("Clip",),
    "filters.gaussian": ("Gaussian",),
    "goal": ("Goal",),
    "history": ("History", "RoundRecord"),
    "limits": ("Limits",),
    "link": ("Link",),
    "parameters": ("Parameters", "Spec", "digest"),
    "policy": ("RoundPolicy",),
    "registry": ("register",),
    "security": ("TLS",),
    "site": ("SitePolicy",),
    "server": ("Server", "start_server"),
    "strategies.bulyan": ("Bulyan",),
    "strategies.centeredclipping": ("CenteredClipping",),
    "strategies.decomfl": ("DeComFL",),
    "strategies.fedadagrad": ("FedAdagrad",),
    "strategies.fedadam": ("FedAdam",),
    "strategies.fedasync": ("FedAsync",),
    "strategies.fedavg": ("FedAvg",),
    "strategies.fedavgm": ("FedAvgM",),
    "strategies.fedbuff": ("FedBuff",),
    "strategies.feddyn": ("FedDyn",),
    "strategies.fednova": ("FedNova",),
    "strategies.fedopt": ("FedOpt",),
    "strategies.fedprox": ("FedProx",),
    "strategies.fedyogi": ("FedYogi",),
    "strategies.fltrust": ("FLTrust",),
    "strategies.geomedian": ("GeoMedian",),
    "strategies.krum": ("Krum",),
    "strategies.median": ("Median",),
    "strategies.multikrum": ("MultiKrum",),
    "strategies.normbounding": ("NormBounding",),
    "strategies.qfedavg": ("QFedAvg",),
    "strategies.scaffold": ("Scaffold",),
    "strategies.trimmedmean": ("TrimmedMean",),
    "strategy": ("Strategy",),
    "tokens": ("Tokens",),
    "transport": ("Connection", "Listener", "Transport"),
    "training": ("Training",),
    "transports.grpc": ("Grpc",),
    "transports.memory": ("Memory",),
    "worker": ("start_client", "start_clients"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = ("events", "testing")

__all__ = sorted(["__version__", *_MODULES, *_HOME_OF])

if TYPE_CHECKING:
    from fedcore import events as events
    from fedcore import testing as testing
    from fedcore.aggregator import Aggregator as Aggregator
    from fedcore.aggregator import Update as Update
    from fedcore.averaging import FedAvgAggregator as FedAvgAggregator
    from fedcore.client import Client as Client
    from fedcore.codec import Codec as Codec
    from fedcore.codec import Wrapper as Wrapper
    from fedcore.config import ServerConfig as ServerConfig
    from fedcore.coordinator import Coordinator as Coordinator
    from fedcore.errors import AccessError as AccessError
    from fedcore.errors import AddressError as AddressError
    from fedcore.errors import AggregationError as AggregationError
    from fedcore.errors import ConfigError as ConfigError
    from fedcore.errors import ConnectionLost as ConnectionLost
    from fedcore.errors import DeadlineExceeded as DeadlineExceeded
    from fedcore.errors import DecodeError as DecodeError
    from fedcore.errors import FedcoreError as FedcoreError
    from fedcore.errors import MissingDependency as MissingDependency
    from fedcore.errors import ProtocolError as ProtocolError
    from fedcore.errors import RunFailed as RunFailed
    from fedcore.errors import RunSuspended as RunSuspended
    from fedcore.errors import SessionError as SessionError
    from fedcore.errors import SiteRefused as SiteRefused
    from fedcore.errors import StateError as StateError
    from fedcore.errors import TransportError as TransportError
    from fedcore.errors import UnknownName as UnknownName
    from fedcore.errors import UpdateRejected as UpdateRejected
    from fedcore.estimators.decomfl import DeComFLClient as DeComFLClient
    from fedcore.estimators.zeroth_order import ZerothOrder as ZerothOrder
    from fedcore.exchange import Exchange as Exchange
    from fedcore.filter import Context as Context
    from fedcore.filter import Filter as Filter
    from fedcore.filters.clip import Clip as Clip
    from fedcore.filters.gaussian import Gaussian as Gaussian
    from fedcore.goal import Goal as Goal
    from fedcore.history import History as History
    from fedcore.history import RoundRecord as RoundRecord
    from fedcore.limits import Limits as Limits
    from fedcore.link import Link as Link
    from fedcore.parameters import Parameters as Parameters
    from fedcore.parameters import Spec as Spec
    from fedcore.parameters import digest as digest
    from fedcore.policy import RoundPolicy as RoundPolicy
    from fedcore.registry import register as register
    from fedcore.security import TLS as TLS
    from fedcore.server import Server as Server
    from fedcore.server import start_server as start_server
    from fedcore.site import SitePolicy as SitePolicy
    from fedcore.strategies.bulyan import Bulyan as Bulyan
    from fedcore.strategies.centeredclipping import CenteredClipping as CenteredClipping
    from fedcore.strategies.decomfl import DeComFL as DeComFL
    from fedcore.strategies.fedadagrad import FedAdagrad as FedAdagrad
    from fedcore.strategies.fedadam import FedAdam as FedAdam
    from fedcore.strategies.fedasync import FedAsync as FedAsync
    from fedcore.strategies.fedavg import FedAvg as FedAvg
    from fedcore.strategies.fedavgm import FedAvgM as FedAvgM
    from fedcore.strategies.fedbuff import FedBuff as FedBuff
    from fedcore.strategies.feddyn import FedDyn as FedDyn
    from fedcore.strategies.fednova import FedNova as FedNova
    from fedcore.strategies.fedopt import FedOpt as FedOpt
    from fedcore.strategies.fedprox import FedProx as FedProx
    from fedcore.strategies.fedyogi import FedYogi as FedYogi
    from fedcore.strategies.fltrust import FLTrust as FLTrust
    from fedcore.strategies.geomedian import GeoMedian as GeoMedian
    from fedcore.strategies.krum import Krum as Krum
    from fedcore.strategies.median import Median as Median
    from fedcore.strategies.multikrum import MultiKrum as MultiKrum
    from fedcore.strategies.normbounding import NormBounding as NormBounding
    from fedcore.strategies.qfedavg import QFedAvg as QFedAvg
    from fedcore.strategies.scaffold import Scaffold as Scaffold
    from fedcore.strategies.trimmedmean import TrimmedMean as TrimmedMean
    from fedcore.strategy import Strategy as Strategy
    from fedcore.tokens import Tokens as Tokens
    from fedcore.training import Training as Training
    from fedcore.transport import Connection as Connection
    from fedcore.transport import Listener as Listener
    from fedcore.transport import Transport as Transport
    from fedcore.transports.grpc import Grpc as Grpc
    from fedcore.transports.memory import Memory as Memory
    from fedcore.worker import start_client as start_client
    from fedcore.worker import start_clients as start_clients


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
