"""Every strategy passes the published suite."""

import pytest
import torch

from fedcore import (
    Bulyan,
    CenteredClipping,
    FedAdagrad,
    FedAdam,
    FedAsync,
    FedAvg,
    FedAvgAggregator,
    FedAvgM,
    FedBuff,
    FedDyn,
    FedNova,
    FedOpt,
    FedProx,
    FedYogi,
    FLTrust,
    GeoMedian,
    Krum,
    Median,
    MultiKrum,
    NormBounding,
    QFedAvg,
    Scaffold,
    Strategy,
    TrimmedMean,
)
from fedcore.testing import check_strategy


class OnlyAggregateFit(Strategy):
    def aggregate_fit(self, server_round, results):
        return FedAvgAggregator().aggregate(results)


class OverridesFedAvg(FedAvg):
    def aggregate_fit(self, server_round, results):
        return super().aggregate_fit(server_round, results)


def moved(server_round, parameters):
    return {name: value + 1 if value.is_floating_point() else value for name, value in parameters.items()}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(FedAvg, id="fedavg"),
        pytest.param(lambda model: FedAvg(model, weighting="uniform"), id="uniform"),
        pytest.param(lambda model: FedAvg(model, weighting=lambda update: update.num_examples**0.5), id="callable"),
        pytest.param(lambda model: FedAvg(model, max_share=0.4), id="max-share"),
        pytest.param(lambda model: OnlyAggregateFit(), id="only-aggregate-fit"),
        pytest.param(OverridesFedAvg, id="overrides-fedavg"),
        pytest.param(FedAvgM, id="fedavgm"),
        pytest.param(FedAdam, id="fedadam"),
        pytest.param(FedYogi, id="fedyogi"),
        pytest.param(lambda model: FedAdagrad(model, beta1=0.5), id="fedadagrad"),
        pytest.param(lambda model: FedOpt(model, optimizer=lambda p: torch.optim.AdamW(p, lr=0.1)), id="fedopt"),
        pytest.param(FedProx, id="fedprox"),
        pytest.param(lambda model: Scaffold(model, num_clients=9), id="scaffold"),
        pytest.param(FedNova, id="fednova"),
        pytest.param(lambda model: FedDyn(model, num_clients=9), id="feddyn"),
        pytest.param(lambda model: QFedAvg(model, client_lr=0.1), id="qfedavg"),
        pytest.param(FedBuff, id="fedbuff"),
        pytest.param(FedAsync, id="fedasync"),
        pytest.param(lambda model: Median(model, f=1, clients_per_round=4), id="median"),
        pytest.param(lambda model: TrimmedMean(model, f=1, clients_per_round=4), id="trimmedmean"),
        pytest.param(lambda model: TrimmedMean(model, fraction=0.3), id="trimmedmean-fraction"),
        pytest.param(lambda model: Krum(model, clients_per_round=4), id="krum"),
        pytest.param(lambda model: MultiKrum(model, clients_per_round=4, m=2), id="multikrum"),
        pytest.param(lambda model: Bulyan(model, clients_per_round=4), id="bulyan"),
        pytest.param(lambda model: GeoMedian(model, f=1, clients_per_round=4), id="geomedian"),
        pytest.param(NormBounding, id="normbounding"),
        pytest.param(CenteredClipping, id="centeredclipping"),
        pytest.param(lambda model: FLTrust(model, root_update=moved), id="fltrust"),
        pytest.param(lambda model: Median(model, f=1, clients_per_round=4, pre="nnm"), id="nnm"),
        pytest.param(lambda model: Median(model, f=0, clients_per_round=4, pre="bucketing"), id="bucketing"),
    ],
)
def test_conformance(make):
    check_strategy(make, metrics=lambda index: {"steps": 3 + index, "initial_loss": 0.5 + index})


def test_a_strategy_that_depends_on_order_is_caught():
    class First(Strategy):
        def start_round(self, server_round, parameters):
            return _KeepsFirst()

        def aggregate_fit(self, server_round, results):
            raise NotImplementedError

    from fedcore import Aggregator

    class _KeepsFirst(Aggregator):
        kept = None

        def add(self, update):
            self.kept = self.kept or update

        def result(self):
            return self.kept.parameters

    with pytest.raises(AssertionError, match="order"):
        check_strategy(lambda model: First())
