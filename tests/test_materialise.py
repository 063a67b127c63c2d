"""Weights decompressed once: the same scores as through the packed layers, and nothing else."""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from auditor.attacks import single
from auditor.compress import materialise as module
from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement, open_checkpoint
from auditor.compress.materialise import CastingLinear, materialise, needed_bytes, packed_layers
from auditor.compress.measure import held_tensors, live_tensors
from auditor.compress.quiet import quietly
from auditor.errors import ConfigError
from auditor.scoring.encode import Encoded
from auditor.scoring.engine import Engine
from auditor.scoring.scores import Scores
from tests.conftest import needs
from tests.families import CPU, make, matrix_names
from tests.published_formats import write_compressed_tensors
from tests.tiny import save, tiny_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WEIGHT_ONLY = (
    "bnb-nf4",
    "bnb-nf4:double_quant=true",
    "bnb-fp4",
    "gptq:bits=4,group_size=32",
    "int8",
    "int4",
    "fp8",
    "hqq:bits=4,group_size=32",
    "hqq:bits=3,group_size=32",
)
COLUMNS = ("logp", "mu", "sigma")
LENGTHS = (2, 3, 17, 40, 41, 9, 64, 2, 33)

Maker = Callable[..., CompressedModel]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """Two families; every bias of GPT-2 differs from zero, which those of a new model do not."""
    root, found = tmp_path_factory.mktemp("models"), {}
    for family in ("llama", "gpt2"):
        model = tiny_model(family)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(".bias"):
                    parameter.normal_(0.0, 0.3)
        found[family] = open_checkpoint(str(save(model, root / family)))
    return found


@pytest.fixture
def made(checkpoints: dict[str, Checkpoint]) -> Maker:
    def of(variant: str, family: str = "llama", dtype: str = "float32") -> CompressedModel:
        needs(variant)
        return make(checkpoints[family], variant, Placement("cpu", DTYPES[dtype]))

    return of


def scores(model: Any, lengths: Sequence[int] = LENGTHS) -> Scores:
    rng = np.random.default_rng(0)
    records = [Encoded(rng.integers(2, 257, n).tolist(), 1, False, n, n) for n in lengths]
    return Engine(model, torch.device("cpu")).score(records)


def largest_difference(a: Scores, b: Scores) -> dict[str, float]:
    return {name: float(abs(getattr(a, name) - getattr(b, name)).max()) for name in COLUMNS}


def widened(model: Any) -> Any:
    """The same dense model in float32: what the arithmetic of 16 bits is measured against."""
    return nn.Module.to(model, torch.float32)  # transformers' own refuses what was once packed


@pytest.mark.parametrize("variant", WEIGHT_ONLY)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_paths_give_the_same_scores(
    variant: str, family: str, dtype: str, made: Maker
) -> None:
    packed = made(variant, family, dtype)
    names = list(packed_layers(packed.model))
    assert sorted(names) == sorted(matrix_names(family))
    biases: dict[str, Any] = {n: packed.model.get_submodule(n).bias for n in names}
    before, receipt = scores(packed.model), packed.receipt
    dense = materialise(packed, Placement("cpu", DTYPES[dtype]), how="always")
    for name in names:
        layer: Any = dense.model.get_submodule(name)
        assert type(layer.weight) is nn.Parameter and layer.weight.dtype == DTYPES[dtype]
        assert (layer.bias is None) == (family == "llama")
        if layer.bias is not None:
            assert torch.equal(layer.bias, biases[name].to(DTYPES[dtype]))
            assert float(layer.bias.abs().min()) > 0
    after = scores(dense.model)
    # In float32 two right sums differ by a few of its last places; in 16 bits by no more than the
    # packed model's own arithmetic is off from that of the same weights in float32.
    off = largest_difference(before, scores(widened(dense.model)))
    for name, difference in largest_difference(before, after).items():
        bound = 2e-5 if dtype == "float32" else 0.25 * off[name]
        assert difference <= bound, (name, difference, off[name])
    np.testing.assert_array_equal(before.hit, after.hit)
    for attack in (single.loss, single.min_k, single.min_k_plus_plus):
        signals, others = attack(before), attack(after)
        assert abs(signals - others).max() <= 1e-4 * np.ptp(signals)
    # The receipt is that of the packed form, bytes among it, but for one note.
    (note,) = dense.receipt.notes[len(receipt.notes) :]
    assert f"{len(names)} of {len(names)} packed layers" in note
    assert dense.receipt.model_copy(update={"notes": receipt.notes}) == receipt
    assert dense.cannot_save and dense.dense is None


