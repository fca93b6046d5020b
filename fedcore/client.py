"""What a user writes on the training side: subclass :class:`Client`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from fedcore.parameters import Parameters
from fedcore.values import Value

FitResult = tuple[Mapping[str, Any], int] | tuple[Mapping[str, Any], int, Mapping[str, Any]]
EvaluateResult = tuple[float, int] | tuple[float, int, Mapping[str, Any]]


class Client(ABC):
    """Trains on private data. Only what :meth:`fit` and :meth:`evaluate` return ever leaves it.

    >>> class MyClient(Client):
    ...     def get_parameters(self):
    ...         return model.state_dict()
    ...     def fit(self, parameters, config):
    ...         model.load_state_dict(parameters)
    ...         train(model, loader, lr=config.get("lr", 0.1))
    ...         return model.state_dict(), len(loader.dataset)
    """

    holds: str = ""
    """Digest of the model that this client has at hand, told to the server when it asks for a task: some send less then."""

    _report: Callable[[int, int], None] | None = None
    _memory: dict[str, Parameters] | None = None

    @property
    def memory(self) -> dict[str, Parameters]:
        """What this client keeps from round to round, by who keeps it: for :class:`fedcore.Training`, and for your own code.

        It never leaves the client, and lasts as long as this object.
        """
        if self._memory is None:
            self._memory = {}
        return self._memory

    @abstractmethod
    def get_parameters(self) -> Parameters:
        """Return the local model. The server asks the first client for it when its strategy has no initial parameters."""

    @abstractmethod
    def fit(self, parameters: Parameters, config: dict[str, Value]) -> FitResult:
        """Train on local data, starting from the global model.

        Args:
            parameters: the global model, in the order of the server's; yours to keep and to change.
            config: what the strategy says about this task, types intact, and the reserved keys ``round`` (from 1) and
                ``seed`` (an int, different for each client and round, the same when the run is repeated).

        Returns:
            ``(parameters, num_examples)``, or a third item with metrics, numbers by name. Parameters must look like those
            received: same names, shapes and dtypes. They are read after fit returns and before it is called again.
        """

    def evaluate(self, parameters: Parameters, config: dict[str, Value]) -> EvaluateResult:
        """Evaluate a model on local data. Override it to offer evaluation; the server asks only clients that do.

        Returns:
            ``(loss, num_examples)``, or a third item with metrics, numbers by name.
        """
        raise NotImplementedError

    def report_progress(self, step: int, total: int) -> None:
        """Tell how far the current fit is; the server sees it with the next heartbeat. Cheap: call it every step."""
        if self._report is not None:
            self._report(step, total)


def offers_evaluation(client: Client) -> bool:
    """Return whether the client overrides :meth:`Client.evaluate`."""
    return type(client).evaluate is not Client.evaluate
