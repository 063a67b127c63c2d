"""Published versions: what is loaded computes with the weights that the files stand for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from auditor.compress.checkpoint import Placement, open_checkpoint
from auditor.compress.options import CheckpointOptions
from auditor.compress.published import identify
from auditor.compress.published_load import load
from auditor.compress.quiet import quietly
from auditor.compress.readback import computed_weight
from tests.families import BLOCKS, CPU, MATRICES, make
from tests.published_formats import (
    State,
    gguf_values,
    is_layer,
    logits_of,
    write_awq,
    write_compressed_tensors,
    write_gguf,
    write_gptq,
    write_hqq,
    write_plain,
)
from tests.tiny import byte_tokenizer, save, tiny_model

IDS = torch.randint(0, 257, (3, 20), generator=torch.Generator().manual_seed(0))
FAMILIES = ("llama", "llama-tied", "gpt2", "gpt_neox", "mixtral", "mistral", "qwen3")
# Bits of a weight beside its code: a float16 scale and a zero point for 32 weights; GPTQ also
# stores an int32 for every input, which in models of this width is more than nothing.
SCALE = 16 / 32


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The original of a family, made once."""
    root = tmp_path_factory.mktemp("originals")

    def source(family: str) -> Path:
        if not (root / family).is_dir():
            save(tiny_model(family), root / family)
        return root / family

    return source


def logits(made: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = made.model(IDS).logits
    return found


def names(family: str) -> list[str]:
    """The matrices of a family, as receipts name them."""
    if family == "mixtral":
        own = [f"self_attn.{x}_proj" for x in "qkvo"]
        own += [f"mlp.experts.{x}_proj[{i}]" for x in ("gate_up", "down") for i in range(4)]
        return [f"model.layers.{block}.{name}" for block in range(2) for name in own]
    kind = family.partition("-")[0]
    return [f"{BLOCKS[kind]}.{block}.{name}" for block in range(2) for name in MATRICES[kind]]


def check(source: Path, out: Path, dense: State, scratch: Path, *, family: str, method: str) -> Any:
    """Load a version; its logits and its receipt must be those of the weights it stands for."""
    made = make(open_checkpoint(str(source)), f"checkpoint:{out}")
    expected = logits_of(source, dense, scratch, IDS)
    assert torch.equal(logits(made), expected)
    assert not torch.equal(expected, logits_of(source, {}, scratch.with_name("same"), IDS))
    receipt = made.receipt
    assert receipt.method is not None and receipt.method.startswith(method)
    assert sorted(item.module for item in receipt.compressed) == sorted(names(family))
    original = load_file(source / "model.safetensors")
    old = torch.cat([original[name].flatten().float() for name in dense])
    new = torch.cat([dense[name].flatten() for name in dense])
    assert receipt.relative_error == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-4)
    assert receipt.correlation == pytest.approx(
        float(old @ new / old.norm() / new.norm()), abs=1e-5
    )
    assert receipt.n_changed == int((old != new).sum())
    assert receipt.n_compressed == len(old)
    files = [out] if out.is_file() else [*out.glob("*.safetensors"), *out.glob("*.pt")]
    assert receipt.bytes_disk == sum(file.stat().st_size for file in files)
    assert made.cannot_save is None and made.dense is None
    assert not receipt.batch_dependent
    return made


