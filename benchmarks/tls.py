"""What mutual TLS costs a round: the same rounds in plaintext and encrypted; one JSON line for each size.

benchmarks/tls.py [--megabytes N ...] [--repeats R]

The two are run in turns, several times, because the machine is noisy; the ratio is between medians of this program's own runs.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROUNDS = Path(__file__).resolve().with_name("rounds.py")


def measure(megabytes, *more):
    words = [sys.executable, ROUNDS, "--no-floor", "--megabytes", str(megabytes), *more]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)["seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for megabytes in options.megabytes:
        plain, encrypted = [], []
        for _ in range(options.repeats):
            plain.append(measure(megabytes))
            encrypted.append(measure(megabytes, "--tls"))
        seconds, without = statistics.median(encrypted), statistics.median(plain)
        line = {"benchmark": "tls", "megabytes": megabytes, "clients": 2, "seconds": seconds, "plaintext_seconds": without}
        spread = {"min_max": [min(encrypted), max(encrypted)], "plaintext_min_max": [min(plain), max(plain)]}
        print(json.dumps(line | spread | {"ratio": round(seconds / without, 2)}), flush=True)


if __name__ == "__main__":
    main()
