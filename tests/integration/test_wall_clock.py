"""The wall clock may say what it likes: deadlines and leases are kept, and a run ends with the same bits."""

import ast
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

import fedcore

pytestmark = pytest.mark.chaos

HERE = Path(__file__).parent
ROOT = Path(fedcore.__file__).parents[1]
HOUR, DECADE = 3600.0, 10 * 365.25 * 86400
LEASE, DEADLINE = 1.5, 4.0

FAKE = '''
"""Python imports this before anything else. The wall clock of the process is off by what a file says, or stands still at it.

What gRPC's Python asks it for stays right: it makes a moment of a timeout, which gRPC's core makes a timeout again at once with
the clock of the system, and the two never differ in one process.
"""

import datetime
import os
import sys
import time

FILE, REAL = os.environ["WALL_CLOCK"], time.time_ns


def time_ns():
    if sys._getframe(1).f_globals.get("__name__", "").startswith("grpc"):
        return REAL()
    return said()


def said():
    with open(FILE) as file:
        how, seconds = file.read().split()
    return int(float(seconds) * 1e9) + (0 if how == "frozen" else REAL())


def now():
    if sys._getframe(1).f_globals.get("__name__", "").startswith("grpc"):
        return REAL() / 1e9
    return said() / 1e9


class Moment(datetime.datetime):
    __slots__ = ()

    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(said() / 1e9, tz)

    @classmethod
    def utcnow(cls):
        return cls.fromtimestamp(said() / 1e9, datetime.timezone.utc).replace(tzinfo=None)

    today = now


local, universal = time.localtime, time.gmtime
time.time, time.time_ns, datetime.datetime = now, time_ns, Moment
time.localtime = lambda seconds=None: local(said() / 1e9 if seconds is None else seconds)
time.gmtime = lambda seconds=None: universal(said() / 1e9 if seconds is None else seconds)
'''


