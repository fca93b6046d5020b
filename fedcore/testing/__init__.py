"""Tools for testing a federation, and for testing parts that third parties write.

:func:`run_federation` runs a whole federation in one process. ``check_codec``, ``check_transport`` and ``check_strategy``
are the suites that every built-in part passes, as plain functions that need no test framework.
``Faulty``, ``Proxy`` and ``Doubling`` disturb what passes between clients and a server. :func:`simulate` runs a federation
whose every fault and moment a seed decides.
"""

from fedcore.testing.chaos import Proxy
from fedcore.testing.clock import FakeClock
from fedcore.testing.codecs import check_codec
from fedcore.testing.disk import LossyDisk
from fedcore.testing.doubling import Doubling
from fedcore.testing.faulty import Faulty
from fedcore.testing.federation import run_federation
from fedcore.testing.journal import Crashed, MemoryJournal
from fedcore.testing.records import Recorder, check_state
from fedcore.testing.simulation import Simulation, simulate
from fedcore.testing.strategies import check_strategy
from fedcore.testing.transports import check_transport

__all__ = [
    "Crashed", "Doubling", "FakeClock", "Faulty", "LossyDisk", "MemoryJournal", "Proxy", "Recorder", "Simulation",
    "check_codec", "check_state", "check_strategy", "check_transport", "run_federation", "simulate",
]  # fmt: skip
