"""The running example: scikit-learn's 1797 handwritten digits, a small model for them, and a client that trains it.

The pictures are 8 by 8 and come with scikit-learn (Alpaydin and Kaynak, UCI Machine Learning Repository, 1998): nothing
is downloaded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedcore.client import Client
from fedcore.errors import MissingDependency
from fedcore.parameters import Parameters

__all__ = ["Digits", "DigitsClient", "DigitsModel", "evaluate", "load_digits"]

_TEST_SHARE = 0.2
_BATCH, _EPOCHS, _LEARNING_RATE, _MOMENTUM = 32, 4, 0.05, 0.9


class Digits(NamedTuple):
    """Pictures and what they show.

    Attributes:
        images: float32 in [0, 1], shape (N, 1, 8, 8).
        labels: int64, shape (N,), from 0 to 9.
    """

    images: Tensor
    labels: Tensor

    def take(self, indices: Tensor) -> Digits:
        """Return the examples at ``indices``."""
        return Digits(self.images[indices], self.labels[indices])


def load_digits(seed: int = 0) -> tuple[Digits, Digits]:
    """Return the digits as ``(train, test)``: four fifths and one fifth of each class.

    Args:
        seed: of the split.

    Raises:
        MissingDependency: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        raise MissingDependency("the digits come with scikit-learn: pip install 'fedcore[demo]'") from error
    raw = datasets.load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    whole = Digits(images, torch.tensor(raw.target, dtype=torch.int64))
    train, test = model_selection.train_test_split(
        range(len(images)), test_size=_TEST_SHARE, random_state=seed, stratify=raw.target
    )
    return whole.take(torch.tensor(train)), whole.take(torch.tensor(test))


class DigitsModel(nn.Module):
    """Two convolutions and two linear layers, about 38,000 parameters, with a BatchNorm's buffers among them.

    Args:
        seed: of the initial weights; the global generator is left as it was.
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features = nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
                nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            )  # fmt: skip
            self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (N, 10)."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class DigitsClient(Client):
    """Trains on its share of the digits with stochastic gradient descent.

    Args:
        data: the share.
        epochs: how often a fit goes through it.
    """

    def __init__(self, data: Digits, *, epochs: int = _EPOCHS):
        self.data, self.epochs = data, epochs
        self.model = DigitsModel()

    def get_parameters(self) -> Parameters:
        """Return the local model."""
        return dict(self.model.state_dict())

    def fit(self, parameters: Parameters, config: dict[str, Any]) -> tuple[Parameters, int, dict[str, float]]:
        """Train from ``parameters`` on; batches are drawn with ``config["seed"]``, the step is ``config["lr"]``."""
        self.model.load_state_dict(parameters)
        self.model.train()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=config.get("lr", _LEARNING_RATE), momentum=_MOMENTUM)
        batches = self._batches(torch.Generator().manual_seed(config["seed"]))
        total = 0.0
        for step, batch in enumerate(batches, start=1):
            loss = functional.cross_entropy(self.model(batch.images), batch.labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item()
            self.report_progress(step, len(batches))
        return self.get_parameters(), len(self.data.labels), {"loss": total / max(1, len(batches))}

    def _batches(self, generator: torch.Generator) -> list[Digits]:
        orders = (torch.randperm(len(self.data.labels), generator=generator) for _ in range(self.epochs))
        return [self.data.take(batch) for order in orders for batch in torch.split(order, _BATCH)]


def evaluate(parameters: Parameters, data: Digits) -> tuple[float, dict[str, float]]:
    """Return the loss of a :class:`DigitsModel` on ``data``, and its accuracy."""
    model = DigitsModel()
    model.load_state_dict(parameters)
    model.eval()
    with torch.inference_mode():
        logits = model(data.images)
        loss = functional.cross_entropy(logits, data.labels).item()
        accuracy = (logits.argmax(dim=1) == data.labels).double().mean().item()
    return loss, {"accuracy": accuracy}
