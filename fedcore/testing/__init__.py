"""Tools for testing a federation, and for testing parts that third parties write.

:func:`run_federation` runs a whole federation in one process. ``check_codec``, ``check_transport`` and ``check_strategy``
are the suites that every built-in part passes, as plain functions that need no test framework.
"""

from fedcore.testing.clock import FakeClock
from fedcore.testing.codecs import check_codec
from fedcore.testing.faulty import Faulty
from fedcore.testing.federation import run_federation
from fedcore.testing.strategies import check_strategy
from fedcore.testing.transports import check_transport

__all__ = ["FakeClock", "Faulty", "check_codec", "check_strategy", "check_transport", "run_federation"]
