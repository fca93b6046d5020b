"""Fuzzes: ``python tests/fuzz/run.py --seconds 60 [TARGET ...]``; a line of JSON for each target. Fails if anything was found.

What was found interesting is kept in ``.fuzz/TARGET/corpus``, what must not happen in ``.fuzz/TARGET/found``, and the next call
goes on from there. ``--seeds`` writes ``tests/fuzz/corpus`` again, with the real encoders.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
TARGETS = ("header", "update", "config", "decompression", "checkpoint", "client", "token")
KEPT = HERE.parents[1] / ".fuzz"
_LARGEST = 64 << 10
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "131072",  # so that memory that was freed is given back, and counts again when it is taken again
    "PYTHONHASHSEED": "0",
}
_QUIET = ("INFO:", "WARNING: Failed to find function")


def main() -> int:
    """Fuzz, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seeds", action="store_true", help="only write the corpus again")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if unknown := set(chosen.targets) - set(TARGETS):
        parser.error(f"no such target: {min(unknown)}")
    targets = chosen.targets or TARGETS
    if chosen.child:
        fuzz(targets[0], chosen.seconds)
    if chosen.seeds:
        for name in targets:
            write_seeds(name)
        return 0
    return max([report(name, chosen.seconds) for name in targets])


def target(name: str):  # type: ignore[no-untyped-def]
    """Return the target of a name."""
    return import_module(f"fuzz_{name}").TARGET


def write_seeds(name: str) -> None:
    """Write the valid inputs of a target; those that were found by fuzzing stay."""
    folder = HERE / "corpus" / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if not old.name.startswith("found-"):
            old.unlink()
    for seed, data in target(name).seeds():
        (folder / seed).write_bytes(data)


def report(name: str, seconds: int) -> int:
    """Fuzz one target in a process of its own, and print what came of it."""
    kept = KEPT / name
    kept.mkdir(parents=True, exist_ok=True)
    (kept / "figures.json").unlink(missing_ok=True)
    scratch = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        command = [sys.executable, str(Path(__file__)), name, "--seconds", str(seconds), "--child"]
        environment = {**os.environ, **_ENVIRONMENT, "TMPDIR": folder}
        to = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, env=environment, text=True, check=False, **to)
    (kept / "log").write_text(done.stdout)
    try:
        figures = json.loads((kept / "figures.json").read_text())
    except FileNotFoundError:  # it did not come that far
        sys.exit(done.stdout)
    ended = re.findall(r"stat::number_of_executed_units: (\d+)", done.stdout)
    features = re.findall(r"cov: (\d+) ft: (\d+)", done.stdout) or [("0", "0")]
    broken = done.returncode != 0 or not ended
    line = {
        "target": name, "seconds": seconds, "executions": int(ended[-1]) if ended else figures["executions"],
        "crashes": len(figures["found"]) + broken, "slowest_ms": round(1000 * figures["slowest"], 1),
        "peak_memory_mib": round(figures["greediest"] / (1 << 20), 1), "refused": figures["refused"],
        "edges": int(features[-1][0]), "features": int(features[-1][1]), "corpus": len(list((kept / "corpus").iterdir())),
        "found": figures["found"],
    }  # fmt: skip
    print(json.dumps(line), flush=True)
    if broken:
        rest = [each for each in done.stdout.splitlines() if not each.startswith(_QUIET)]
        print("\n".join(rest[-40:]), file=sys.stderr)
    return int(line["crashes"] > 0)


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    sys.path.insert(0, str(HERE))
    with atheris.instrument_imports(include=["fedcore"]):
        chosen = target(name)
    import torch
    from oracle import Oracle, Violation, forget_the_most, signature

    from fedcore.errors import FedcoreError

    torch.set_num_threads(1)
    kept = KEPT / name
    for folder in ("corpus", "found"):
        (kept / folder).mkdir(parents=True, exist_ok=True)
    found: dict[str, str] = {}
    oracle = Oracle(chosen)

    def note() -> None:
        figures = {
            "executions": oracle.executions, "refused": oracle.refused, "slowest": oracle.slowest,
            "greediest": oracle.greediest, "found": found,
        }  # fmt: skip
        (kept / "figures.json").write_text(json.dumps(figures))
        (kept / "slowest").write_bytes(oracle.slowest_input)
        (kept / "greediest").write_bytes(oracle.greediest_input)

    def one(data: bytes) -> None:
        record = oracle.slowest, oracle.greediest
        try:
            oracle.judge(data)
        except Violation as error:
            place = signature(error)
            if place not in found:
                file = kept / "found" / f"found-{sha256(data).hexdigest()[:12]}"
                file.write_bytes(data)
                found[place] = f"{error} ({file.name})"
                note()
        if (oracle.slowest, oracle.greediest) != record or oracle.executions % 1000 == 0:
            note()

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        def havoc(part: bytes, random: Random) -> bytes:
            return bytes(atheris.Mutate(part, max(1, min(most, len(part) + 512))))

        random = Random(seed)
        made = havoc(data, random) if random.random() < 0.1 else chosen.mutate(data, random, havoc)
        return made[:most]

    for file in chosen.corpus():  # what is done once alone, such as imports, is no input's
        with suppress(FedcoreError):
            chosen.run(file.read_bytes())
    gc.collect()
    gc.freeze()  # else looking through all of torch is now and then some input's
    forget_the_most()
    note()
    options = [
        f"-max_total_time={seconds}", f"-max_len={_LARGEST}", "-timeout=30", "-rss_limit_mb=2048", "-print_final_stats=1",
        f"-artifact_prefix={kept}/found/", "-len_control=0", str(kept / "corpus"), str(HERE / "corpus" / name),
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main())
