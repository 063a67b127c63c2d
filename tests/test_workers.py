"""Threads: as many as are given, results in order, errors passed on, draws as they were."""

import threading
import time

import numpy as np
import pytest

from auditor import workers
from auditor.attacks.signals import compute_signals
from auditor.leakage.blocks import Making
from auditor.scoring.scores import Scores
from auditor.store import VariantStore, plan_shards
from auditor.workers import MOST, in_order, n_workers, one_ahead
from tests.test_attacks import random_scores


@pytest.fixture(params=[1, 3])
def n_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(workers, "n_workers", lambda: request.param)
    return request.param


@pytest.mark.parametrize(
    ("given_", "cores", "expected"),
    [(None, 2, 2), (None, 64, MOST), ("1", 64, 1), ("3,2", 64, 3), ("64", 2, MOST), ("x", 4, 1)],
)
def test_the_user_has_the_last_word(
    monkeypatch: pytest.MonkeyPatch, given_: str | None, cores: int, expected: int
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    if given_ is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given_)
    monkeypatch.setattr(workers, "allowed_cores", lambda: cores)
    assert n_workers() == expected


def test_results_come_in_the_order_of_the_items(n_threads: int) -> None:
    seen: set[int] = set()

    def work(item: int) -> int:
        seen.add(threading.get_ident())
        time.sleep(0.02 if item == 0 else 0.002)
        return item * item

    assert list(in_order(work, range(20))) == [item * item for item in range(20)]
    assert len(seen) == n_threads


def test_an_error_is_passed_on_and_the_rest_is_left(n_threads: int) -> None:
    done: list[int] = []

    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        time.sleep(0.005)
        done.append(item)
        return item

    with pytest.raises(ValueError, match="three"):
        list(in_order(work, range(1000)))
    assert len(done) < 100


def test_one_ahead_draws_what_one_after_the_other_draws(n_threads: int) -> None:
    drawn = (np.random.default_rng(0).permutation(50) for _ in range(1))
    rng = np.random.default_rng(4)
    found = list(one_ahead(rng.permutation(9) for _ in range(7)))
    rng = np.random.default_rng(4)
    np.testing.assert_array_equal(found, [rng.permutation(9) for _ in range(7)])
    assert len(list(one_ahead(drawn))) == 1
    assert list(one_ahead([])) == []


def test_one_ahead_passes_an_error_on(n_threads: int) -> None:
    def broken():
        yield 1
        raise ValueError("broken")

    items = one_ahead(broken())
    with pytest.raises(ValueError, match="broken"):
        list(items)


def test_every_shard_is_read_once_and_threads_change_nothing(tmp_path, monkeypatch) -> None:
    """Signals, perplexities and features, all from one reading, to the last bit."""
    lengths = np.random.default_rng(0).integers(2, 60, 300)
    ids = np.array([f"{number:016x}" for number in range(300)])
    shards = [rows for part in plan_shards(lengths) for rows in np.array_split(part, 5)]
    whole: dict[str, Scores] = {}
    stores = {}
    for seed, name in enumerate(("original", "one", "reference")):
        whole[name] = random_scores(lengths, seed=seed)
        stores[name] = VariantStore(
            tmp_path, name, fingerprint={"of": name}, shards=shards, record_ids=ids
        )
        for number, rows in enumerate(shards):
            stores[name].write_shard(number, whole[name].take(rows))
    reference = stores.pop("reference")
    read: list[tuple[str, int]] = []
    shard = VariantStore.shard
    monkeypatch.setattr(
        VariantStore, "shard", lambda self, n: read.append((self.name, n)) or shard(self, n)
    )
    found = []
    for wanted in (1, 2, 5):
        read.clear()
        monkeypatch.setattr(workers, "n_workers", lambda wanted=wanted: wanted)
        making = Making([("original", "one")], original="original", n_records=300)
        signals = compute_signals(
            stores,
            ["min-k", "ez", "ref"],
            is_member=np.arange(300) % 2 == 0,
            reference=reference,
            beside=making,
        )
        assert len(read) == len(set(read)) == 3 * len(shards)
        found.append((signals, making.made()))
    (first, blocks), *others = found
    for signals, made in others:
        for name in stores:
            assert signals[name].perplexity == first[name].perplexity
            for attack, values in first[name].by_attack.items():
                np.testing.assert_array_equal(signals[name].by_attack[attack], values)
            np.testing.assert_array_equal(made.versions[name], blocks.versions[name])
            np.testing.assert_array_equal(made.references[name], blocks.references[name])
            np.testing.assert_array_equal(made.gaps["ez-gap"][name], blocks.gaps["ez-gap"][name])
        np.testing.assert_array_equal(
            made.pairs["original", "one"], blocks.pairs["original", "one"]
        )


def test_where_nobody_learns_no_feature_is_kept() -> None:
    scores = {name: random_scores([3, 9, 5], seed=seed) for seed, name in enumerate("ab")}
    making = Making([("a", "b")], original="a", n_records=3, learned=False)
    making(np.arange(3), scores, scores["a"])
    made = making.made()
    assert made.versions == made.pairs == made.references == {}
    assert set(made.gaps["gap"]) == {"a", "b"}
