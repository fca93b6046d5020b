"""Robust rules give the published numbers, refuse what they cannot withstand, and see no order."""

import importlib.util
import os
import threading
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from fedcore import (
    AggregationError,
    Bulyan,
    CenteredClipping,
    ConfigError,
    Exchange,
    FedAvg,
    FLTrust,
    GeoMedian,
    Grpc,
    Krum,
    Median,
    Memory,
    MultiKrum,
    NormBounding,
    Server,
    ServerConfig,
    TrimmedMean,
    Update,
    digest,
    start_client,
)
from fedcore.client import Client
from fedcore.errors import NonFinite, OutOfRange, OutOfStorage
from fedcore.robust import (
    Block,
    Rows,
    bounded,
    buckets,
    bulyan_picks,
    geometric_median,
    krum_scores,
    lowest,
    mean_of,
    mixed,
    nearest_neighbours,
    squared_distances,
    trust,
    weighted,
)
from fedcore.spool import Spool
from fedcore.testing import run_federation

V1 = np.array([
    [0.1, 1.0, -0.3, 2.0], [0.3, 0.7, -0.1, 2.2], [-0.2, 1.1, -0.4, 1.9], [0.2, 0.9, 0.0, 2.1], [0.0, 1.3, -0.2, 1.8],
    [0.4, 0.8, -0.5, 2.3], [0.15, 1.05, -0.25, 2.05], [5.0, -6.0, 7.0, -8.0], [-4.0, 9.0, 3.0, -7.0],
])  # fmt: skip
K2 = np.array([[2.0, 1.9], [-1.2, -0.5], [1.2, 1.9], [-2.6, 0.1], [1.3, -3.1], [-0.5, 0.3], [0.2, -1.3]])
DOC = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
HONEST_MEAN = [0.13571429, 0.97857143, -0.25, 2.05]
CONVERGED = [0.12500016, 1.01213725, -0.23930889, 1.99871435]
G0 = np.array([0.1, 1.0, -0.2, 2.0])


def rows_of(matrix, anchor=None, width=3):
    """Return a matrix as rows in blocks of a few columns."""
    anchor = np.zeros(matrix.shape[1]) if anchor is None else anchor
    spans = [slice(start, start + width) for start in range(0, matrix.shape[1], width)]
    return Rows(len(matrix), lambda: (Block(matrix[:, span], anchor[span]) for span in spans))


def finished(finish, rows):
    return np.concatenate([finish(block) for block in rows.blocks()])


def aggregated(strategy, matrix, base=None, number=1):
    """Return what a strategy's round makes of float64 vectors."""
    base = torch.zeros(matrix.shape[1], dtype=torch.float64) if base is None else base
    aggregator = strategy.start_round(number, {"w": base})
    updates = [Update({"w": torch.tensor(row)}, 1, f"client-{index}") for index, row in enumerate(matrix)]
    made = strategy.step(number, {"w": base}, aggregator.aggregate(updates))
    return made["w"].numpy()


def near(found, wanted, digits=8):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=0.50001 * 10**-digits)


def rooted(server_round, model):
    return {"w": torch.tensor(G0)}


# --- vectors ---


@pytest.mark.parametrize(
    ("strategy", "wanted"),
    [
        (lambda: Median(f=2, clients_per_round=9), [0.15, 1.0, -0.2, 2.0]),
        (lambda: TrimmedMean(f=2, clients_per_round=9), [0.15, 0.97, -0.17, 1.97]),
        (lambda: TrimmedMean(fraction=0.24, clients_per_round=9), [0.15, 0.97, -0.17, 1.97]),
        (lambda: MultiKrum(f=2, clients_per_round=9), HONEST_MEAN),
        (lambda: MultiKrum(f=2, m=3, clients_per_round=9), [0.15, 0.98333333, -0.18333333, 2.05]),
        (lambda: Krum(f=2, clients_per_round=9), V1[0]),
        (lambda: Bulyan(f=1, clients_per_round=9), [0.15, 0.97, -0.25, 2.05]),
        (lambda: GeoMedian(f=2, nu=1e-12, iterations=2000, clients_per_round=9), CONVERGED),
        (lambda: NormBounding(), [0.11686775, 0.82303748, 0.00897826, 1.27213356]),
        (lambda: NormBounding(max_norm=2.321637353), [0.11686775, 0.82303748, 0.00897826, 1.27213356]),
        (lambda: CenteredClipping(tau=1.0, iterations=1), [0.05024378, 0.36085942, 0.00237546, 0.55872254]),
        (lambda: CenteredClipping(tau=1.0, iterations=3), [0.11770186, 0.92695789, -0.10538479, 1.65152044]),
        (lambda: FLTrust(root_update=rooted), [0.1264365, 0.9570151, -0.24053499, 1.98946951]),
    ],
    ids=[
        "median", "trimmed", "trimmed-fraction", "multikrum-7", "multikrum-3", "krum", "bulyan", "geomedian", "bound-median",
        "bound", "clipping-1", "clipping-3", "fltrust",
    ],
)  # fmt: skip
def test_the_first_vector(strategy, wanted):
    near(aggregated(strategy(), V1), wanted)


