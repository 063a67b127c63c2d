"""One model over several devices: the same scores wherever its weights wait, or one error before.

On a machine without GPUs the devices are memory and disk; what needs two GPUs says so.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from auditor import AuditConfig, AuditResult, audit
from auditor.compress import parse_variant
from auditor.compress.checkpoint import (
    Checkpoint,
    CompressedModel,
    Placement,
    load_model,
    open_checkpoint,
)
from auditor.compress.dispatch import (
    foresee,
    held_by_device,
    input_device,
    is_offloaded,
    must_hold,
)
from auditor.compress.make import compress
from auditor.devices import Spread
from auditor.scoring.engine import Engine
from auditor.scoring.scores import Scores
from tests.conftest import needs
from tests.device_cases import KB, left_in, spread
from tests.published_formats import write_gptq
from tests.test_engine import records
from tests.tiny import FAMILIES, save, tiny_model

CPU = torch.device("cpu")
PLAIN = Placement("cpu", torch.float32)
ORIGINAL = parse_variant("original")
RECORDS = records([2, 3, 17, 40, 41, 9, 64, 33])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """One tiny model of every family, stored in float32."""
    folder = tmp_path_factory.mktemp("families")
    return {
        family: open_checkpoint(str(save(tiny_model(family), folder / family)))
        for family in FAMILIES
    }


@pytest.fixture
def off(tmp_path: Path) -> Path:
    return tmp_path / "offload"


def score(model: Any, *, one_at_a_time: bool = False) -> Scores:
    return Engine(model, CPU, batch_size=3, one_at_a_time=one_at_a_time).score(RECORDS)


def must_be_equal(one: Scores, other: Scores) -> None:
    for name in ("logp", "mu", "sigma", "hit"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


# -- the same scores ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, torch.float32) for family in FAMILIES),
        *((family, torch.bfloat16) for family in ("llama", "llama-tied", "gpt2", "gemma2")),
    ],
)
def test_a_model_that_is_read_from_disk_scores_the_same_to_the_bit(
    family: str, dtype: torch.dtype, checkpoints: dict[str, Checkpoint], off: Path
) -> None:
    """With heads tied to the embedding and untied, soft caps, scales, experts, and 16 bits."""
    checkpoint = checkpoints[family]
    whole = load_model(checkpoint, Placement("cpu", dtype))
    size = sum(parameter.nbytes for parameter in whole.parameters())
    placement = spread(size * 3 // 4, off, dtype=dtype)
    parts = load_model(checkpoint, placement, offload=True)
    held = held_by_device(parts)
    assert held == foresee(checkpoint, placement)
    assert held["disk"].n_bytes > 0
    assert is_offloaded(parts)
    assert sum(part.n_bytes for part in held.values()) == size
    must_be_equal(score(parts), score(whole))


def test_what_was_written_for_a_model_goes_with_it(
    checkpoints: dict[str, Checkpoint], off: Path
) -> None:
    parts = load_model(checkpoints["llama"], spread(1 * KB, off), offload=True)
    more = load_model(checkpoints["gpt2"], spread(1 * KB, off), offload=True)
    assert len(list(off.iterdir())) == 2, "names of weights are the same in many models"
    del parts
    assert len(left_in(off)) == 1
    del more
    assert left_in(off) == []


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma2"])
def test_logits_are_never_held_whole_though_the_head_is_on_disk(
    family: str, checkpoints: dict[str, Checkpoint], off: Path
) -> None:
    parts = load_model(checkpoints[family], spread(1 * KB, off), offload=True)
    assert set(held_by_device(parts)) == {"disk"}
    trunk = Engine(parts, CPU)._trunk
    assert trunk.head is not None
    with trunk.loaded_head() as head:
        assert head.weight.device == CPU
    assert all(parameter.is_meta for parameter in parts.lm_head.parameters())
    assert input_device(parts) == CPU


def test_a_model_that_fits_lies_where_it_would_without_a_map(
    checkpoints: dict[str, Checkpoint],
) -> None:
    parts = load_model(checkpoints["llama"], spread(10**9, None))
    assert set(held_by_device(parts)) == {"cpu"}
    assert not is_offloaded(parts)
    must_be_equal(score(parts), score(load_model(checkpoints["llama"], PLAIN)))


@pytest.mark.parametrize("variant", ["bnb-nf4", "bnb-int8", "prune-magnitude:sparsity=0.5", "hqq"])
def test_a_variant_that_fits_is_the_same_variant(
    variant: str, checkpoints: dict[str, Checkpoint], off: Path
) -> None:
    needs(variant)
    checkpoint, spec = checkpoints["llama"], parse_variant(variant)
    placement = spread(600 * KB, off)
    must_hold(checkpoint, placement, changed=[variant])
    made, plain = compress(checkpoint, spec, placement), compress(checkpoint, spec, PLAIN)
    assert figures(made) == figures(plain)
    alone = plain.receipt.batch_dependent
    must_be_equal(score(made.model, one_at_a_time=alone), score(plain.model, one_at_a_time=alone))


def figures(made: CompressedModel) -> dict[str, Any]:
    return made.receipt.model_dump(exclude={"compress_s", "compress_peak_bytes", "devices"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2"])
def test_the_receipt_of_what_lies_on_disk_counts_as_if_it_were_here(
    family: str, dtype: torch.dtype, checkpoints: dict[str, Checkpoint], off: Path
) -> None:
    checkpoint = checkpoints[family]
    parts = compress(checkpoint, ORIGINAL, spread(1 * KB, off, dtype=dtype))
    assert figures(parts) == figures(compress(checkpoint, ORIGINAL, Placement("cpu", dtype)))


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_a_published_version_from_disk(
    family: str, checkpoints: dict[str, Checkpoint], off: Path, tmp_path: Path
) -> None:
    """Unpacked in memory and written anew: a tied head must be found there too."""
    checkpoint, folder = checkpoints[family], tmp_path / "gptq"
    write_gptq(checkpoint.path, folder)
    spec = parse_variant(f"checkpoint:{folder}")
    parts, plain = (compress(checkpoint, spec, at) for at in (spread(1 * KB, off), PLAIN))
    assert set(held_by_device(parts.model)) == {"disk"}
    assert figures(parts) == figures(plain)
    must_be_equal(score(parts.model), score(plain.model))


@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "gemma2"])
def test_weights_of_a_pickle_are_written_anew(
    family: str, checkpoints: dict[str, Checkpoint], off: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoints[family].path, tmp_path / "pickle")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    checkpoint = open_checkpoint(str(folder), allow_pickle=True)
    parts = load_model(checkpoint, spread(1 * KB, off), offload=True)
    must_be_equal(score(parts), score(load_model(checkpoint, PLAIN)))


# -- a whole audit --------------------------------------------------------------------------------


def run(given: dict[str, Any], output: Path, **more: Any) -> AuditResult:
    whole = {**given, "reference": None, "output_path": str(output), **more}
    return audit(AuditConfig.model_validate(whole))


def comparable(result: AuditResult) -> dict[str, Any]:
    """All of a result but when, how long and where."""
    found: dict[str, Any] = json.loads(result.model_dump_json())
    for name in ("timings", "environment", "config"):
        del found[name]
    for variant in found["variants"]:
        for name in ("compress_s", "compress_peak_bytes", "devices"):
            variant["receipt"].pop(name, None)
    return found


def tables(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*.parquet"))
    }


def test_an_audit_from_disk_is_the_same_audit(
    subject: dict[str, Any], off: Path, tmp_path: Path
) -> None:
    given = {**subject, "variants": "bnb-nf4", "dtype": "float32", "settings": "NR"}
    plain = run(given, tmp_path / "plain")
    parts = run(
        given,
        tmp_path / "parts",
        device_map="auto",
        max_memory="cpu=300KB",
        offload_folder=str(off),
    )
    assert comparable(plain) == comparable(parts)
    assert tables(tmp_path / "plain") == tables(tmp_path / "parts")
    assert left_in(off) == []
    original, variant = (one.receipt for one in parts.variants)
    assert original is not None
    assert variant is not None
    assert set(original.devices) == {"cpu", "disk"}
    assert set(variant.devices) == {"cpu"}
    assert sum(part.n_bytes for part in original.devices.values()) == 4 * original.n_parameters
    said = {k: f"{v.n_modules} modules, {v.n_bytes} bytes" for k, v in original.devices.items()}
    assert parts.environment["device_map"] == "auto"
    assert parts.environment["held"] == said
    assert "held" not in plain.environment
    assert "device_map" not in plain.environment
    again = run(given, tmp_path / "plain", device_map="auto", max_memory="cpu=1GB")
    assert not any(one.n_forward_records for one in again.timings.variants), "they are the same"


# -- GPUs -----------------------------------------------------------------------------------------

DEEP = ("llama", "llama-tied", "gemma2")
PAIR = Placement("cuda:0", torch.float32, Spread(((0, 450 * KB), (1, 10**9))))
THREE = ((0, 450 * KB), ("cpu", 400 * KB))


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """Models of blocks enough to be spread."""
    folder = tmp_path_factory.mktemp("deep")
    models = {family: tiny_model(family, num_hidden_layers=8) for family in DEEP}
    return {name: open_checkpoint(str(save(one, folder / name))) for name, one in models.items()}


@pytest.mark.parametrize("family", DEEP)
def test_gpus_then_memory_then_disk_are_foreseen_without_them(
    family: str, deep: dict[str, Checkpoint], off: Path
) -> None:
    assert list(foresee(deep[family], PAIR)) == ["cuda:0", "cuda:1"]
    three = Placement("cuda:0", torch.float32, Spread(THREE, off))
    held = foresee(deep[family], three)
    assert set(held) == {"cuda:0", "cpu", "disk"}
    assert 0 < held["cuda:0"].n_bytes <= 450 * KB
    assert 0 < held["cpu"].n_bytes <= 400 * KB


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(
    "variant", ["original", "bnb-nf4", "bnb-int8", "prune-magnitude:sparsity=0.5", "hqq", "int8"]
)
@pytest.mark.parametrize("family", DEEP)
def test_over_two_gpus(family: str, variant: str, deep: dict[str, Checkpoint]) -> None:
    needs(variant)
    checkpoint, spec = deep[family], parse_variant(variant)
    made = compress(checkpoint, spec, PAIR)
    assert set(held_by_device(made.model)) == {"cuda:0", "cuda:1"}
    plain = compress(checkpoint, spec, Placement("cuda:0", torch.float32))
    assert figures(made) == figures(plain)
    alone = plain.receipt.batch_dependent
    must_be_equal(score(made.model, one_at_a_time=alone), score(plain.model, one_at_a_time=alone))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", DEEP)
def test_over_a_gpu_memory_and_disk(family: str, deep: dict[str, Checkpoint], off: Path) -> None:
    placement = Placement("cuda:0", torch.float32, Spread(THREE, off))
    parts = load_model(deep[family], placement, offload=True)
    held = held_by_device(parts)
    assert held == foresee(deep[family], placement)
    assert set(held) == {"cuda:0", "cpu", "disk"}
    assert input_device(parts) == torch.device("cuda:0")
    whole = load_model(deep[family], Placement("cuda:0", torch.float32))
    must_be_equal(score(parts), score(whole))
