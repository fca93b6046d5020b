"""What a state directory costs a round: nothing noted, outcomes noted, updates noted; one JSON line each.

benchmarks/durability.py [--megabytes N ...] [--repeats R]

The three are run in turns, several times, because the machine is noisy; a ratio is between medians of this program's own runs.
The directory is in the system's folder for temporary files: what an fsync costs there is what is measured.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROUNDS = Path(__file__).resolve().with_name("rounds.py")
MODES = ("none", "round", "update")


def measure(megabytes, mode):
    words = [sys.executable, ROUNDS, "--no-floor", "--megabytes", str(megabytes), "--durability", mode, "--tensors", "10"]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)["seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for megabytes in options.megabytes:
        found = {mode: [] for mode in MODES}
        for _ in range(options.repeats):
            for mode in MODES:
                found[mode].append(measure(megabytes, mode))
        none = statistics.median(found["none"])
        for mode in MODES:
            seconds = statistics.median(found[mode])
            spread = [min(found[mode]), max(found[mode])]
            line = {"benchmark": "durability", "megabytes": megabytes, "clients": 2, "durability": mode, "seconds": seconds}
            print(json.dumps(line | {"min_max": spread, "ratio_to_none": round(seconds / none, 2)}), flush=True)


if __name__ == "__main__":
    main()