def test_what_stands_behind_the_first_vector():
    rows, distances = rows_of(V1), squared_distances(rows_of(V1))
    scores = krum_scores(distances, 5)
    np.testing.assert_allclose(scores, [0.61, 1.25, 1.41, 0.95, 1.38, 1.66, 0.61, 1122.35, 851.24], rtol=1e-12)
    assert lowest(scores, 3) == [0, 6, 3]  # the first two tie, though rounding says otherwise
    assert len(bulyan_picks(distances, 1)) == 7
    assert set(bulyan_picks(distances, 1)) == set(range(7))
    found = trust(rows_of(V1, G0))[0]
    near(found, [0.99902690, 0.98347115, 0.98510864, 0.99341657, 0.98605937, 0.97908286, 0.99957237, 0, 0])
    near(
        finished(weighted(geometric_median(rows, 0.1, 3, np.zeros(9))), rows), [0.11876536, 1.01413517, -0.21191582, 1.97139854]
    )
    middle = finished(weighted(geometric_median(rows, 1e-12, 2000)), rows)
    assert abs(np.linalg.norm(V1 - middle, axis=1).sum() - 30.286956401733) < 1e-11


def test_nearest_neighbour_mixing():
    mixture = mixed(rows_of(V1), nearest_neighbours(squared_distances(rows_of(V1)), 2))
    near(finished(mean_of([0]), mixture), HONEST_MEAN)
    near(finished(mean_of([7]), mixture), [0.87857143, -0.03571429, 0.80714286, 0.63571429])
    near(aggregated(Median(f=2, pre="nnm", clients_per_round=9), V1), HONEST_MEAN)


def test_krum_counts_the_neighbours_of_the_paper():
    distances = squared_distances(rows_of(K2, width=1))
    np.testing.assert_allclose(krum_scores(distances, 3), [22.93, 6.05, 17.33, 16.57, 32.26, 8.63, 10.10], rtol=1e-12)
    np.testing.assert_allclose(krum_scores(distances, 4), [38.93, 17.57, 28.85, 34.25, 57.27, 14.08, 19.90], rtol=1e-12)
    assert aggregated(Krum(f=2, clients_per_round=7), K2).tolist() == K2[1].tolist()


def test_vectors_of_other_libraries():
    four = np.array([[0.2] * 4, [0.5] * 4, [0.7] * 4, [0.12] * 4])
    near(aggregated(TrimmedMean(fraction=0.25), four), [0.35] * 4)
    near(aggregated(TrimmedMean(f=1, clients_per_round=3), DOC), [4, 5, 6])
    near(aggregated(Median(), DOC), [4, 5, 6])
    three = np.array([[0.2], [0.7], [1.0]])
    near(aggregated(Krum(clients_per_round=3), three), [0.7])
    near(aggregated(MultiKrum(m=2, clients_per_round=3), np.array([[0.2], [0.5], [1.0]])), [0.35])
    distances = squared_distances(rows_of(DOC))
    near(finished(mean_of(lowest(krum_scores(distances, 1))), rows_of(DOC)), [1, 2, 3])
    near(finished(mean_of(lowest(krum_scores(distances, 1), 2)), rows_of(DOC)), [2.5, 3.5, 4.5])
    middle = finished(weighted(geometric_median(rows_of(DOC), 0.1, 3, np.zeros(3))), rows_of(DOC))
    near(middle, [3.78788764, 4.78788764, 5.78788764])
    near(bounded(rows_of(DOC), 2.0)[0] * 3 * DOC[0], [0.53452248, 1.06904497, 1.60356745])


def test_a_median_of_an_even_number_is_between_the_middle_two_and_may_have_no_dimension():
    assert aggregated(Median(), np.array([[1.0], [5.0], [2.0], [100.0]])).tolist() == [3.5]
    base = {"s": torch.tensor(0.0)}
    aggregator = Median().start_round(1, base)
    assert aggregator.aggregate([({"s": torch.tensor(float(value))}, 1) for value in (1, 7, 3)])["s"].tolist() == 3.0


