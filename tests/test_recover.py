"""Training after compression: what was settled stays, and the control has the same steps."""

import math
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from auditor.compress import COMPRESSORS, parse_variant
from auditor.compress.cache import Cache, fingerprint_of
from auditor.compress.checkpoint import (
    Checkpoint,
    CompressedModel,
    Placement,
    load_model,
    open_checkpoint,
)
from auditor.compress.kept_form import Form, Shared, summed
from auditor.compress.make import compress
from auditor.compress.matrices import matrices
from auditor.compress.observe import holds_pattern
from auditor.compress.options import Recovery
from auditor.compress.recover import BATCH_RECORDS, batches, fit, share_of_rate
from auditor.errors import ConfigError, VariantError
from auditor.lessons import Lessons, lessons
from auditor.scoring.encode import Encoder, RecordText
from tests.cache_cases import digest
from tests.families import CPU, tiny_calibration
from tests.tiny import CONTEXT, byte_tokenizer, save, tiny_model

RATE = "recover_lr=0.003"
N_MEMBERS = 40


def texts() -> list[RecordText]:
    """Letters, of unlike lengths, some of them completions of a prompt."""
    draws = np.random.default_rng(3)
    found = []
    for number in range(N_MEMBERS):
        letters = "".join(chr(97 + i) for i in draws.integers(0, 6, draws.integers(4, 30)))
        found.append(RecordText(letters, "ask: " if number % 3 == 0 else ""))
    return found


@pytest.fixture(scope="module")
def learned() -> Lessons:
    return lessons(texts(), Encoder(byte_tokenizer(), CONTEXT), seed=5)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    root = tmp_path_factory.mktemp("models")
    models: dict[str, dict[str, Any]] = {
        "llama-tied": {},
        "gpt2": {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1},
        "mixtral": {},
    }
    for family, changes in models.items():
        save(tiny_model(family, **changes), root / family)
    save(tiny_model("llama"), root / "bf16", dtype=torch.bfloat16)
    return {name: open_checkpoint(str(root / name)) for name in (*models, "bf16")}


def make(
    checkpoint: Checkpoint, variant: str, given: Lessons | None, placement: Placement = CPU
) -> CompressedModel:
    spec = parse_variant(variant)
    needed = tiny_calibration() if COMPRESSORS[spec.id].is_calibrated else None
    return compress(checkpoint, spec, placement, calibration=needed, lessons=given)


def weights(model: Any) -> dict[str, Tensor]:
    return {matrix.name: matrix.weight for matrix in matrices(model)}


def loss_on(model: Any, given: Lessons) -> float:
    """Mean loss per learned token, one record at a time."""
    total = n = 0.0
    for row in given.rows:
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            log_p = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        found = log_p.gather(1, ids[0, 1:, None])[row.first - 1 :]
        total, n = total - float(found.sum()), n + len(found)
    return total / n


# -- what is kept ----------------------------------------------------------------------------------

KEPT = [
    ("prune-magnitude:sparsity=0.6", "llama-tied", CPU),
    ("prune-magnitude:pattern=2:4", "gpt2", CPU),
    ("prune-wanda:pattern=4:8", "llama-tied", Placement("cpu", torch.bfloat16)),
    ("prune-sparsegpt:sparsity=0.5", "gpt2", CPU),
    ("prune-magnitude:sparsity=0.5,scope=global", "mixtral", CPU),
    ("cluster:k=5", "gpt2", CPU),
    ("cluster:k=16", "llama-tied", Placement("cpu", torch.bfloat16)),
    ("cluster:k=4", "mixtral", CPU),
    ("cluster:k=4", "bf16", CPU),
]


