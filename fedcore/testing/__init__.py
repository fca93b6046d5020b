"""Tools for testing a federation, and for testing parts that third parties write.

:func:`run_federation` runs a whole federation in one process. ``check_codec``, ``check_transport`` and ``check_strategy``
are the suites that every built-in part passes, as plain functions that need no test framework.
``Faulty``, ``Proxy`` and ``Doubling`` disturb what passes between clients and a server.
"""

from fedcore.testing.chaos import Proxy
from fedcore.testing.clock import FakeClock
from fedcore.testing.codecs import check_codec
from fedcore.testing.doubling import Doubling
from fedcore.testing.faulty import Faulty
from fedcore.testing.federation import run_federation
from fedcore.testing.records import Recorder, check_state
from fedcore.testing.strategies import check_strategy
from fedcore.testing.transports import check_transport

__all__ = [
    "Doubling", "FakeClock", "Faulty", "Proxy", "Recorder", "check_codec", "check_state", "check_strategy", "check_transport",
    "run_federation",
]  # fmt: skip
