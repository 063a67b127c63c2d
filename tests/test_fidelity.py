"""Every fast path against the naive float32 reference: models x dtypes x paths.

In 16 bits two right answers differ, so the bound is the naive form's own error in that dtype: no
fast path may be further from float32 than twice as far as it is.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from auditor.attacks import single
from auditor.scoring import engine as engine_module
from auditor.scoring import statistics
from auditor.scoring.encode import Encoded
from auditor.scoring.engine import Engine
from auditor.scoring.head import Trunk
from auditor.scoring.packing import can_pack
from auditor.scoring.scores import Scores
from tests.tiny import CONTEXT, tiny_model

CPU = torch.device("cpu")
FAMILIES = ("llama-tied", "gpt2", "gpt_neox", "gemma2", "granite")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
N = 48


def texts(vocabulary: int) -> list[Encoded]:
    rng = np.random.default_rng(5)
    lengths = rng.integers(2, CONTEXT, N)
    return [
        Encoded(rng.integers(1, vocabulary, k).tolist(), 1 + k // 20, False, 4 * k, 2 * k + 9)
        for k in lengths.tolist()
        if k > 1 + k // 20
    ]


@torch.inference_mode()
def naive(model: Any, records: list[Encoded]) -> Scores:
    """One record at a time, all logits, in float64 from there on."""
    columns: list[list[torch.Tensor]] = [[], [], [], []]
    for record in records:
        ids = torch.tensor([record.ids])
        logits = model(ids).logits[0, record.first - 1 : -1].double()
        logp = logits.log_softmax(-1)
        targets = ids[0, record.first :]
        mu = (logp.exp() * logp).sum(-1)
        variance = (logp.exp() * (logp - mu[:, None]).square()).sum(-1)
        own = logp.gather(-1, targets[:, None])[:, 0]
        for column, values in zip(
            columns, (own, mu, variance.sqrt(), logits.argmax(-1) == targets), strict=True
        ):
            column.append(values)
    logp, mu, sigma, hit = (torch.cat(column).numpy() for column in columns)
    counts = [record.n_scored for record in records]
    return Scores(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        logp=logp.astype(np.float32),
        mu=mu.astype(np.float32),
        sigma=sigma.astype(np.float32),
        hit=hit,
        text_bytes=np.array([record.text_bytes for record in records]),
        zlib_bytes=np.array([record.zlib_bytes for record in records]),
    )


def as_it_is(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches, padding, tiles of the size that is used."""


def in_many_tiles(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "TILE_CPU", (7, 13))


def alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.budget.records = 1


def from_logits(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine._trunk = Trunk(engine.model)


def by_module(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = engine._trunk
    assert trunk.head is not None
    module = engine.model.get_output_embeddings()
    engine._trunk = replace(trunk, head=replace(trunk.head, module=module))


def packed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_pack(engine.model, engine._trunk.body, CPU)
    engine._packs = True
    monkeypatch.setattr(engine_module, "pad", None)  # else it would not be what is tested
    monkeypatch.setattr(engine, "_padded", never_but_for_one(engine))


def never_but_for_one(engine: Engine) -> Callable[..., Any]:
    def padded(batch: list[Encoded]) -> Any:
        assert len(batch) == 1
        return Engine._packed(engine, batch)

    return padded


class Case(NamedTuple):
    """Records, and what the naive form makes of them in float32 and in the dtype."""

    records: list[Encoded]
    reference: Scores
    slow: Scores


@cache
def case(family: str, dtype: torch.dtype) -> Case:
    exact = tiny_model(family)
    records = texts(exact.config.vocab_size)
    reference = naive(exact, records)
    slow = reference if dtype == torch.float32 else naive(tiny_model(family).to(dtype), records)
    return Case(records, reference, slow)


PATHS = (as_it_is, in_many_tiles, alone, from_logits, by_module, packed)


def error(found: Scores, expected: Scores) -> float:
    """Root mean square over tokens of what log p, mu and sigma are off by, in nats."""
    off = [getattr(found, name) - getattr(expected, name) for name in ("logp", "mu", "sigma")]
    return float(np.sqrt(np.mean(np.square(off))))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_path_is_as_right_as_the_naive_form(
    family: str,
    dtype: torch.dtype,
    path: Callable[[Engine, pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records, reference, slow = case(family, dtype)
    engine = Engine(tiny_model(family).to(dtype), CPU)
    path(engine, monkeypatch)
    found = engine.score(records)
    allowed = 1e-5 if dtype == torch.float32 else 2 * error(slow, reference)
    assert error(found, reference) <= allowed
    assert np.mean(found.hit == reference.hit) >= np.mean(slow.hit == reference.hit) - 0.01
    # Sides that a loss attack tells apart about seven times in ten, and no path may change that.
    noise = np.random.default_rng(1).normal(size=len(records))
    loss = single.loss(reference)
    member = (loss - loss.mean()) / loss.std() + 1.7 * noise > 0
    for attack in (single.loss, single.min_k, single.min_k_plus_plus):
        apart = roc_auc_score(member, attack(slow)) - roc_auc_score(member, attack(found))
        assert abs(apart) <= (0.001 if dtype == torch.float32 else 0.005)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_plan_gives_the_same_bytes(dtype: torch.dtype) -> None:
    records = texts(257)
    first, second = (Engine(tiny_model("llama").to(dtype), CPU).score(records) for _ in range(2))
    for name in ("logp", "mu", "sigma", "hit"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()


@pytest.mark.parametrize("name", ["llama-gsm8k", "gpt2-mts"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_auc_moves_between_paths_on_real_models(
    shared: Path, name: str, dtype: torch.dtype
) -> None:
    import json

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from auditor.scoring.encode import Encoder, RecordText

    folder = shared / "models" / name
    rows = []
    for side in ("members", "nonmembers"):
        lines = (folder / f"{side}.jsonl").read_text(encoding="utf-8").splitlines()[:60]
        rows += [RecordText(json.loads(line)["text"]) for line in lines]
    records = Encoder(AutoTokenizer.from_pretrained(folder), 96).encode(rows)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    member = np.arange(len(records)) < 60
    slow, found = naive(model, records), Engine(model, CPU).score(records)
    for attack in (single.loss, single.min_k, single.min_k_plus_plus):
        apart = roc_auc_score(member, attack(slow)) - roc_auc_score(member, attack(found))
        # A pair of 60 x 60 that changes places is 0.0003.
        assert abs(apart) <= 0.001
