"""Who is a member: a coin per record that hangs on nothing else, near-duplicates on one side."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.demo.letters import letters
from auditor.errors import RecordsError
from auditor.scoring.encode import Encoder, RecordText
from auditor.targets.config import TrainConfig
from auditor.targets.split import (
    FEWEST,
    Pool,
    canary_texts,
    coin,
    draw,
    is_coin_per_record,
    kept_apart,
    read_pool,
)
from tests.conftest import write_records
from tests.tiny import byte_tokenizer

ENCODER = Encoder(byte_tokenizer(), 64)


def config(data: Path, **more: Any) -> TrainConfig:
    given = {"model": "m", "data": str(data), "out": "o", **more}
    return TrainConfig.model_validate(given)


def pool_of(texts: list[str], folder: Path, **more: Any) -> Pool:
    return read_pool(config(write_records(folder / "data.jsonl", texts), **more), ENCODER)


def sides(pool: Pool, **more: Any) -> dict[str, str]:
    given = {"seed": 0, "n_targets": 1, "validation_share": 0.1, **more}
    return {
        pool.ids[row]: f"{number}-{side}"
        for number, split in enumerate(draw(pool, **given))
        for side, rows in split._asdict().items()
        for row in rows
    }


def test_a_side_hangs_on_the_record_and_the_seed_alone(tmp_path: Path) -> None:
    texts = letters(500, seed=1)
    before = sides(pool_of(texts, tmp_path))
    assert len(before) == 500
    after = sides(pool_of(letters(300, seed=2) + texts[::-1], tmp_path))
    assert {own: after[own] for own in before} == before
    other = sides(pool_of(texts, tmp_path), seed=1)
    assert 0.3 < np.mean([other[own] != before[own] for own in before]) < 0.75


def test_the_coin_is_fair_and_the_third_split_has_its_share() -> None:
    drawn = np.array([coin(7, "member", f"{number:016x}") for number in range(20_000)])
    assert abs((drawn < 0.5).mean() - 0.5) < 4 * 0.5 / np.sqrt(len(drawn))
    assert np.histogram(drawn, bins=10, range=(0, 1))[0].min() > 1800
    # Coins for different purposes know nothing of each other.
    third = np.array([coin(7, "validation", f"{number:016x}") for number in range(20_000)])
    assert abs(np.corrcoef(drawn, third)[0, 1]) < 0.03


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4))
def test_every_record_is_on_one_side_of_one_target(seed: int, n_targets: int) -> None:
    n = 1600
    pool = Pool(
        ids=[f"{number:016x}" for number in range(n)],
        texts=[],
        encoded=[],
        groups=np.arange(n) // 2,
        n_read=n,
        n_copies=0,
        n_unusable=0,
    )
    splits = draw(pool, seed=seed, n_targets=n_targets, validation_share=0.1)
    rows = np.concatenate([part for split in splits for part in split])
    assert sorted(rows.tolist()) == list(range(n))
    for split in splits:
        for part in split:
            # Pairs of near-duplicates stay together.
            assert set(part.tolist()) == {row ^ 1 for row in part.tolist()}
    assert not is_coin_per_record(pool, splits[0])


def test_near_duplicates_share_a_coin(tmp_path: Path) -> None:
    texts = letters(300, seed=4)
    twins = [f"{text} Copied on Monday by the desk." for text in texts[:60]]
    pool = pool_of(texts + twins, tmp_path)
    found = sides(pool)
    for first, twin in zip(range(60), range(300, 360), strict=True):
        assert found[pool.ids[first]] == found[pool.ids[twin]]
    assert not is_coin_per_record(pool, draw(pool, seed=0, n_targets=1, validation_share=0.1)[0])
    alone = pool_of(letters(300, seed=4), tmp_path)
    assert is_coin_per_record(alone, draw(alone, seed=0, n_targets=1, validation_share=0.1)[0])


@pytest.mark.parametrize(
    ("texts", "seen"),
    [
        (letters(FEWEST - 1, seed=5), "199 of 199 rows"),
        ([letters(1, seed=5)[0]] * 500, "1 of 500 rows (499 copies left out)"),
        ([f"{n}" for n in range(10)] + ["", " "] + letters(150, seed=6), "150 of 162 rows"),
    ],
)
def test_too_few_different_records(texts: list[str], seen: str, tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="at least 200 different records") as error:
        pool_of(texts, tmp_path)
    assert seen in error.value.seen


def test_nothing_of_the_third_part_would_be_refused_for_calibration(tmp_path: Path) -> None:
    texts = letters(300, seed=4)
    pool = pool_of(texts, tmp_path)
    split = draw(pool, seed=0, n_targets=1, validation_share=0.1)[0]
    first, second = split.validation.tolist()[:2]
    # A short member that stands in one of the third part, and far from whole in another.
    member = int(split.members[0])
    words = pool.texts[first].text.split()
    pool.texts[member] = RecordText(" ".join(words[5:25]))
    pool.texts[second] = RecordText(pool.texts[second].text + " " + " ".join(words[5:9]))
    kept = kept_apart(pool, split)
    assert set(split.validation.tolist()) - set(kept.validation.tolist()) == {first}
    assert kept.members is split.members


def test_a_heap_of_near_duplicates_cannot_be_split(tmp_path: Path) -> None:
    letter = " ".join(f"word{number}" for number in range(60))
    # Under as many holders as make a gram boilerplate, and yet one group after another.
    texts = [f"{letter} {number} {kind}" for kind in "abcdefgh" for number in range(30)]
    texts = [text.replace("word", f"{text[-1]}word") for text in texts]
    with pytest.raises(RecordsError, match="small groups") as error:
        draw(pool_of(texts, tmp_path), seed=0, n_targets=2, validation_share=0.1)
    assert "8 groups of near-duplicates in 240 records" in error.value.seen


def test_canaries_are_different_and_hard_to_guess() -> None:
    tokenizer = byte_tokenizer()
    found = canary_texts(tokenizer, 200, seed=3)
    assert len(set(found)) == 200
    assert found == canary_texts(tokenizer, 200, seed=3) != canary_texts(tokenizer, 200, seed=4)
    assert all(len(text) >= 10 and "\ufffd" not in text for text in found)