@pytest.mark.parametrize(
    "variant",
    [
        "original",
        "bfloat16",
        "bnb-int8",
        "bnb-int8:threshold=0",
        "int8-dynamic",
        "prune-magnitude:sparsity=0.3",
        "cluster:k=16",
    ],
)
def test_what_is_dense_or_rounds_its_inputs_is_the_same_object(variant: str, made: Maker) -> None:
    given = made(variant)
    kinds = [type(layer) for layer in given.model.modules()]
    before = scores(given.model)
    assert materialise(given, CPU, how="always") is given
    assert materialise(given, CPU, how="auto") is given
    assert [type(layer) for layer in given.model.modules()] == kinds
    assert largest_difference(before, scores(given.model)) == dict.fromkeys(COLUMNS, 0.0)


@pytest.mark.parametrize("rounds_inputs", [False, True])
def test_published_compressed_tensors_are_left_as_they_were_loaded(
    rounds_inputs: bool, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    out = tmp_path / "published"
    write_compressed_tensors(checkpoints["llama"].path, out, rounds_inputs=rounds_inputs)
    given = make(checkpoints["llama"], f"checkpoint:{out}")
    assert materialise(given, CPU, how="always") is given
    assert given.receipt.batch_dependent == rounds_inputs


@pytest.mark.parametrize("variant", ["bnb-nf4", "int8", "int4"])
def test_published_packed_versions_and_originals_are_decompressed(
    variant: str, made: Maker, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """Made in bfloat16 and published; scored in float32."""
    packed = made(variant, dtype="bfloat16")
    with quietly():
        packed.model.save_pretrained(tmp_path / "out")
    published = make(checkpoints["llama"], f"checkpoint:{tmp_path / 'out'}")
    before = scores(published.model)
    dense = materialise(published, CPU, how="always")
    assert not packed_layers(dense.model)
    assert max(largest_difference(before, scores(dense.model)).values()) <= 2e-5


def test_a_layer_computes_in_its_own_precision_all_the_same(
    made: Maker, tmp_path: Path, checkpoints: dict[str, Checkpoint]
) -> None:
    """An original that was published in NF4, to be computed with in bfloat16, under float32."""
    with quietly():
        made("bnb-nf4", dtype="bfloat16").model.save_pretrained(tmp_path / "out")
    original = make(
        open_checkpoint(str(tmp_path / "out"), model_args={"tokenizer": "n"}), "original"
    )
    before = scores(original.model)
    dense = materialise(original, CPU, how="always")
    layer = dense.model.get_submodule(matrix_names("llama")[0])
    assert type(layer) is CastingLinear and layer.weight.dtype == torch.bfloat16
    after = scores(dense.model)
    exact = scores(materialised_wide(dense.model))
    for name, difference in largest_difference(before, after).items():
        assert difference <= 0.25 * largest_difference(before, exact)[name]


def materialised_wide(model: Any) -> Any:
    """The same weights, multiplied in float32."""
    for layer in model.modules():
        if isinstance(layer, CastingLinear):
            layer.weight = nn.Parameter(layer.weight.float(), requires_grad=False)
    return model


def test_never_does_nothing(made: Maker) -> None:
    given = made("bnb-nf4")
    assert materialise(given, CPU, how="never") is given
    assert len(packed_layers(given.model)) == len(matrix_names("llama"))


def test_auto_asks_for_all_weights_dense_and_the_largest_being_unpacked(made: Maker) -> None:
    given = made("bnb-nf4")
    layers = list(packed_layers(given.model).values())
    sides = [(64, 64), (32, 64), (32, 64), (64, 64), (96, 64), (96, 64), (64, 96)] * 2
    sizes = [outputs * inputs for outputs, inputs in sides]
    needed = needed_bytes(layers, torch.float32)
    assert needed == 4 * sum(sizes) + module.UNPACKING_BYTES * max(sizes)
    assert materialise(given, CPU, how="auto", available=needed - 1) is given
    assert len(packed_layers(given.model)) == len(sizes)
    dense = materialise(given, CPU, how="auto", available=needed)
    assert dense is not given and not packed_layers(dense.model)
    # Asked a second time, there is nothing left to do.
    assert materialise(dense, CPU, how="always") is dense


# -- the packed tensors --------------------------------------------------------------------------


def codes(layer: Any) -> list[Tensor]:
    """The tensors that hold a packed layer's weight."""
    held = [inner for p in layer.parameters(recurse=False) for inner in held_tensors(p)]
    return [t for t in [*held, *layer.buffers(recurse=False)] if t is not layer.bias]


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is gone without the collector was let go of at once, and not some time later."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "variant", ["bnb-nf4:double_quant=true", "gptq:group_size=32", "int8", "hqq"]
)
@pytest.mark.usefixtures("no_collector")
def test_packed_tensors_are_let_go_of_layer_by_layer(
    variant: str, made: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = made(variant)
    dtypes = {t.dtype for t in live_tensors(packed.model)}
    assert dtypes != {torch.float32}
    watched = {
        name: [weakref.ref(t) for t in codes(x)] for name, x in packed_layers(packed.model).items()
    }
    assert all(watched.values())
    alive: list[int] = []
    real = module._decompress

    def counted(layer: Any, placement: Placement) -> float | None:
        alive.append(sum(any(ref() is not None for ref in refs) for refs in watched.values()))
        return real(layer, placement)

    monkeypatch.setattr(module, "_decompress", counted)
    dense = materialise(packed, CPU, how="always")
    assert alive == list(range(len(watched), 0, -1))
    assert not any(ref() is not None for refs in watched.values() for ref in refs)
    assert {t.dtype for t in live_tensors(dense.model)} == {torch.float32}
    n_bytes = sum(t.nbytes for t in live_tensors(dense.model) if t.dim() == 2)
    n_dense = sum(p.nbytes for p in tiny_model("llama").parameters() if p.dim() == 2)
    assert n_bytes == n_dense


def test_a_layer_that_is_held_in_two_places_stays_one(made: Maker) -> None:
    given = made("bnb-nf4")
    blocks: Any = given.model.get_submodule("model.layers")
    first, second = blocks
    second.mlp = first.mlp
    before = scores(given.model)
    dense = materialise(given, CPU, how="always")
    assert second.mlp is first.mlp
    assert type(first.mlp.up_proj) is type(second.mlp.up_proj) is nn.Linear
    assert largest_difference(before, scores(dense.model))["logp"] <= 2e-5


def test_a_packed_head_and_weights_that_two_layers_share(made: Maker) -> None:
    needs("int8")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    given = made("int8")
    head, embedding = given.model.get_output_embeddings(), given.model.get_input_embeddings()
    config = Int8WeightOnlyConfig(set_inductor_config=False)
    quantize_(head, config, filter_fn=lambda _module, _name: True)
    first, second = (given.model.model.layers[i].mlp.up_proj for i in (0, 1))
    second.weight = first.weight
    ids = torch.arange(1, 60)[None]
    with torch.no_grad():
        before = given.model(ids).logits
        dense = materialise(given, CPU, how="always")
        after = dense.model(ids).logits
    assert type(head) is nn.Linear and type(embedding) is nn.Embedding
    assert torch.equal(first.weight, second.weight)
    torch.testing.assert_close(before, after, rtol=1e-5, atol=2e-5)


# -- the probe -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layer_that_gives_other_outputs_stays_packed(
    dtype: str, made: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that round their inputs, were they not known by what they hold."""
    given, placement = made("int8-dynamic", dtype=dtype), Placement("cpu", DTYPES[dtype])
    before = scores(given.model)
    monkeypatch.setattr(module, "_rounds_inputs", lambda _weight: False)
    after = materialise(given, placement, how="always")
    assert len(packed_layers(after.model)) == len(matrix_names("llama"))
    assert "0 of 14 packed layers" in after.receipt.notes[-1]
    assert "14 stayed packed" in after.receipt.notes[-1]
    assert after.cannot_save is None
    assert largest_difference(before, scores(after.model)) == dict.fromkeys(COLUMNS, 0.0)


def test_one_wrong_layer_stays_packed_and_is_named(made: Maker) -> None:
    """One that scales its inputs first: its weight alone is not all that it computes with."""
    needs("int8")
    given = made("int8")
    name = matrix_names("llama")[3]
    layer: Any = given.model.get_submodule(name)
    layer.weight.act_pre_scale = torch.linspace(0.5, 2.0, layer.in_features)
    before = scores(given.model)
    after = materialise(given, CPU, how="always")
    assert list(packed_layers(after.model)) == [name]
    assert name in after.receipt.notes[-1] and "13 of 14" in after.receipt.notes[-1]
    assert max(largest_difference(before, scores(after.model)).values()) <= 2e-5


@pytest.mark.parametrize("word", ["on", "off", "yes", True])
def test_words_that_yaml_reads_otherwise_are_refused(word: Any) -> None:
    from auditor.recipes import configure

    given = {"model": "m", "members": "a.jsonl", "nonmembers": "b.jsonl"}
    assert configure(given).materialise == "auto"
    assert configure({**given, "materialise": "never"}).materialise == "never"
    with pytest.raises(ConfigError, match="materialise"):
        configure({**given, "materialise": word})