# -- packed integers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "bits", "options"),
    [
        ("llama", 2, {}),
        ("llama", 3, {"version": "gptq_v2"}),
        ("llama", 3, {"desc_act": True}),
        ("llama", 4, {"desc_act": True}),
        ("llama", 8, {"version": "gptq_v2", "group_size": 96}),
        ("gpt2", 4, {"conv1d": True}),
        ("gpt2", 3, {"conv1d": True, "desc_act": True, "version": "gptq_v2"}),
        ("gpt_neox", 4, {}),
        ("mixtral", 4, {}),
    ],
)
def test_gptq(
    sources: Callable[[str], Path], tmp_path: Path, family: str, bits: int, options: dict[str, Any]
) -> None:
    torch.manual_seed(bits)
    dense = write_gptq(sources(family), tmp_path / "out", bits=bits, **options)
    method = f"GPTQ, {bits} bits"
    made = check(
        sources(family), tmp_path / "out", dense, tmp_path / "d", family=family, method=method
    )
    size = options.get("group_size", 32)
    shapes = {name: tensor.shape for name, tensor in dense.items()}
    inputs = [shape[0 if options.get("conv1d") else 1] for shape in shapes.values()]
    outputs = [shape[1 if options.get("conv1d") else 0] for shape in shapes.values()]
    stored = sum(
        i * o * bits + -(-i // size) * o * (16 + bits) + 32 * i
        for i, o in zip(inputs, outputs, strict=True)
    )
    assert made.receipt.bits_per_weight == pytest.approx(stored / made.receipt.n_compressed)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_awq(sources: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    dense = write_awq(sources(family), tmp_path / "out")
    made = check(
        sources(family), tmp_path / "out", dense, tmp_path / "d", family=family, method="AWQ, 4"
    )
    assert made.receipt.bits_per_weight == pytest.approx(4 + SCALE + 4 / 32)


@pytest.mark.parametrize(
    ("bits", "pickled"), [(8, False), (4, False), (3, False), (2, False), (4, True)]
)
def test_hqq(sources: Callable[[str], Path], tmp_path: Path, bits: int, pickled: bool) -> None:
    dense = write_hqq(sources("llama"), tmp_path / "out", bits=bits, pickled=pickled)
    original = open_checkpoint(str(sources("llama")), allow_pickle=pickled)
    made = make(original, f"checkpoint:{tmp_path / 'out'}")
    expected = logits_of(sources("llama"), dense, tmp_path / "d", IDS)
    assert torch.equal(logits(made), expected)
    # Three bits are stored ten to a word of 32.
    stored = {8: 8.0, 4: 4.0, 3: 3.2, 2: 2.0}[bits] + 2 * SCALE
    assert made.receipt.bits_per_weight == pytest.approx(stored, rel=0.05)
    assert sorted(item.module for item in made.receipt.compressed) == sorted(names("llama"))
    assert "hqq 0" in made.receipt.library


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"bits": 4, "group_size": 32}),
        ("gpt2", {"bits": 3, "group_size": 32, "desc_act": True}),
        ("gpt_neox", {"bits": 8, "group_size": -1, "act_group_aware": False}),
    ],
)
def test_gptq_is_unpacked_as_its_library_does(
    sources: Callable[[str], Path], tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    pytest.importorskip("gptqmodel")
    from transformers import AutoTokenizer, GPTQConfig

    windows = torch.randint(1, 257, (4, 1, 32), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": w, "attention_mask": torch.ones_like(w)} for w in windows]
    with quietly(GPTQMODEL_DISABLE_PACK_EXT="1"):
        config = GPTQConfig(
            dataset=data,
            tokenizer=AutoTokenizer.from_pretrained(sources(family)),
            model_seqlen=32,
            batch_size=1,
            pad_token_id=0,
            backend="gptq_torch",
            **options,
        )
        model = AutoModelForCausalLM.from_pretrained(
            sources(family), quantization_config=config, device_map="cpu", dtype=torch.float32
        ).eval()
        model.config.quantization_config.dataset = None
        with torch.no_grad():
            expected = model(IDS).logits
        model.save_pretrained(tmp_path / "out")
    made = make(open_checkpoint(str(sources(family))), f"checkpoint:{tmp_path / 'out'}")
    assert torch.equal(logits(made), expected)


# -- by the format's library ---------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mixtral"])
def test_compressed_tensors(sources: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    dense = write_compressed_tensors(sources(family), tmp_path / "out")
    method = "compressed-tensors pack-quantized, 4-bit int weights, groups of 32"
    made = check(
        sources(family), tmp_path / "out", dense, tmp_path / "d", family=family, method=method
    )
    assert made.receipt.bits_per_weight == pytest.approx(4 + 32 / 32)
    made.model.save_pretrained(tmp_path / "plain")  # as a folder that needs no library
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, logits(made))


def test_compressed_tensors_that_round_their_inputs(
    sources: Callable[[str], Path], tmp_path: Path
) -> None:
    dense = write_compressed_tensors(sources("llama"), tmp_path / "out", rounds_inputs=True)
    made = make(open_checkpoint(str(sources("llama"))), f"checkpoint:{tmp_path / 'out'}")
    with torch.no_grad():
        x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
        layer: Any = made.model.get_submodule("model.layers.0.mlp.up_proj")
        scale = x.abs().amax(2, keepdim=True) / 127.5
        rounded = (x / scale).round().clamp(-128, 127) * scale
        expected = rounded @ dense["model.layers.0.mlp.up_proj.weight"].T
        assert torch.allclose(layer(x), expected, atol=1e-5)
        assert not torch.allclose(layer(x), x @ layer.weight.T, atol=1e-3)
        # Scoring goes through the base model, which must not find packed weights either.
        hidden = made.model.base_model(input_ids=IDS).last_hidden_state
        assert torch.isfinite(hidden).all()
    assert made.receipt.method is not None and "8-bit int activations" in made.receipt.method
    assert made.cannot_save is not None and "round their inputs" in made.cannot_save
    # A sum that differs in its last bit is rounded to another code.
    assert made.receipt.batch_dependent


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("llama", "bnb-nf4"),
        ("llama", "bnb-fp4:double_quant=true"),
        ("gpt2", "bnb-nf4"),
        ("llama", "bnb-int8"),
        ("llama", "bnb-int8:threshold=0.0"),
        ("gpt2", "bnb-int8"),
        ("llama", "int8"),
        ("llama", "int4"),
        ("llama", "fp8"),
        ("gpt_neox", "int8-dynamic"),
    ],
)
def test_what_was_made_here_and_saved_is_the_same_variant(
    sources: Callable[[str], Path], tmp_path: Path, family: str, variant: str
) -> None:
    original = open_checkpoint(str(sources(family)))
    made = make(original, variant)
    expected = logits(made)
    with quietly():
        made.model.save_pretrained(tmp_path / "out")
    published = make(original, f"checkpoint:{tmp_path / 'out'}")
    assert torch.equal(logits(published), expected)
    was, now = made.receipt, published.receipt
    assert now.bits_per_weight == pytest.approx(was.bits_per_weight)
    assert now.relative_error == pytest.approx(was.relative_error, rel=1e-5)
    assert [item.module for item in now.compressed] == [item.module for item in was.compressed]
    assert [item.kind for item in now.compressed] == [item.kind for item in was.compressed]
    assert now.batch_dependent == was.batch_dependent
    assert now.library == was.library