@pytest.mark.parametrize(
    ("n", "m", "wanted"), [(10, 2, 0), (20, 4, 0.157311), (25, 5, 0.253347), (50, 12, 0.336038), (100, 20, 0.285841)]
)
def test_the_reach_of_a_little_is_enough(n, m, wanted, attacks):
    assert abs(attacks.alie_z(n, m) - wanted) < 1e-6


@pytest.fixture
def attacks():
    """Return the attacks of the benchmark."""
    found = importlib.util.spec_from_file_location("attacks", Path(__file__).parents[2] / "benchmarks" / "attacks.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_attacks_are_what_their_papers_say(attacks):
    honest = list(V1[:7])
    near(attacks.sign_flip(honest, 1), [-value for value in HONEST_MEAN])
    near(attacks.ipm(honest, 0.1), [-0.1 * value for value in HONEST_MEAN])
    near(attacks.ipm(honest, 2.0), [-2 * value for value in HONEST_MEAN], 7)
    near(attacks.alie(honest, 1.5), [-0.13828668, 0.70123902, -0.48717082, 1.81282918])


# --- what is refused ---


@pytest.mark.parametrize(
    ("strategy", "needed"),
    [(Median, 5), (TrimmedMean, 5), (Krum, 7), (MultiKrum, 7), (Bulyan, 11), (GeoMedian, 5)],
)
def test_too_few_clients_for_f_are_refused_and_never_made_to_do(strategy, needed):
    assert strategy(f=2, clients_per_round=20).min_fit_clients == needed
    with pytest.raises(
        ConfigError, match=f"f=2 needs at least {needed} updates, and of n={needed - 1} clients .*clients_per_round"
    ):
        strategy(f=2, clients_per_round=needed - 1)
    with pytest.raises(ConfigError, match=f"f=2 needs at least {needed} .*min_fit_clients"):
        strategy(f=2, clients_per_round=20, min_fit_clients=needed - 1)
    with pytest.raises(AggregationError, match=f"f=2 needs at least {needed} updates, and of n={needed - 1} clients"):
        aggregated(strategy(f=2, clients_per_round=20), np.ones((needed - 1, 2)))
    assert aggregated(strategy(f=2, clients_per_round=20), np.ones((needed, 2))).tolist() == [1, 1]


def test_buckets_are_what_must_be_enough():
    assert Median(f=2, pre="bucketing", clients_per_round=20).min_fit_clients == 9
    with pytest.raises(ConfigError, match="at least 5 buckets of 2 updates, and of n=8 clients there are 4"):
        Median(f=2, pre="bucketing", clients_per_round=8)
    with pytest.raises(ConfigError, match="at least 5 updates"):
        NormBounding(f=2, pre="nnm", clients_per_round=4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Krum(f=-1), lambda: Krum(f=1.0), lambda: Median(pre="mixing"), lambda: Median(bucket_size=0),
        lambda: Median(seed=-1),
        lambda: Median(weighting="examples"), lambda: Median(max_share=0.5), lambda: TrimmedMean(fraction=0.5),
        lambda: TrimmedMean(f=1, fraction=0.1, clients_per_round=5), lambda: MultiKrum(m=0, clients_per_round=5),
        lambda: MultiKrum(m=5, f=1, clients_per_round=5), lambda: GeoMedian(nu=0.0), lambda: GeoMedian(iterations=0),
        lambda: NormBounding(max_norm=0.0), lambda: NormBounding(max_norm=float("inf")), lambda: CenteredClipping(tau=0.0),
        lambda: CenteredClipping(iterations=0), lambda: FLTrust(root_update=None),
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense(make):
    with pytest.raises(ConfigError):
        make()


def test_nothing_is_made_of_nothing():
    with pytest.raises(AggregationError, match="no updates"):
        Median().start_round(1, {"w": torch.zeros(2)}).result()


def test_a_root_update_that_is_no_model_fails_the_round():
    for wrong in ({"w": torch.full((4,), torch.nan, dtype=torch.float64)}, {"w": torch.zeros(3)}):
        with pytest.raises(AggregationError, match="root_update"):
            aggregated(FLTrust(root_update=lambda number, model, wrong=wrong: wrong), V1)


def test_without_trust_the_model_stays():
    base = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    away = FLTrust(root_update=lambda number, model: {"w": model["w"] + 1})
    assert aggregated(away, base.numpy() - np.ones((3, 4)), base).tolist() == base.tolist()
    still = FLTrust(root_update=lambda number, model: model)
    assert aggregated(still, base.numpy() + np.ones((3, 4)), base).tolist() == base.tolist()


def test_clipping_goes_on_from_the_last_change():
    strategy, base = CenteredClipping(tau=0.5), torch.zeros(2, dtype=torch.float64)
    first = aggregated(strategy, np.array([[0.3, 0.4], [0.3, 0.4]]), base)
    assert first.tolist() == [0.3, 0.4]
    near(aggregated(strategy, np.array([[0.3, 1.4], [0.3, 1.4]]), base), [0.3, 0.9])


# --- models ---

MODEL = {
    "w": torch.tensor([[1.0, -2.0, 0.5]] * 4), "half": torch.tensor([1.0, 2.0]).bfloat16(), "count": torch.tensor(3),
    "mask": torch.tensor([False, False]), "stat": torch.tensor([1.0, 1.0]), "empty": torch.zeros(0),
}  # fmt: skip


def updates_of(model, count=5):
    made = []
    for index in range(count):
        draw = torch.Generator().manual_seed(index)
        moved = {
            n: t + torch.randn(t.shape, generator=draw).to(t.dtype) if t.is_floating_point() else t.clone()
            for n, t in model.items()
        }
        moved["count"] += index
        moved["mask"][index % 2] = True
        made.append(Update(moved, 1, f"client-{index}", digest=digest(moved)))
    return made


def test_other_tensors_become_what_they_do_with_the_mean():
    exchange = Exchange(buffers={"stat": "server", "half": "max"})
    updates = updates_of(MODEL)
    robust = Median(MODEL, exchange=exchange).start_round(1, MODEL).aggregate(updates)
    mean = FedAvg(MODEL, exchange=exchange).start_round(1, MODEL).aggregate(updates)
    for name in ("count", "mask", "stat", "half"):
        assert torch.equal(robust[name], mean[name]), name
    assert list(robust) == list(MODEL)
    assert torch.equal(robust["w"], torch.stack([update.parameters["w"] for update in updates]).median(dim=0).values)


def test_half_precision_is_rounded_once():
    values = [torch.tensor([value]).bfloat16() for value in (1.0, 1.0078125, 1.0, 1.0)]
    made = TrimmedMean().start_round(1, {"h": torch.zeros(1).bfloat16()}).aggregate([({"h": value}, 1) for value in values])
    assert made["h"].dtype == torch.bfloat16
    assert made["h"].item() == torch.tensor(np.mean([v.item() for v in values])).bfloat16().item()


def test_a_krum_choice_is_an_update_to_the_bit():
    updates = updates_of({**MODEL, "w": torch.tensor([[1e8, 1e-8, 3.0]])})
    made = Krum(clients_per_round=5).start_round(1, {**MODEL, "w": torch.tensor([[1e8, 1e-8, 3.0]])}).aggregate(updates)
    assert any(torch.equal(made["w"], update.parameters["w"]) for update in updates)


def test_differences_give_a_difference_and_late_ones_less():
    aggregator = TrimmedMean().start_round(1, {"w": torch.tensor([10.0, 20.0])})
    aggregator.difference = True
    aggregator.add(Update({"w": torch.tensor([1.0, 2.0])}, 1, "a"))
    aggregator.add(Update({"w": torch.tensor([4.0, 8.0])}, 1, "b", discount=0.5))
    assert aggregator.result()["w"].tolist() == [1.5, 3.0]


def test_statistics_are_no_differences():
    aggregator = Median(clients_per_round=3).start_round(1, {"w": torch.ones(1), "running_var": torch.ones(1)})
    aggregator.difference = True
    for name, value in (("a", 0.25), ("b", 0.5), ("c", 4.0)):
        aggregator.add(Update({"w": torch.tensor([value]), "running_var": torch.tensor([value])}, 1, name))
    assert {name: value.item() for name, value in aggregator.result().items()} == {"w": 0.5, "running_var": 0.5}


@pytest.mark.parametrize("pre", [None, "nnm", "bucketing"])
def test_order_changes_no_bit(pre):
    def digested(order):
        return digest(Median(f=1, clients_per_round=5, pre=pre).start_round(1, MODEL).aggregate(order))

    assert len({digested(order) for order in list(permutations(updates_of(MODEL)))[::7]}) == 1


def test_buckets_are_drawn_from_the_round_and_their_seed_is_logged(caplog):
    assert buckets(5, 2, "0/buckets/1") == buckets(5, 2, "0/buckets/1") != buckets(5, 2, "0/buckets/2")
    assert sorted(index for bucket in buckets(5, 2, "s") for index in bucket) == [0, 1, 2, 3, 4]
    with caplog.at_level("INFO"):
        aggregated(Median(pre="bucketing", seed=7, clients_per_round=9), V1, number=4)
    assert "'7/buckets/4'" in caplog.text


def test_settings_build_the_same_strategy():
    strategy = MultiKrum(f=2, m=3, pre="nnm", clients_per_round=9)
    assert MultiKrum(**strategy.settings()).settings() == strategy.settings()
    assert TrimmedMean(**TrimmedMean(fraction=0.2).settings()).fraction == 0.2


# --- the file ---


def test_the_file_goes_with_the_result_and_with_the_aggregator(tmp_path):
    def open_files():
        return [link for link in map(link_of, os.listdir("/proc/self/fd")) if str(tmp_path) in link]

    def link_of(number):
        try:
            return os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            return ""

    def filled():
        aggregator = Median().start_round(1, MODEL)
        aggregator.folder = str(tmp_path)
        for update in updates_of(MODEL):
            aggregator.add(update)
        return aggregator

    aggregator = filled()
    assert len(open_files()) == 1
    assert list(tmp_path.iterdir()) == []
    aggregator.result()
    assert open_files() == []
    aggregator = filled()
    del aggregator
    assert open_files() == []


def test_a_folder_that_takes_no_file_is_named(tmp_path):
    with pytest.raises(OutOfStorage, match="nowhere"):
        Spool(torch.float32, str(tmp_path / "nowhere"))


def test_a_full_disk_is_said_so(monkeypatch):
    spool = Spool(torch.float32)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutOfStorage, match="No space left"):
        spool.append([torch.ones(3)])


def test_rows_come_back_by_columns(monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda file, data, at: write(file, data[:5], at)
    )  # a system may write less than it is given
    spool = Spool(torch.float32)
    for index in range(3):
        spool.append([torch.arange(4.0) + 10 * index, torch.tensor(99.0 + index).half()])
    assert spool.read([2, 0], slice(1, 5)).tolist() == [[21, 22, 23, 101], [1, 2, 3, 99]]


# --- federations ---


class Moves(Client):
    """Moves the model by a number of its own."""

    def __init__(self, index):
        self.index = index

    def get_parameters(self):
        return INITIAL

    def fit(self, parameters, config):
        draw = torch.Generator().manual_seed(config["seed"] + self.index)
        return {n: t + torch.randn(t.shape, generator=draw) if t.is_floating_point() else t for n, t in parameters.items()}, 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: MultiKrum(INITIAL, f=1, clients_per_round=5, min_fit_clients=5),
        lambda: CenteredClipping(INITIAL, clients_per_round=5, min_fit_clients=5),
    ],
    ids=["multikrum", "clipping"],
)
def test_both_transports_give_the_same_bits(make):
    config = ServerConfig(num_rounds=3)
    made = {
        digest(run_federation([Moves(i) for i in range(5)], strategy=make(), config=config, transport=wire)[1])
        for wire in (Memory(), Grpc())
    }
    assert len(made) == 1


