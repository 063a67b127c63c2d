"""The original kept, the next version made ahead, host work overlapped: the same bytes as without.

All three are for GPUs; here they are switched on for the CPU and run for real.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from auditor import AuditConfig, AuditResult, audit
from auditor.compress import kept as kept_module
from auditor.compress import materialise
from auditor.compress.checkpoint import Placement, load_model, open_checkpoint
from auditor.compress.kept import Kept, Lent, NotKeptError, copy_of, kept_original
from auditor.errors import VariantError
from auditor.scoring import pipeline, variants
from auditor.scoring.variants import _one_by_one, _overlapped
from tests.tiny import save, tiny_model

CPU = Placement("cpu", torch.float32)
VARIANTS = "original,cluster:k=8,prune-magnitude:sparsity=0.5,bnb-nf4,cluster:k=4"


@pytest.fixture
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "PAYS_ON", ("cpu",))
    monkeypatch.setattr(pipeline, "AHEAD_ON", ("cpu",))
    monkeypatch.setattr(variants, "OVERLAPPED_ON", ("cpu",))


def run(subject: dict[str, Any], output: Path, **more: Any) -> AuditResult:
    given = {**subject, "reference": None, "variants": VARIANTS, "settings": "NR", **more}
    return audit(AuditConfig.model_validate({**given, "output_path": str(output)}))


def is_tied(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def shards(output: Path) -> dict[str, bytes]:
    found = sorted((output / "tokens").rglob("shard-*.parquet"))
    return {str(path.relative_to(output)): path.read_bytes() for path in found}


@pytest.mark.usefixtures("switched_on")
def test_the_store_holds_the_same_bytes(
    subject: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = run(subject, tmp_path / "fast", controls="noise", settings="NR,SR")
    # What was hidden really was made by another thread, ahead of its turn.
    hidden = {step.variant: step.hidden_s for step in fast.timings.variants}
    assert hidden["cluster:k=8"] > 0 or hidden["prune-magnitude:sparsity=0.5"] > 0
    assert hidden["bnb-nf4"] == 0
    monkeypatch.undo()
    plain = run(subject, tmp_path / "plain", controls="noise", settings="NR,SR")
    assert all(step.hidden_s == 0 for step in plain.timings.variants)
    assert shards(tmp_path / "fast") == shards(tmp_path / "plain")
    assert len(shards(tmp_path / "fast")) > 5


@pytest.mark.usefixtures("switched_on")
def test_an_error_comes_in_its_turn_and_what_was_scored_stays(
    subject: dict[str, Any], tmp_path: Path
) -> None:
    # A matrix with a few values only: it is found out while the version before is scored.
    model = tiny_model("llama", seed=1)
    with torch.no_grad():
        weight = model.model.layers[0].mlp.up_proj.weight
        weight.copy_(weight.sign())
    given = {**subject, "model": str(save(model, tmp_path / "model"))}
    named = "original,prune-magnitude:sparsity=0.5,cluster:k=8"
    with pytest.raises(VariantError, match="distinct values"):
        run(given, tmp_path / "run", variants=named)
    names = {path.parent.name.rsplit("-", 1)[0] for path in tmp_path.rglob("manifest.json")}
    assert {"original", "prune-magnitude_sparsity=0.5"} <= names
    assert not [thread for thread in threading.enumerate() if thread.name == "make-ahead"]


@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "gemma2"])
def test_a_copy_is_a_fresh_load_to_the_bit(family: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save(tiny_model(family), tmp_path / "m")))
    fresh = load_model(checkpoint, CPU)
    copied = copy_of(fresh)
    theirs, ours = fresh.state_dict(), copied.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor)
        assert ours[name].data_ptr() != tensor.data_ptr()
    buffers = dict(copied.named_buffers())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in fresh.named_buffers())
    tied = [
        m.get_output_embeddings().weight is m.get_input_embeddings().weight for m in (fresh, copied)
    ]
    assert tied[0] == tied[1]
    assert not copied.training
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert copied.config._attn_implementation == fresh.config._attn_implementation
    ids = torch.arange(1, 20)[None]
    with torch.inference_mode():
        assert torch.equal(copied(ids).logits, fresh(ids).logits)
        next(copied.parameters()).zero_()
        assert not torch.equal(copied(ids).logits, fresh(ids).logits)


@pytest.mark.usefixtures("switched_on")
def test_the_last_version_gets_the_kept_one_and_nothing_stays(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save(tiny_model("llama"), tmp_path / "m")))
    with kept_original(checkpoint, CPU, n_users=2) as kept:
        assert kept is not None
        kept.expect(is_user=True, n_later=1)
        first = load_model(checkpoint, CPU)
        assert kept.is_here
        kept.expect(is_user=True, n_later=0)
        second = load_model(checkpoint, CPU)
        assert not kept.is_here
        for mine, other in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(mine, other)
            assert mine.data_ptr() != other.data_ptr()
    # Another placement, or another checkpoint object, is read as ever.
    with kept_original(checkpoint, CPU, n_users=3) as kept:
        assert kept is not None
        kept.expect(is_user=True, n_later=2)
        load_model(checkpoint, Placement("cpu", torch.bfloat16))
        assert not kept.is_here


def test_nothing_is_kept_where_it_does_not_pay(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save(tiny_model("llama"), tmp_path / "m")))
    with kept_original(checkpoint, CPU, n_users=5) as kept:
        assert kept is None


def test_without_room_it_is_read_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(str(save(tiny_model("llama"), tmp_path / "m")))
    monkeypatch.setattr(kept_module, "ROOM_COPIES", 10**9)
    kept = Kept(checkpoint, CPU)
    kept.expect(is_user=True, n_later=3)
    kept.take(lambda: load_model(checkpoint, CPU))
    assert not kept.is_here
    assert kept.lend(n_later=1) is None


def test_what_is_lent_is_never_read_from_disk(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save(tiny_model("llama"), tmp_path / "m")))
    model = load_model(checkpoint, CPU)
    lent = Lent(Kept(checkpoint, CPU), model, is_last=True)

    def read() -> Any:
        raise AssertionError("it was read")

    assert lent.take(read) is model
    with pytest.raises(NotKeptError):
        lent.take(read)


# -- decompressed weights ------------------------------------------------------------------------


def test_how_a_version_is_scored_is_settled_once(
    subject: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(materialise, "spare_bytes", lambda device: 0)
    result = run(subject, tmp_path, variants="original,bnb-nf4")
    assert not any("decompressed once" in n for n in result.variant("bnb-nf4").receipt.notes)
    before = shards(tmp_path)
    monkeypatch.undo()
    # Cut off after its first shard, and gone on with when there is memory enough.
    gone = sorted((tmp_path / "tokens").glob("bnb-nf4-*/*.parquet"))[1:]
    for path in [*gone, *(tmp_path / "tokens").glob("bnb-nf4-*/manifest.json")]:
        path.unlink()
    again = run(subject, tmp_path, variants="original,bnb-nf4")
    assert not any("decompressed once" in n for n in again.variant("bnb-nf4").receipt.notes)
    assert shards(tmp_path) == before
    # Another way of scoring is another version of the scores.
    other = run(subject, tmp_path, variants="original,bnb-nf4", materialise="always")
    assert any("decompressed once" in n for n in other.variant("bnb-nf4").receipt.notes)
    assert {step.variant: step.n_forward_passes > 0 for step in other.timings.variants} == {
        "original": False,
        "bnb-nf4": True,
    }


def test_no_memory_for_decompressed_weights_is_one_clear_error(
    subject: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any) -> None:
        raise MemoryError("no more of it")

    monkeypatch.setattr(materialise, "_decompress", no_memory)
    with pytest.raises(VariantError, match="must fit into memory") as caught:
        run(subject, tmp_path, variants="original,bnb-nf4", materialise="always")
    assert "--materialise never" in str(caught.value)


# -- encoding ahead, writing behind --------------------------------------------------------------


def steps(
    fails: dict[str, int] | None = None,
) -> tuple[list[tuple[str, int]], dict[str, Callable[..., Any]]]:
    """Three steps that write down what they do, and fail where they are told to."""
    done: list[tuple[str, int]] = []

    def step(name: str, number: int) -> int:
        if fails and fails.get(name) == number:
            raise ValueError(f"{name} {number}")
        time.sleep(0.002)
        done.append((name, number))
        return number

    return done, {
        "encode": lambda number: step("encode", number),
        "score": lambda encoded: step("score", encoded),
        "write": lambda number, scores: (step("write", number), None)[1] if number == scores else 1,
    }


def test_overlapped_does_every_step_of_every_shard_once() -> None:
    done, functions = steps()
    _overlapped(list(range(12)), **functions)
    expected = [(name, n) for name in ("encode", "score", "write") for n in range(12)]
    assert sorted(done) == sorted(expected)
    for number in range(12):
        places = [done.index((name, number)) for name in ("encode", "score", "write")]
        assert places == sorted(places)
    # At most one shard ahead.
    for number in range(10):
        assert done.index(("encode", number + 2)) > done.index(("score", number))
    _overlapped([], **functions)


@pytest.mark.parametrize("name", ["encode", "score", "write"])
@pytest.mark.parametrize("number", [0, 3, 5])
def test_an_error_is_the_one_that_comes_one_by_one(name: str, number: int) -> None:
    for run_them in (_one_by_one, _overlapped):
        done, functions = steps({name: number})
        with pytest.raises(ValueError, match=f"{name} {number}"):
            run_them(list(range(6)), **functions)
        written = [n for step, n in done if step == "write"]
        assert written == list(range(number))


def test_of_two_errors_the_earlier_shard_is_told() -> None:
    _, functions = steps({"write": 2, "score": 3})
    with pytest.raises(ValueError, match="write 2"):
        _overlapped(list(range(6)), **functions)
