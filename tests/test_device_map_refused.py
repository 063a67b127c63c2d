"""What a model over several devices cannot do is one error, and no pass is wasted on it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from auditor import AuditConfig, audit
from auditor.cli import main
from auditor.compress import parse_variant
from auditor.compress.checkpoint import Checkpoint, Placement, load_model, open_checkpoint
from auditor.compress.dispatch import must_be_held, must_hold
from auditor.compress.make import compress
from auditor.devices import Spread
from auditor.errors import CompleakError, ConfigError, ModelError, VariantError
from tests.conftest import needs
from tests.device_cases import KB, left_in, spread
from tests.published_formats import write_compressed_tensors
from tests.tiny import save, tiny_model

PRUNED = "prune-magnitude:sparsity=0.5"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(save(tiny_model("llama"), tmp_path_factory.mktemp("llama"))))


@pytest.fixture
def off(tmp_path: Path) -> Path:
    return tmp_path / "offload"


# -- what is refused, and when --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "must", "fix"),
    [
        (
            {"variants": PRUNED},
            VariantError,
            f"{PRUNED} changes",
            "compleak-llm compress",
        ),
        (
            {"variants": "bnb-nf4,hqq"},
            VariantError,
            "hqq changes weights",
            "leave this variant out",
        ),
        (
            {"variants": "bnb-nf4", "controls": "noise"},
            VariantError,
            "noise of bnb-nf4|bnb-nf4.*changes weights",
            "leave",
        ),
        ({"max_memory": "cpu=90KB"}, VariantError, "bnb-nf4 must fit whole", "--max-memory"),
        ({"offload_folder": None}, ModelError, "must fit into the devices", "--offload-folder DIR"),
        ({"device": "cuda:0"}, ConfigError, "chooses the devices itself", "leave --device out"),
    ],
)
def test_what_cannot_be_is_refused_before_any_pass(
    given: dict[str, Any],
    error: type[CompleakError],
    must: str,
    fix: str,
    subject: dict[str, Any],
    off: Path,
    tmp_path: Path,
) -> None:
    whole = {
        **subject,
        "reference": None,
        "variants": "bnb-nf4",
        "dtype": "float32",
        "device_map": "auto",
        "max_memory": "cpu=300KB",
        "offload_folder": str(off),
        **given,
    }
    with pytest.raises(error, match=must) as found:
        audit(AuditConfig.model_validate({**whole, "output_path": str(tmp_path / "run")}))
    assert fix in found.value.fix
    assert not (tmp_path / "run").exists()
    assert not off.exists()


def test_a_reference_too_must_have_room(subject: dict[str, Any], tmp_path: Path) -> None:
    wide = save(tiny_model("llama", hidden_size=256), tmp_path / "wide")
    given = {**subject, "variants": "original", "reference": str(wide), "dtype": "float32"}
    given |= {"device_map": "auto", "max_memory": "cpu=900KB", "output_path": str(tmp_path / "run")}
    with pytest.raises(ModelError, match="wide must fit into the devices"):
        audit(AuditConfig.model_validate(given))


def test_no_block_on_a_gpu_is_not_taken_for_the_processors_turn(
    checkpoint: Checkpoint,
) -> None:
    placement = Placement("cuda:0", torch.float32, Spread(((0, 1 * KB), ("cpu", 10**9))))
    with pytest.raises(ModelError, match="at least one of its blocks on a GPU") as found:
        must_hold(checkpoint, placement)
    assert "--device cpu" in found.value.fix
    assert "0=0.0 MiB, cpu=0.9 GiB" in found.value.seen


def test_what_lies_in_memory_beside_a_gpu_is_not_changed_there(checkpoint: Checkpoint) -> None:
    sizes = ((0, 250 * KB), ("cpu", 10**9))
    placement = Placement("cuda:0", torch.float32, Spread(sizes))
    must_hold(checkpoint, placement)
    with pytest.raises(VariantError, match="it changes weights") as found:
        must_hold(checkpoint, placement, changed=["it"])
    assert "MiB to memory beside the GPU" in found.value.seen


def test_whoever_changes_weights_asks_again_when_they_are_loaded(
    checkpoint: Checkpoint, off: Path
) -> None:
    placement = spread(1 * KB, off)
    with pytest.raises(VariantError, match="changes weights where they are computed with"):
        load_model(checkpoint, placement)
    assert left_in(off) == []
    must_be_held(tiny_model("llama"), placement, "llama")


def test_a_load_that_nobody_foresaw_is_refused_and_leaves_nothing(
    checkpoint: Checkpoint, off: Path
) -> None:
    with pytest.raises(ModelError, match="must fit into the devices") as found:
        load_model(checkpoint, spread(1 * KB, None), offload=True)
    assert "--offload-folder DIR" in found.value.fix
    needs("bnb-nf4")
    with pytest.raises(VariantError, match="quantized, must fit whole"):
        compress(checkpoint, parse_variant("bnb-nf4"), spread(1 * KB, off))
    assert left_in(off) == []


def test_what_is_quantized_already_must_fit_whole(
    checkpoint: Checkpoint, off: Path, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    write_compressed_tensors(checkpoint.path, tmp_path / "ct")
    spec = parse_variant(f"checkpoint:{tmp_path / 'ct'}")
    with pytest.raises(VariantError, match="ct, quantized, must fit whole") as found:
        compress(checkpoint, spec, spread(20 * KB, off))
    assert "MiB to disk, and its library does not let it" in found.value.seen
    del found  # whose traceback holds the model
    assert left_in(off) == []


def test_a_folder_that_cannot_be_written(checkpoint: Checkpoint, off: Path) -> None:
    off.write_text("a file")
    with pytest.raises(ConfigError, match="--offload-folder must be a folder") as found:
        load_model(checkpoint, spread(1 * KB, off), offload=True)
    assert str(off) in found.value.seen


# -- at the command line --------------------------------------------------------------------------


def flags(given: dict[str, Any], output: Path) -> list[str]:
    names = ("model", "members", "nonmembers")
    found = [part for name in names for part in (f"--{name}", given[name])]
    return ["audit", *found, "--dtype", "float32", "--output-path", str(output)]


def test_a_plan_says_where_the_parts_will_lie(
    subject: dict[str, Any], off: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--device-map", "auto", "--max-memory", "cpu=300KB", "--offload-folder", str(off)]
    assert main([*flags(subject, tmp_path / "run"), *more, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(number for number, line in enumerate(lines) if line.startswith("device map"))
    assert lines[row].split()[2:] == ["cpu:", "0.1", "MiB", "in", "1", "modules"]
    assert "disk: 0.3 MiB in 20 modules" in lines[row + 1]
    assert not off.exists()
    assert main([*flags(subject, tmp_path / "run"), "--dry-run"]) == 0
    assert "device map" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "must"),
    [
        (("--device-map", "everywhere"), "device"),
        (("--device-map", "auto", "--max-memory", "cpu=much"), "a number above 0 and a unit"),
        (("--max-memory", "cpu=1GiB"), "of no use while the whole model goes to one device"),
        (("--device-map", "auto", "--max-memory", "cpu=9KB"), "must fit into the devices"),
    ],
)
def test_bad_input_is_one_error_and_exit_code_2(
    more: tuple[str, ...],
    must: str,
    subject: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*flags(subject, tmp_path / "run"), *more]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("error: ") == 1
    assert must in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()


def test_a_folder_is_not_made_from_what_does_not_fit(
    subject: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ["compress", "--model", subject["model"], "--out", str(tmp_path / "out")]
    small = ["--device-map", "auto", "--max-memory", "cpu=60KB", "--offload-folder", str(tmp_path)]
    for variant, must in ((PRUNED, "changes weights"), ("bnb-nf4", "must fit whole")):
        assert main([*made, "--variant", variant, *small]) == 2
        assert must in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
