"""The page "From a laptop to four hospitals", as it is written: every block of it runs, at the place it is for."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "hospitals.md").read_text()
BLOCKS = re.findall(r"^```(python|bash)\n# ([^\n]+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
HOSPITALS = ["hospital-a", "hospital-b", "hospital-c", "hospital-d"]
HOST, PORT = "fed.example.org", "50051"
PATIENCE = 300  # seconds; a dozen processes, on a machine that may have other things to do
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_PROXY": "localhost", "no_proxy": "localhost"}


class World:
    """The places of the page as folders of this machine."""

    def __init__(self, folder):
        self.folder, self.running = folder, []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = str(probe.getsockname()[1])
        for place in ("laptop", "coordinator", *HOSPITALS):
            (folder / place).mkdir()
        for kind, name, code in BLOCKS:
            if kind == "python":
                for place in folder.iterdir():
                    (place / name).write_text(self.here(f"# {name}\n{code}"))

    def here(self, text):
        return text.replace(HOST, "localhost").replace(PORT, self.port)

    def commands(self, where, number, hospital):
        """Return the commands of the block with a number among those of a place, and the folder they run in."""
        block = [code for kind, place, code in BLOCKS if kind == "bash" and place == where][number]
        lines = self.here(block.replace("hospital-a", hospital)).splitlines()
        words = [shlex.split(line) for line in lines if not line.startswith("pip install")]
        programs = {"python": [], "fedcore": ["-m", "fedcore"]}
        place = self.folder / where.replace("hospital-a", hospital).split()[-1]
        return [[sys.executable, *programs[first], *rest] for first, *rest in words], place

    def run(self, where, number, hospital="hospital-a"):
        """Run a block to its end, and return what it printed."""
        commands, place = self.commands(where, number, hospital)
        printed = ""
        for command in commands:
            options = {"env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": PATIENCE, "check": False}
            done = subprocess.run(command, cwd=place, **options)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            printed += done.stdout
        return printed

    def asked(self, where, number):
        """Run a block of one command, whatever comes of it, and return what it printed."""
        (command,), place = self.commands(where, number, "hospital-a")
        options = {"env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": PATIENCE, "check": False}
        return subprocess.run(command, cwd=place, **options).stdout

    def start(self, where, number, hospital="hospital-a"):
        (command,), place = self.commands(where, number, hospital)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=place, env=ENVIRONMENT, **pipes)
        self.running.append(process)
        return process

    def certified(self, hospital):
        """Carry the request and the certificates from one place to the other."""
        kit, desk = self.folder / hospital / "kit", self.folder / "coordinator"
        shutil.copy(kit / "request.pem", desk / f"{hospital}.pem")
        said = self.run("at the coordinator", 1, hospital)
        assert f"authority/kits/{hospital} holds certificate.pem and authority.pem of client {hospital}" in said
        for name in ("certificate.pem", "authority.pem"):
            shutil.copy(desk / "authority" / "kits" / hospital / name, kit)

    def end(self):
        for process in self.running:
            process.kill()
            process.communicate()


@pytest.fixture
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.end()


def ended(process, code=0):
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, (out, err)
    return out, err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_from_its_first_line_to_its_last(world):
    alone = world.run("on the laptop", 0)
    assert re.fullmatch(r"loss 0\.\d{3}, digest [0-9a-f]{16}\n", alone)

    said = world.run("at the coordinator", 0)
    assert "the kit of server coordinator is in authority/kits/coordinator" in said
    for name in HOSPITALS:
        world.run("at hospital-a", 0, name)
        world.certified(name)
        shutil.copy(world.folder / "laptop" / f"{name}.npz", world.folder / name)

    server = world.start("at the coordinator", 2)
    clients = [world.start("at hospital-a", 1, name) for name in HOSPITALS]
    assert ended(server)[0] == alone
    assert [ended(client)[0] for client in clients] == ["the run is over\n"] * 4
    assert (world.folder / "coordinator" / "model.safetensors").stat().st_size > 0
    keys = [path.relative_to(world.folder).parts[0] for path in world.folder.rglob("key.pem")]
    assert sorted(keys) == ["coordinator", "coordinator", *HOSPITALS], "a key has left its place"

    shutil.rmtree(world.folder / "coordinator" / "runs")  # another run, of those that are left
    old = (world.folder / "coordinator" / "authority" / "kits" / "coordinator" / "certificate.pem").read_bytes()
    world.run("at the coordinator", 4)
    world.certified("hospital-a")
    assert world.run("at the coordinator", 5).startswith("revoked 1 certificate of hospital-d")
    assert (world.folder / "coordinator" / "authority" / "kits" / "coordinator" / "certificate.pem").read_bytes() != old
    server = world.start("at the coordinator", 2)
    *others, gone = [world.start("at hospital-a", 1, name) for name in HOSPITALS]
    assert "PermissionDenied: this certificate was revoked" in ended(gone, code=1)[1]
    shown = world.run("at the coordinator", 3)
    assert {line.split()[0] for line in shown.splitlines() if line.startswith("hospital")} <= {*HOSPITALS[:3]}
    assert ended(server)[0].startswith("loss 0.")
    assert [ended(client)[0] for client in others] == ["the run is over\n"] * 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_section_on_tokens(world):
    world.run("on the laptop", 0)
    world.run("at the coordinator", 0)
    desk = world.folder / "coordinator"
    assert "the issuer is in keys; its signing.key must stay there" in world.run("at the coordinator", 6)
    for name in HOSPITALS:
        assert f"the token of client {name} is in {name}.token" in world.run("at the coordinator", 7, name)
        for file in (desk / f"{name}.token", desk / "authority" / "authority.pem", world.folder / "laptop" / f"{name}.npz"):
            shutil.copy(file, world.folder / name)

    server = world.start("at the coordinator", 8)
    first, *others = [world.start("at hospital-a", 2, name) for name in HOSPITALS[:2]]
    while "hospital-b" not in (shown := world.asked("at the coordinator", 9)):
        assert server.poll() is None, server.communicate()
    assert {line.split()[0] for line in shown.splitlines() if line.startswith("hospital")} <= {*HOSPITALS[:2]}
    others += [world.start("at hospital-a", 2, name) for name in HOSPITALS[2:]]
    ended(server)
    for client in (first, *others):
        ended(client)
    said = world.run("at the coordinator", 10)
    assert said.startswith("revoked 1 token of hospital-d: ")
    assert re.search(r"client +hospital-d +\S+ +revoked", said)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_section_on_stepping_in(world):
    world.run("on the laptop", 0)
    world.run("at the coordinator", 0)
    for name in HOSPITALS:
        world.run("at hospital-a", 0, name)
        world.certified(name)
        shutil.copy(world.folder / "laptop" / f"{name}.npz", world.folder / name)
    assert "the kit of admin head-of-study is in authority/kits/head-of-study" in world.run("at the coordinator", 11)
    server = world.start("at the coordinator", 2)
    clients = [world.start("at hospital-a", 1, name) for name in ("hospital-a", "hospital-d")]
    while "hospital-a" not in (shown := world.asked("at the coordinator", 3)) or "hospital-d" not in shown:
        assert server.poll() is None, server.communicate()
    paused, model, evicted, resumed = world.run("at the coordinator", 12).splitlines()
    assert paused.startswith("the run is paused")
    assert re.fullmatch(r"the model that the run began with, digest [0-9a-f]{16}, is in so-far\.safetensors \(.+\)", model)
    assert evicted == "hospital-d was sent away, and may register again"
    assert resumed == "the run goes on"
    copied = [world.run("at the coordinator", 14).splitlines()[0] for _ in range(2)]
    assert all(re.fullmatch(r"whole: \d+ lines, \d+ new, from \S+ to \S+", each) for each in copied)
    clients += [world.start("at hospital-a", 1, name) for name in ("hospital-b", "hospital-c")]
    ended(server)
    assert [ended(client)[0] for client in clients] == ["the run is over\n"] * 4
    whole, head, *shown = world.run("at the coordinator", 13).splitlines()
    assert re.fullmatch(r"whole: \d+ lines, from \S+ to \S+", whole)
    assert re.fullmatch(r"head [0-9a-f]{64}", head)
    told = "\n".join(shown)
    assert "ClientEvicted  client_id=hospital-d  reason=its table is wrong" in told
    assert re.search(r"Commanded  peer=head-of-study  .*act=evict  client_id=hospital-d", told)
    assert "act=pause" not in told
    copy, log = (world.folder / "coordinator" / name for name in ("heart-audit.jsonl", "runs/heart/audit.jsonl"))
    assert log.read_bytes().startswith(copy.read_bytes())
    assert b'"act": "resume"' in copy.read_bytes()
    assert b'"AuditRead", "peer": "control-room"' in log.read_bytes()
    assert (world.folder / "coordinator" / "runs" / "heart").stat().st_mode & 0o777 == 0o700


def test_all_blocks_are_run():
    places = [where for kind, where, _ in BLOCKS if kind == "bash"]
    assert places.count("at the coordinator") == 15
    assert places.count("at hospital-a") == 3
    assert places.count("on the laptop") == 1
    assert len(places) == 19
    programs = ["study.py", "laptop.py", "server.py", "client.py", "token_server.py", "token_client.py"]
    assert [name for kind, name, _ in BLOCKS if kind == "python"] == programs
    assert PAGE.count("```") == 2 * len(BLOCKS)