@pytest.mark.parametrize(("variant", "family", "placement"), KEPT)
def test_what_compression_settled_stays(
    variant: str,
    family: str,
    placement: Placement,
    checkpoints: dict[str, Checkpoint],
    learned: Lessons,
) -> None:
    checkpoint, spec = checkpoints[family], parse_variant(variant)
    once = make(checkpoint, variant, None, placement)
    one_shot = weights(once.model)
    made = make(checkpoint, f"{variant},recover=1,{RATE}", learned, placement)
    found = {matrix.name: matrix for matrix in matrices(made.model)}
    assert list(found) == list(one_shot)
    compressed = {item.module: item for item in made.receipt.compressed}
    assert compressed.keys() == {item.module for item in once.receipt.compressed}
    for name, item in compressed.items():
        before, after = one_shot[name], found[name].weight
        assert not torch.equal(before, after)
        if spec.id == "cluster":
            places = before.unique(return_inverse=True)[1]
            for number in range(len(before.unique())):
                assert len(after[places == number].unique()) == 1
            assert item.n_values == len(after.unique()) <= len(before.unique())
        else:
            assert torch.equal(before == 0, after == 0)
        if getattr(spec.options, "n_m", None):
            assert holds_pattern(after, found[name].in_axis, *spec.options.n_m)  # type: ignore[attr-defined]
            assert item.pattern == spec.options.pattern  # type: ignore[attr-defined]
    for parameter in made.model.parameters():
        assert parameter.dtype == placement.dtype
        assert not parameter.requires_grad
        assert parameter.grad is None
        if family == "bf16":  # what is scored is what can be published
            assert torch.equal(parameter, parameter.bfloat16().float())
    assert not made.model.training
    if family in ("llama-tied", "gpt2"):
        embeddings = made.model.get_input_embeddings()
        assert embeddings.weight is made.model.get_output_embeddings().weight
    assert loss_on(made.model, learned) < loss_on(once.model, learned) - 0.2


def test_what_is_not_compressed_is_trained_too(
    checkpoints: dict[str, Checkpoint], learned: Lessons
) -> None:
    checkpoint = checkpoints["gpt2"]
    made = make(checkpoint, f"cluster:k=4,recover=1,{RATE}", learned).model
    original: Any = load_model(checkpoint, CPU)
    for (name, after), before in zip(made.named_parameters(), original.parameters(), strict=True):
        assert not torch.equal(after, before), name


# -- the receipt -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["prune-magnitude:sparsity=0.6", "cluster:k=5", "retrain:"])
def test_the_receipt_is_of_the_final_weights(
    variant: str, checkpoints: dict[str, Checkpoint], learned: Lessons
) -> None:
    checkpoint = checkpoints["gpt2"]
    text = f"{variant.rstrip(':')}{':' if variant[-1] == ':' else ','}recover=0.5,{RATE}"
    made = make(checkpoint, text, learned)
    receipt, original = made.receipt, load_model(checkpoint, CPU)
    assert receipt.variant == parse_variant(text).canonical
    own, first = dict(made.model.named_parameters()), dict(original.named_parameters())
    error = norm = changed = zeros = 0.0
    for item in receipt.compressed:
        name = item.module if item.module in own else f"{item.module}.weight"
        a, b = first[name].double(), own[name].double()
        assert item.n_changed == int((a != b).sum())
        assert item.sparsity == pytest.approx(float((b == 0).double().mean()))
        if float(a.norm()):
            assert item.relative_error == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-4)
        else:  # biases of zeros
            assert math.isnan(item.relative_error)
        error, norm = error + float((a - b).norm()) ** 2, norm + float(a.norm()) ** 2
        changed, zeros = changed + item.n_changed, zeros + float((b == 0).sum())
    assert receipt.n_changed == changed
    assert receipt.relative_error == pytest.approx(math.sqrt(error / norm), rel=1e-4)
    assert receipt.sparsity == pytest.approx(zeros / receipt.n_compressed)
    (note,) = [note for note in receipt.notes if note.startswith("trained on")]
    n_steps = round(0.5 * math.ceil(N_MEMBERS / BATCH_RECORDS))
    assert f"{N_MEMBERS} members for 0.5 epochs ({n_steps} steps of 16 records" in note
    if variant == "retrain:":
        assert receipt.bits_per_weight == 32
        assert receipt.n_compressed == receipt.n_parameters
        assert not receipt.skipped
        assert "without compression" in note
    else:
        once = make(checkpoint, variant, None).receipt
        assert receipt.skipped == once.skipped
        assert receipt.bits_per_weight == pytest.approx(once.bits_per_weight, rel=1e-6)