INITIAL = {"w": torch.ones(40, 3), "n": torch.tensor(0)}


class Sends(Moves):
    """Spoils what it sends."""

    def __init__(self, index, value):
        super().__init__(index)
        self.value = value

    def fit(self, parameters, config):
        made, count = super().fit(parameters, config)
        made["w"][3, 1] = self.value
        return made, count


@pytest.mark.parametrize(
    "make", [lambda **a: MultiKrum(INITIAL, f=1, **a), lambda **a: Median(INITIAL, **a)], ids=["multikrum", "median"]
)
def test_y4_what_is_no_number_is_refused_at_admission_and_changes_no_bit(make):
    def run(bad):
        wire, raised = Memory(), []
        strategy = make(min_fit_clients=5, clients_per_round=5 + len(bad))

        def work(client, name):
            try:
                start_client(server.address, client, name, transport=wire, patience=5)
            except Exception as error:
                raised.append(type(error))

        with Server(wire.anywhere, config=ServerConfig(num_rounds=1), strategy=strategy, transport=wire) as server:
            clients = [(Moves(i), f"good-{i}") for i in range(5)] + [(Sends(9, v), f"bad-{i}") for i, v in enumerate(bad)]
            threads = [threading.Thread(target=work, args=pair) for pair in clients]
            for thread in threads:
                thread.start()
            _, final = server.wait(30)
        for thread in threads:
            thread.join(10)
        return digest(final), sorted(raised, key=lambda kind: kind.__name__)

    spoiled, raised = run([float("nan"), float("inf"), 1e30])
    assert raised == [NonFinite, NonFinite, OutOfRange]
    assert spoiled == run([])[0]