@pytest.mark.parametrize("kind", ["nf4", "int8", "int4", "fp8"])
def test_versions_of_sixteen_bits_compute_in_the_audits_precision(
    sources: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    import torchao.quantization as torchao
    from transformers import BitsAndBytesConfig, TorchAoConfig

    four = torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=torchao.PerGroup(32))
    settings: dict[str, Any] = {
        "nf4": lambda: BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        ),
        "int8": lambda: TorchAoConfig(torchao.Int8WeightOnlyConfig()),
        "int4": lambda: TorchAoConfig(four),
        "fp8": lambda: TorchAoConfig(torchao.Float8WeightOnlyConfig()),
    }
    with quietly():
        AutoModelForCausalLM.from_pretrained(
            sources("llama"),
            quantization_config=settings[kind](),
            dtype=torch.bfloat16,
            device_map="cpu",
        ).save_pretrained(tmp_path / "out")
    original = open_checkpoint(str(sources("llama")))
    found = identify(CheckpointOptions(path=str(tmp_path / "out")), original)
    loaded = load(found.checkpoint, found.form, CPU, None)
    assert len(loaded.kinds) == len(names("llama"))
    for name in loaded.kinds:
        weight = loaded.read(name)
        assert weight is not None and weight.dtype == torch.float32
        layer: Any = loaded.model.get_submodule(name)
        # Rounding anything to bfloat16 on the way would be off by 1e-3.
        computed = computed_weight(layer, weight.shape[1])
        assert torch.allclose(computed, weight, rtol=1e-6, atol=1e-7), name


