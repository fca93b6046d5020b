"""Everything in under ten minutes: benchmarks/suite.py [--quick] [--no-peers].

Runs the other programs one after the other, prints a Markdown table and writes it to benchmarks/RESULTS.md, and into README.md
between the lines <!-- bench:begin --> and <!-- bench:end --> if it has them. ``--quick`` takes small sizes and few rounds, to
see that everything works; it writes no file. Flower's rows are there when .venv-peers is (`make bench-peers`).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def lines_of(program, *arguments):
    """Run a program and return its JSON lines; one that fails costs its own rows, not the others'."""
    words = [str(word) for word in arguments]
    print(f"... {program} {' '.join(words)}", file=sys.stderr, flush=True)
    began = time.monotonic()
    done = subprocess.run([sys.executable, HERE / program, *words], stdout=subprocess.PIPE, text=True, check=False)
    print(f"    {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode:
        lines.append({"failed": f"{program} {' '.join(words)} ended with status {done.returncode}"})
    return lines


def table(heads, rows):
    body = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in body)


def number(value):
    """Return a number with three digits that say something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def seconds(value):
    return f"{number(value)} s" if value >= 0.1 else f"{number(1000 * value)} ms"


def problems(lines):
    return [f"`{line['failed']}`" for line in lines if "failed" in line and "up" not in line and "who" not in line]


def models(memory, size, share):
    """Small models vanish beside what any process needs: there bytes say more."""
    return f"{number(share)} models" if size >= 50 else f"{number(memory / 1e6)} MB"


def round_rows(lines):
    rows = []
    for line in lines:
        if "seconds" not in line:
            continue
        size, floor = line["megabytes"], "floor_seconds" in line
        rows.append([
            f"{number(size)} MB" if size < 1000 else f"{number(size / 1000)} GB", line["tensors"], line["clients"],
            seconds(line["seconds"]),
            seconds(line["floor_seconds"]) if floor else "", f"{line['ratio']:.2f}" if floor else "",
            models(line["server_memory_bytes"], size, line["server_memory_models"]),
            models(line["client_memory_bytes"], size, line["client_memory_models"]), f"{number(line['all_GB'])} GB",
        ])  # fmt: skip
    return rows


def other_rows(codecs, mean, small):
    rows = []
    for line in codecs:
        if "both_GB_s" in line:
            what = f"`{line['codec']}`, {number(line['megabytes'])} MB, encode + decode"
            rows.append([what, f"{number(line['both_GB_s'])} GB/s", f"{number(line['encode_extra_MiB'])} MiB extra to encode"])
    for line in mean:
        if "GB_s" in line:
            what = f"exact weighted mean of {line['updates']} x {line['megabytes']} MB, {line['threads']} thread"
            more = (
                f"plain float32 loop: {number(line['plain_GB_s'])} GB/s; error at most {number(line['exact_error_ulp'])} ulp; "
                f"{number(line['exact_extra_models'])} models of memory"
            )
            rows.append([what, f"{number(line['GB_s'])} GB/s", more])
    for line in small:
        if "rounds_per_s" in line:
            name = "memory, by reference" if line["transport"] == "reference" else line["transport"]
            what = f"{line['clients']} clients in one process, {number(line['parameters'])} parameters, {name}"
            more = f"server idle with {line['idle_clients']} clients waiting: {number(line['idle_cpu_percent'])} % of a core"
            rows.append([what, f"{number(line['rounds_per_s'])} rounds/s", more])
    return rows


def wire_rows(lines):
    rows = []
    for line in lines:
        if "up" not in line:
            continue
        names = [f"`{line['up']}`", f"`{line['down']}`"]
        if "up_bytes" in line:
            plain = 4 * line["parameters"]
            sizes = [f"{number(line[way] / 1000)} kB ({plain / line[way]:.2f}x)" for way in ("up_bytes", "down_bytes")]
            rows.append([*names, *sizes, f"{100 * line['accuracy']:.2f} %"])
        else:
            rows.append([*names, "skipped" if "skipped" in line else "failed", "", ""])
    return rows


def peer_rows(lines):
    every = {line["megabytes"]: line for line in lines if line.get("who") == "ratio to fedcore"}
    rows = []
    for line in lines:
        if "who" in line and line not in every.values():
            path = line["who"].removeprefix("flower ")
            ratio = every.get(line["megabytes"], {}).get(path, {}).get("seconds")
            memory = f"{number(line['all_GB'])} GB" if "all_GB" in line else ""
            took = seconds(line["seconds"]) if "seconds" in line else "failed"
            rows.append([f"{number(line['megabytes'])} MB", line["who"], took, ratio or "", memory])
    return rows


def report(results):
    cpu = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"
    parts = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in ("torch", "grpcio"))]
    wire, peers = results["wire"], results.get("peers", [])
    trained = next((line for line in wire if "rounds" in line), {"rounds": 0, "clients": 0, "parameters": 0})
    text = [
        f"Measured on {date.today()}: {cpu}; {', '.join(parts)}. [What each figure means](benchmarks/README.md).",
        "Rounds over gRPC between real processes; the floor is the same bytes through bare gRPC streams, in the same run.",
        table(
            ["model", "tensors", "clients", "round", "floor", "ratio", "server memory", "client memory", "all processes"],
            round_rows(results["rounds"]),
        ),
        table(["what", "speed", ""], other_rows(results["codecs"], results["mean"], results["small"])),
        f"Bytes for each client and round, and the accuracy at the end of {trained['rounds']} rounds with {trained['clients']} "
        f"clients that really train {number(trained['parameters'])} parameters.",
        table(["updates as", "models as", "up", "down", "accuracy"], wire_rows(wire)),
    ]
    if rows := peer_rows(peers):
        text += [
            f"Flower 1.41.0 on the same work in the same run, {peers[0]['clients']} clients:",
            table(["model", "", "round", "times fedcore's", "memory of all processes"], rows),
        ]
    failed = [problem for lines in results.values() for problem in problems(lines)]
    return "\n\n".join([*text, *failed])


def put(text):
    """Write the report to its file, and into README.md where that has room for it."""
    local = text.replace("(benchmarks/README.md)", "(README.md)")
    (HERE / "RESULTS.md").write_text(f"# Results\n\nMade by `make bench`.\n\n{local}\n")
    readme = HERE.parent / "README.md"
    whole = readme.read_text()
    if whole.count(BEGIN) == whole.count(END) == 1 and whole.index(BEGIN) < whole.index(END):
        head, tail = whole[: whole.index(BEGIN)], whole[whole.index(END) :]
        readme.write_text(f"{head}{BEGIN}\n\n{text}\n\n{tail}")


def rounds_to_do(quick):
    if quick:
        return [["--megabytes", 1, "--rounds", 3], ["--megabytes", 4, "--rounds", 3, "--clients", 4, "--no-floor"]]
    many = [["--megabytes", 100, "--clients", clients, "--rounds", 5, "--no-floor"] for clients in (4, 8, 16)]
    ones = [["--megabytes", 1, "--tensors", tensors, "--rounds", 100] for tensors in (10, 100)]
    return [*ones, ["--megabytes", 100], ["--megabytes", 1000, "--rounds", 5], *many]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    quick, began = options.quick, time.monotonic()
    results = {
        "rounds": [line for numbers in rounds_to_do(quick) for line in lines_of("rounds.py", *numbers)],
        "codecs": lines_of("codecs.py", "--megabytes", 10 if quick else 1000, "--codecs", "safetensors"),
        "mean": lines_of("mean.py", "--megabytes", 4 if quick else 100),
        "small": lines_of("small.py", *(["--clients", 8, "--rounds", 3, "--idle", 1] if quick else [])),
        "wire": lines_of("wire.py", *(["--rounds", 2] if quick else [])),
    }
    if (HERE.parent / ".venv-peers" / ".ready").exists() and not options.no_peers:
        sizes = [["--megabytes", 1, "--rounds", 1, "--paths", "start_server"]]
        sizes = sizes if quick else [["--megabytes", 100], ["--megabytes", 1, "--rounds", 20, "--fedcore-rounds", 50]]
        results["peers"] = [line for numbers in sizes for line in lines_of("peers.py", *numbers)]
    text = report(results)
    if not quick:
        put(text)
    print(f"{text}\n\n{time.monotonic() - began:.0f} s in all")
    return 1 if any(problems(lines) for lines in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
