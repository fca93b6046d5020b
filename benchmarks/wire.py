"""Bytes on the wire and accuracy for each codec: benchmarks/wire.py [--rounds R] [--clients K] [--uploads NAME ...].

The demo's task, really trained: handwritten digits, skewed shares (Dirichlet 0.5), a small CNN, everything seeded. One process,
memory transport, the same frames as over gRPC. Clients send updates with the codec named; the server sends models as
safetensors, or, in the runs with ``--deltas`` codecs, as differences to the model a client already has. Bytes are those of
bodies, for each client and round. One JSON line a codec; one that is not there is skipped, and the line says so.
"""

import argparse
import dataclasses
import json
import threading

import torch

from fedcore import FedAvg, Server, ServerConfig, registry, start_client
from fedcore.data.digits import DigitsClient, DigitsModel, evaluate, load_digits
from fedcore.data.partition import dirichlet
from fedcore.errors import ConfigError

UPLOADS = [
    "safetensors", "safetensors+lz4", "safetensors+zstd", "bf16", "int8", "int4", "topk", "int8+zstd", "topk+zstd",
]  # fmt: skip
DELTAS = ["delta+zstd"]
DEADLINE = 300.0


def run(rounds, clients, upload, delta):
    """Run the federation and return its history."""
    registry.codec(upload)
    parts, settings = upload.split("+"), {}
    if delta:
        registry.codec(delta)
        if "delta_codec" not in {field.name for field in dataclasses.fields(ServerConfig)}:
            raise ConfigError("ServerConfig has no delta_codec")
        settings["delta_codec"] = delta
    whole, test = load_digits(0)
    shares = [whole.take(part) for part in dirichlet(whole.labels, clients, 0.5, seed=0)]
    strategy = FedAvg(
        DigitsModel(0).state_dict(), lambda _, parameters: evaluate(parameters, test),
        min_fit_clients=clients, clients_per_round=clients,
    )  # fmt: skip
    config = ServerConfig(num_rounds=rounds, accept_codecs=parts, **settings)
    failures = []

    def work(share, name):
        try:
            accepts = ["safetensors", *delta.split("+")] if delta else None
            start_client(server.address, DigitsClient(share), name, transport="memory", codec=upload, accept_codecs=accepts)
        except Exception as error:  # noqa: BLE001 - told by the main thread
            failures.append(error)

    with Server("", config=config, strategy=strategy, transport="memory") as server:
        threads = [threading.Thread(target=work, args=(share, f"client-{i}")) for i, share in enumerate(shares)]
        for thread in threads:
            thread.start()
        for _ in range(round(DEADLINE * 5)):
            if failures:
                raise failures[0]
            try:
                history, _ = server.wait(0.2)
                break
            except TimeoutError:
                pass
        else:
            raise TimeoutError(f"no end after {DEADLINE:g} s")
    for thread in threads:
        thread.join()
    return history


def measure(options, upload, delta=""):
    line = {"benchmark": "wire", "up": upload, "down": delta or "safetensors"}
    try:
        history = run(options.rounds, options.clients, upload, delta)
    except ConfigError as error:
        return {**line, "skipped": str(error)}
    except Exception as error:  # noqa: BLE001 - the other codecs still have their turn
        return {**line, "failed": f"{type(error).__name__}: {error}"}
    records = history.rounds
    shares = len(records) * options.clients
    return {
        **line, "rounds": options.rounds, "clients": options.clients, "parameters": parameters(),
        "up_bytes": round(sum(record.bytes_received for record in records) / shares),
        "down_bytes": round(sum(record.bytes_sent for record in records) / shares),
        "accuracy": round(history.latest["accuracy"], 4), "loss": round(history.latest["loss"], 4),
        "digest": records[-1].digest[:16],
    }  # fmt: skip


def parameters():
    return sum(tensor.numel() for tensor in DigitsModel().state_dict().values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--uploads", nargs="*", default=UPLOADS)
    parser.add_argument("--deltas", nargs="*", default=DELTAS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for upload in options.uploads:
        print(json.dumps(measure(options, upload)), flush=True)
    for delta in options.deltas:
        print(json.dumps(measure(options, "safetensors", delta)), flush=True)


if __name__ == "__main__":
    main()