# -- GGUF ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3_text", "phi3"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
def test_gguf(sources: Callable[[str], Path], tmp_path: Path, family: str, kind: str) -> None:
    import gguf

    source, out = sources(family), tmp_path / "model.gguf"
    write_gguf(source, out, gguf.GGMLQuantizationType[kind])
    dense = State()
    for name, tensor in load_file(source / "model.safetensors").items():
        if tensor.dim() == 2 and not name.endswith("block_sparse_moe.gate.weight"):
            turned = family == "gpt2" and is_layer(name)
            values = gguf_values(tensor.T.contiguous() if turned else tensor, kind)
            dense[name] = values.T if turned else values
    made = make(open_checkpoint(str(source)), f"checkpoint:{out}")
    assert torch.equal(logits(made), logits_of(source, dense, tmp_path / "d", IDS))
    receipt = made.receipt
    assert receipt.bits_per_weight == {"Q8_0": 8.5, "Q4_0": 4.5, "F16": 16.0}[kind]
    assert receipt.n_compressed == sum(tensor.numel() for tensor in dense.values())
    assert receipt.method is not None and receipt.method.startswith(f"GGUF, {kind} (")
    assert receipt.bytes_disk == out.stat().st_size
    assert receipt.library.startswith("gguf ")


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3_text"])
def test_gguf_is_read_as_transformers_does(
    sources: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    write_gguf(sources(family), tmp_path / "model.gguf")
    original = open_checkpoint(str(sources(family)))
    with quietly():
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="model.gguf", config=original.config, dtype=torch.float32
        ).eval()
    made = make(original, f"checkpoint:{tmp_path / 'model.gguf'}")
    with torch.no_grad():
        assert torch.equal(logits(made), model(IDS).logits)


def test_gguf_with_a_vocabulary_in_a_folder(sources: Callable[[str], Path], tmp_path: Path) -> None:
    tokens = sorted(byte_tokenizer().get_vocab(), key=byte_tokenizer().get_vocab().__getitem__)
    write_gguf(sources("llama"), tmp_path / "model.gguf", tokens=tokens)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    made = make(open_checkpoint(str(sources("llama"))), f"checkpoint:{tmp_path}")
    assert not any("tokenizer" in note for note in made.receipt.notes)
    assert any("llama.cpp rounds" in note for note in made.receipt.notes)


def test_placement_of_sixteen_bits(sources: Callable[[str], Path], tmp_path: Path) -> None:
    dense = write_gptq(sources("llama"), tmp_path / "out")
    half = Placement("cpu", torch.bfloat16)
    made = make(open_checkpoint(str(sources("llama"))), f"checkpoint:{tmp_path / 'out'}", half)
    weight = made.model.get_parameter("model.layers.1.mlp.down_proj.weight")
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, dense["model.layers.1.mlp.down_proj.weight"].bfloat16())


# -- plain weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mixtral"])
def test_plain_casts_are_counted_whole(
    sources: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    write_plain(sources(family), tmp_path / "out", dtype=torch.float16)
    made = make(open_checkpoint(str(sources(family))), f"checkpoint:{tmp_path / 'out'}")
    receipt = made.receipt
    assert receipt.method == "plain weights in float16" and receipt.bits_per_weight == 16
    counted = {item.module for item in receipt.compressed}
    assert set(names(family)) < counted and any("embed" in n or "wte" in n for n in counted)
    assert not receipt.notes
