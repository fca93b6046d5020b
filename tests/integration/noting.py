"""A run in small, for the tests that kill it: two rounds of two updates, noted as a server would, going on where it was.

noting.py FOLDER; prints a line for each update that is acknowledged, and at the end the digest of the last model.
"""

import sys

import torch

from fedcore.averaging import FedAvgAggregator
from fedcore.blobs import SHARD_BYTES
from fedcore.broadcast import encode
from fedcore.codecs.safetensors import Safetensors
from fedcore.ledger import Entry, Ledger
from fedcore.parameters import Spec


def payload(model):
    return encode(model, Spec.of(model), Safetensors(), SHARD_BYTES)


def trained(model, number, client):
    draw = torch.Generator().manual_seed(100 * number + len(client))
    return {name: tensor + torch.randn(tensor.shape, generator=draw) for name, tensor in model.items()}


def model_of(ledger, name):
    return ledger.models.get(ledger.manifest(name))


def main(folder):
    ledger = Ledger(folder, Safetensors())
    if not ledger.run_id:
        first = payload({"w": torch.zeros(1000)})
        ledger.models.put(first, "ckpt")
        ledger.begin("run-1", {}, first.manifest)
    while (page := ledger.pages()[-1]).number < 2 or page.state != "committed":
        if page.state == "committed":
            ledger.open_round(page.number + 1, page.model)
            continue
        base = model_of(ledger, page.base)
        if page.state == "open":
            there = {entry.client_id for entry in ledger.entries(page.number)}
            for client in sorted({"a", "bb"} - there):
                made = payload(trained(base, page.number, client))
                ledger.updates.put(made, "upd")
                task, number = f"fit-{page.number}-{client}", page.number
                entry = Entry(task, number, client, "1", made.manifest.digest, 3, {}, number, 3)
                ledger.accept(entry, made.manifest)
                sys.stdout.write(f"ack:{entry.task_id}:{entry.digest}\n")
                sys.stdout.flush()
            ledger.close_round(page.number, [f"fit-{page.number}-{client}" for client in ("a", "bb")])
        entries = ledger.entries(page.number)
        updates = [(ledger.updates.get(ledger.manifest(entry.digest)), entry.num_examples) for entry in entries]
        made = payload(FedAvgAggregator(base).aggregate(updates))
        ledger.models.put(made, "ckpt")
        ledger.commit_round(page.number, made.manifest, {})
        ledger.sweep()
    sys.stdout.write(f"{ledger.pages()[-1].model}\n")


main(sys.argv[1])