class Process:
    """A process whose lines are kept, with the moment that each came."""

    def __init__(self, command, clock, *, plan=""):
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join((str(clock.parent), *filter(None, [os.environ.get("PYTHONPATH")]))),
            "WALL_CLOCK": str(clock), "FEDCORE_FAILPOINTS": plan, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self.child = subprocess.Popen(
            [sys.executable, *command], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.lines, self._came, self._ended = [], threading.Condition(), False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.child.stdout:
            with self._came:
                self.lines.append((time.monotonic(), line.strip()))
                self._came.notify_all()
        with self._came:
            self._ended = True
            self._came.notify_all()

    def until(self, words, timeout=60.0):
        """Wait for a line that begins like this, and return when it came."""
        with self._came:
            assert self._came.wait_for(lambda: self._ended or self._find(words), timeout), (words, self.lines)
            found = self._find(words)
        assert found, f"the process ended without {words!r}: {self.lines}"
        return found[0]

    def _find(self, words):
        return next((each for each in self.lines if f"{each[1]} ".startswith(f"{words} ")), None)

    def tell(self, *words):
        for word in words:
            self.child.stdin.write(f"{word}\n")

    def end(self):
        """Wait until it has ended, and return its exit status."""
        if not self.child.stdin.closed:
            self.child.stdin.close()
        status = self.child.wait(60)
        self._reader.join()
        self.child.stdout.close()
        return status

    def kill(self):
        self.child.send_signal(signal.SIGKILL)
        return time.monotonic()


class Site:
    """A server and two processes with clients, each with the wall clock that a file gives it."""

    def __init__(self, folder, server=("off", 0.0), clients=("off", 0.0)):
        self.folder = folder
        self.clocks = [folder / name / "now" for name in ("server", "clients")]
        for clock in self.clocks:
            clock.parent.mkdir()
            (clock.parent / "sitecustomize.py").write_text(FAKE)
        self.set(server, clients)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.running = []

    def set(self, *clocks):
        """Set the clocks; in one step, so that nobody reads half of it."""
        for file, (how, seconds) in zip(self.clocks, clocks, strict=True):
            ready = file.with_name("new")
            ready.write_text(f"{how} {seconds}")
            ready.replace(file)

    def serve(self, **settings):
        wanted = {"num_rounds": 3, "round_timeout": DEADLINE, "heartbeat_timeout": LEASE, "keep_updates": 10, **settings}
        return self._start([HERE / "serving.py", self.folder / "state", self.address, json.dumps(wanted)], self.clocks[0])

    def work(self, *, hang=None):
        return self._start([HERE / "working.py", self.address, json.dumps({"hang": hang or {}})], self.clocks[1])

    def _start(self, command, clock):
        self.running.append(Process(command, clock))
        return self.running[-1]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.running:
            process.kill()
            process.end()

    @property
    def begun(self):
        """When the server thinks that the run began."""
        with closing(sqlite3.connect(self.folder / "state" / "ledger.db")) as database:
            return database.execute("SELECT begun FROM run").fetchone()[0]


def run(site, jump=None):
    """A run in which a round ends by its deadline, and a client that dies is replaced; returns what became of it.

    In round 1 a client takes longer than there is time. In round 3 it is killed, and one that comes then has its place.
    """
    server = site.serve()
    crew, victim = site.work(), site.work(hang={"1": DEADLINE + 0.5, "3": 60.0})
    server.until("started"), crew.until("ready"), victim.until("ready")
    crew.tell("client-0", "client-1"), victim.tell("client-2")
    opened = server.until("opened 1")
    for name in (0, 1):
        server.until(f"accepted 1 client-{name}")
    if jump:
        site.set(*jump)
    took = server.until("opened 2") - opened
    victim.until("training client-2 3")
    silent = victim.kill()
    if jump:
        site.set(*reversed(jump))
    lost = server.until("lost client-2") - silent
    crew.tell("client-3")
    crew.child.stdin.close()
    server.until("digest")
    assert (server.end(), crew.end()) == (0, 0)
    accepted = sorted(line for _, line in server.lines if line.startswith("accepted"))
    committed = [line for _, line in server.lines if line.startswith(("committed", "digest"))]
    clocks = site.begun, float(crew.lines[0][1].split()[1])
    return took, lost, [*accepted, *committed], clocks


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    with Site(tmp_path_factory.mktemp("control")) as site:
        took, lost, outcome, _ = run(site)
    check_times(took, lost)
    wanted = {1: "01", 2: "012", 3: "013", 4: "013"}
    assert outcome[:11] == [f"accepted {number} client-{client}" for number, clients in wanted.items() for client in clients]
    return outcome


def check_times(took, lost):
    assert DEADLINE - 0.3 <= took <= DEADLINE + 1.0
    assert LEASE - 0.5 <= lost <= LEASE + 1.0  # the last heartbeat may have come a little before


SLOW = pytest.mark.slow
SKEWS = [
    pytest.param(("off", HOUR), ("off", 0.0), id="server-ahead", marks=SLOW),
    pytest.param(("off", -HOUR), ("off", 0.0), id="server-behind", marks=SLOW),
    pytest.param(("off", 0.0), ("off", DECADE), id="clients-ten-years-ahead", marks=SLOW),
    pytest.param(("off", DECADE), ("off", -HOUR), id="far-apart", marks=SLOW),
    pytest.param(("frozen", 1.7e9), ("frozen", 1.6e9), id="frozen", marks=SLOW),
]


@pytest.mark.parametrize(("server", "clients"), SKEWS)
def test_f19_whatever_the_wall_clocks_say_deadlines_and_leases_are_kept(tmp_path, control, server, clients):
    with Site(tmp_path, server, clients) as site:
        before = time.time()
        took, lost, outcome, noted = run(site)
    check_times(took, lost)
    assert outcome == control
    for (how, seconds), clock in zip((server, clients), noted, strict=True):  # the clocks did say so
        expected = seconds if how == "frozen" else before + seconds
        assert abs(clock - expected) < 60.0


JUMPS = [
    pytest.param(("off", HOUR), ("off", -HOUR), id="an-hour", marks=pytest.mark.slow),
    pytest.param(("off", -HOUR), ("off", DECADE), id="back-and-ten-years", marks=SLOW),
    pytest.param(("frozen", 1.7e9), ("frozen", 1.7e9), id="standstill", marks=SLOW),
]


@pytest.mark.parametrize(("server", "clients"), JUMPS)
def test_f19_a_jump_in_the_middle_of_a_round_changes_nothing(tmp_path, control, server, clients):
    with Site(tmp_path) as site:
        took, lost, outcome, _ = run(site, jump=(server, clients))
    check_times(took, lost)
    assert outcome == control


@pytest.mark.slow
@pytest.mark.parametrize("server", [("off", -HOUR), ("off", DECADE)], ids=["behind", "ten-years-ahead"])
def test_f19_a_server_that_comes_back_with_another_clock_gives_a_round_the_time_that_was_left(tmp_path, server):
    with Site(tmp_path) as site:
        first = site.serve(round_timeout=6.0, heartbeat_timeout=20.0)
        crew, slow = site.work(), site.work(hang={"1": 60.0})
        first.until("started"), crew.until("ready"), slow.until("ready")
        crew.tell("client-0", "client-1"), slow.tell("client-2")
        opened = first.until("opened 1")
        first.until("accepted 1 client-0"), first.until("accepted 1 client-1")
        threading.Event().wait(max(0.0, opened + 3.0 - time.monotonic()))
        went = first.kill() - opened
        site.set(server, ("off", 0.0))
        second = site.serve(round_timeout=6.0, heartbeat_timeout=20.0)
        again = second.until("opened 1")
        ended = second.until("opened 2")
        assert 5.5 <= went + ended - again <= 8.0  # and not 9


# --- who asks the wall clock at all ---

WALL = {
    "time", "time_ns", "localtime", "gmtime", "ctime", "asctime", "strftime", "mktime", "clock_gettime", "clock_gettime_ns",
    "clock_settime",
}  # fmt: skip
FOR_PEOPLE = {
    ("fedcore/ledger.py", "time.time"): "when the run began",
    ("fedcore/state_commands.py", "time.localtime"): "the same, in words",
    ("fedcore/state_commands.py", "time.strftime"): "the same, in words",
    ("fedcore/audit.py", "datetime.datetime"): "when something happened",
    ("fedcore/audit.py", "datetime.UTC"): "the same",
    ("fedcore/audit_commands.py", "datetime.datetime"): "since when what happened is shown",
    ("fedcore/audit_commands.py", "datetime.UTC"): "the same",
}
CERTIFICATES = {  # they, and tokens, are valid from one date to another; files are read again when they have changed
    "fedcore/pki.py", "fedcore/pki_commands.py", "fedcore/keys.py", "fedcore/watched.py",
}  # fmt: skip


def sources():
    for folder in ("fedcore", "transports", "codecs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text()


def asked(tree):
    """Yield what a module uses of the wall clock, by whatever name."""
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {each.asname or each.name: each.name for each in node.names if each.name in ("time", "datetime")}
        elif isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
            yield from (f"{node.module}.{each.name}" for each in node.names if node.module != "time" or each.name in WALL)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id, "")
            if module == "datetime" or (module == "time" and node.attr in WALL):
                yield f"{module}.{node.attr}"
        if isinstance(node, ast.Attribute) and re.fullmatch(r"st_[amc]time(_ns)?|get[amc]time|uuid1|fromtimestamp", node.attr):
            yield node.attr
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"CURRENT_TIME\w*|julianday|unixepoch|datetime\('now", node.value)


def test_f19_the_wall_clock_is_asked_for_what_people_read_and_for_the_dates_of_certificates():
    found = {(name, use) for name, text in sources() for use in asked(ast.parse(text))}
    assert {each for each in found if each[0] not in CERTIFICATES} == FOR_PEOPLE.keys()


def test_f19_what_it_said_is_written_down_and_shown_and_never_compared():
    """The moment that a run began is a column that one command reads."""
    users = {name for name, text in sources() if re.search(r"[\"']begun[\"']", text)}
    assert users == {"fedcore/ledger.py", "fedcore/state_commands.py", "fedcore/testing/journal.py"}
    for name, text in sources():
        compared = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Compare | ast.BinOp)]
        assert not [node for node in compared if "begun" in ast.unparse(node) and name in users], name


def test_f19_the_search_finds_what_it_is_for():
    wrong = (
        "import time as t\nfrom datetime import datetime\nimport os\nfrom time import time, monotonic\n"
        "t.time(); t.monotonic(); datetime.now(); os.stat('x').st_mtime; 'SELECT CURRENT_TIMESTAMP'"
    )
    assert sorted(asked(ast.parse(wrong))) == ["CURRENT_TIMESTAMP", "datetime.datetime", "st_mtime", "time.time", "time.time"]