# -- the training ----------------------------------------------------------------------------------


def test_retrain_is_the_plain_loop(checkpoints: dict[str, Checkpoint], learned: Lessons) -> None:
    checkpoint = checkpoints["llama-tied"]
    made = make(checkpoint, f"retrain:recover=2,{RATE}", learned)
    model: Any = load_model(checkpoint, CPU).train().requires_grad_(requires_grad=True)
    n_batches = math.ceil(N_MEMBERS / BATCH_RECORDS)
    n_steps = 2 * n_batches
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003, weight_decay=0.0)
    generator = torch.Generator().manual_seed(learned.seed)
    step = 0
    for _ in range(2):
        order = torch.randperm(N_MEMBERS, generator=generator)
        for rows in order.split(BATCH_RECORDS):
            losses = []
            for row in rows.tolist():
                record = learned.rows[row]
                ids = torch.tensor([record.ids])
                logits = model(input_ids=ids).logits[0, record.first - 1 : -1]
                losses.append(
                    nn.functional.cross_entropy(logits, ids[0, record.first :], reduction="none")
                )
            optimizer.param_groups[0]["lr"] = 0.003 * (
                0.5 if step == 0 else (n_steps - step) / (n_steps - 1)
            )
            torch.cat(losses).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    original = dict(load_model(checkpoint, CPU).named_parameters())
    expected = dict(model.named_parameters())
    for name, parameter in made.model.named_parameters():
        moved = (expected[name] - original[name]).norm()
        assert (parameter - expected[name]).norm() < 0.02 * moved, name


def test_the_gradient_of_a_shared_value_is_the_sum() -> None:
    torch.manual_seed(0)
    codes = torch.randint(0, 7, (12, 10), dtype=torch.uint8)
    values = nn.Parameter(torch.randn(7))
    factor = torch.randn(12, 10)
    (values[codes.int()].sin() * factor).sum().backward()
    weight = nn.Parameter(values.detach()[codes.int()])
    (weight.sin() * factor).sum().backward()
    assert weight.grad is not None
    assert values.grad is not None
    torch.testing.assert_close(summed(weight.grad, codes, values), values.grad)
    # The way that other devices take, on a tensor that says it is elsewhere.
    torch.testing.assert_close(
        torch.stack([torch.where(codes == n, weight.grad, 0).sum() for n in range(7)]), values.grad
    )


def test_a_step_moves_shared_values_by_their_gradient() -> None:
    model: Any = tiny_model("gpt2").train()
    with torch.no_grad():
        for matrix in matrices(model):
            matrix.weight.copy_(matrix.weight.sign())
    names = [matrix.name for matrix in matrices(model)]
    form = Shared(model, names)
    values = form.trained[-len(names) :]
    assert [value.tolist() for value in values] == [[-1.0, 1.0]] * len(names)
    ids = torch.arange(1, 30)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    form.gather()
    for name, value in zip(names, values, strict=True):
        weight = model.get_parameter(f"{name}.weight")
        for number, sign in enumerate((-1.0, 1.0)):
            expected = weight.grad[weight == sign].sum()
            assert value.grad is not None
            torch.testing.assert_close(value.grad[number], expected, rtol=1e-4, atol=1e-6)
        value.data += 0.5
    form.spread()
    assert all(set(weights(model)[name].unique().tolist()) == {-0.5, 1.5} for name in names)


def test_the_same_seed_gives_the_same_bits(
    checkpoints: dict[str, Checkpoint], learned: Lessons
) -> None:
    checkpoint, variant = checkpoints["gpt2"], f"prune-magnitude:sparsity=0.5,recover=0.5,{RATE}"
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = digest(make(checkpoint, variant, learned).model)
    assert torch.equal(torch.get_rng_state(), state)  # whatever dropout drew
    torch.manual_seed(12)
    assert digest(make(checkpoint, variant, learned).model) == first
    assert digest(make(checkpoint, variant, replace(learned, seed=6)).model) != first


