"""The model of the standard fleet, and what each honest client makes of it: a function of client, round and model alone."""

import hashlib

import numpy as np
import torch

MODEL = {
    "hidden.weight": torch.zeros(128, 390),
    "output.bias": torch.zeros(4),
    "scale": torch.tensor(1.0),
    "empty": torch.zeros(0, 3),
    "steps": torch.zeros(2, dtype=torch.int64),
    "mask": torch.zeros(4, dtype=torch.bool),
}
NBYTES = sum(tensor.nbytes for tensor in MODEL.values())
CLIENTS = [f"honest-{number}" for number in range(8)]
SUBNORMAL = 1e-42


def trained(parameters, number, client):
    """Return what a client made of a model in a round, and on how many examples; subnormal numbers and -0.0 are among it."""
    draw = torch.Generator().manual_seed(1000 * number + client)
    made = {
        "hidden.weight": 0.9 * parameters["hidden.weight"] + torch.randn(128, 390, generator=draw),
        "output.bias": torch.tensor([SUBNORMAL * (client + 1), -0.0, -SUBNORMAL, float(client)]),
        "scale": parameters["scale"] * torch.tensor(1.01) + client,
        "empty": parameters["empty"],
        "steps": parameters["steps"] + client,
        "mask": torch.arange(4) == client,
    }
    return made, 5 + client


def sha256(parameters):
    """Return the SHA-256 of a model: names, dtypes, shapes and every bit."""
    found = hashlib.sha256()
    for name, tensor in parameters.items():
        found.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        found.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return found.hexdigest()