def test_steps_of_a_broken_epoch_and_their_rates() -> None:
    assert [len(rows) for rows in batches(40, 1, seed=0)] == [16, 16, 8]
    assert [len(rows) for rows in batches(40, 1.34, seed=0)] == [16, 16, 8, 16]
    assert len(batches(40, 0.01, seed=0)) == 1
    assert sorted(chain.from_iterable(batches(40, 1, seed=0))) == list(range(40))
    two = batches(40, 2, seed=0)
    assert two[:3] == batches(40, 1, seed=0) != two[3:]
    shares = [share_of_rate(step, 100) for step in range(100)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[-1] == pytest.approx(1 / 97)
    assert np.allclose(np.diff(shares[3:]), -1 / 97)
    assert share_of_rate(0, 1) == 1.0


# -- kept and told apart ---------------------------------------------------------------------------


def test_it_is_trained_once(
    checkpoints: dict[str, Checkpoint], learned: Lessons, tmp_path: Path
) -> None:
    checkpoint = checkpoints["bf16"]
    for variant in (
        f"prune-magnitude:sparsity=0.5,recover=0.5,{RATE}",
        f"retrain:recover=0.5,{RATE}",
    ):
        spec, said = parse_variant(variant), list[str]()
        cache = Cache(tmp_path, tell=said.append)
        first, second = (cache.made(checkpoint, spec, CPU, lessons=learned) for _ in range(2))
        assert (first.from_cache, second.from_cache) == (False, True)
        assert said == [f"{spec.label}: taken from the cache"]
        assert digest(first.model) == digest(second.model)
        assert digest(make(checkpoint, variant, learned).model) == digest(first.model)
        assert second.receipt.notes == first.receipt.notes
        assert not any(parameter.requires_grad for parameter in second.model.parameters())


def test_other_lessons_are_another_version(
    checkpoints: dict[str, Checkpoint], learned: Lessons
) -> None:
    def key(variant: str, given: Lessons | None) -> dict[str, Any]:
        return fingerprint_of(checkpoints["gpt2"], parse_variant(variant), CPU, None, given)

    encoder, plain = Encoder(byte_tokenizer(), CONTEXT), "cluster:k=8"
    others = lessons(texts()[:-1], encoder, seed=5)
    # The same tokens, of which others are learned.
    joined = [RecordText(text.prompt + text.text) for text in texts()]
    trained = "cluster:k=8,recover=1"
    keys = [
        key(trained, learned),
        key(trained, others),
        key(trained, lessons(joined, encoder, seed=5)),
        key(trained, replace(learned, seed=6)),
        key("cluster:k=8,recover=2", learned),
        key("cluster:k=8,recover=1,recover_lr=0.1", learned),
    ]
    assert all(a != b for i, a in enumerate(keys) for b in keys[:i])
    # What is not trained is called what it always was.
    assert key(plain, learned) == key(plain, None)
    assert parse_variant(plain).canonical == "cluster:k=8"


# -- what cannot be --------------------------------------------------------------------------------


class Poisoned(Form):
    """A model that breaks at its second step."""

    n_steps = 0

    def spread(self) -> None:
        self.n_steps += 1
        if self.n_steps == 2:
            self.trained[0].data.fill_(math.nan)


def test_a_loss_that_is_no_number_names_its_step(learned: Lessons) -> None:
    model = tiny_model("llama").train()
    with pytest.raises(VariantError, match="loss must stay a number") as caught:
        fit(Poisoned(model), learned, Recovery(2, 0.003), variant="cluster")
    assert "at step 3 of 6" in caught.value.seen
    assert caught.value.fix is not None
    assert "a lower recover_lr than 0.003" in caught.value.fix


def test_nothing_to_learn(checkpoints: dict[str, Checkpoint]) -> None:
    with pytest.raises(VariantError, match="members to be trained on"):
        make(
            checkpoints["gpt2"],
            "retrain:recover=1",
            lessons([], Encoder(byte_tokenizer(), 64), seed=0),
        )


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("retrain", "recover"),
        ("retrain:recover=0", "greater than 0"),
        ("cluster:recover_lr=0.1", "recover must be given"),
        ("cluster:recover=101", "100"),
        ("cluster:recover=nan", "finite"),
        ("bnb-nf4:recover=1", "unknown option|recover"),
    ],
)
def test_options_that_cannot_be(variant: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_variant(variant)
