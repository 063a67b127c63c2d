"""What is no published version of the original is refused, most of it before anything is loaded."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from auditor.compress import published
from auditor.compress.checkpoint import open_checkpoint
from auditor.compress.options import CheckpointOptions
from auditor.compress.published import identify
from auditor.errors import CompleakError, ModelError, VariantError
from tests.families import make
from tests.published_formats import (
    copied,
    is_layer,
    saved,
    write_awq,
    write_compressed_tensors,
    write_gguf,
    write_gptq,
    write_hqq,
    write_plain,
)
from tests.tiny import byte_tokenizer, save, tiny_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model("llama"), tmp_path_factory.mktemp("original") / "llama")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model("gpt2"), tmp_path_factory.mktemp("original") / "gpt2")


def refused_early(source: Path, out: Path | str, **allowed: Any) -> CompleakError:
    """The error that comes before any weights are loaded."""
    with pytest.raises(CompleakError) as caught:
        identify(CheckpointOptions(path=str(out)), open_checkpoint(str(source), **allowed))
    assert caught.value.must and caught.value.seen and caught.value.fix
    return caught.value


def refused_late(source: Path, out: Path, **allowed: Any) -> CompleakError:
    """The error that comes when the weights are loaded, and not before."""
    original = open_checkpoint(str(source), **allowed)
    identify(CheckpointOptions(path=str(out)), original)
    with pytest.raises(CompleakError) as caught:
        make(original, f"checkpoint:{out}")
    assert caught.value.must and caught.value.seen and caught.value.fix
    return caught.value


def set_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


# -- another model -------------------------------------------------------------------------------

FORMATS: dict[str, Callable[[Path, Path], object]] = {
    "plain": lambda source, out: write_plain(source, out, dtype=torch.bfloat16),
    "gptq": write_gptq,
    "awq": write_awq,
    "hqq": write_hqq,
    "compressed-tensors": write_compressed_tensors,
    "gguf": lambda source, out: write_gguf(source, out.with_suffix(".gguf")),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_another_model(source: Path, tmp_path: Path, kind: str) -> None:
    other = save(tiny_model("llama", seed=5), tmp_path / "other")
    FORMATS[kind](other, tmp_path / "out")
    error = refused_late(source, tmp_path / ("out.gguf" if kind == "gguf" else "out"))
    assert isinstance(error, ModelError) and "another model" in error.must
    assert abs(float(error.seen.split(" by ")[1].split(";")[0])) < 0.05


def test_a_matrix_the_wrong_way_round(gpt2: Path, tmp_path: Path) -> None:
    # Square, so that it loads without a word; the other matrices would hide it in the whole.
    state = copied(gpt2, tmp_path / "out")
    for name in [name for name in state if is_layer(name) and len({*state[name].shape}) == 1]:
        state[name] = state[name].T
    saved(state, tmp_path / "out")
    error = refused_late(gpt2, tmp_path / "out")
    assert "2 of its matrices" in error.seen and "transformer.h.0.attn.c_proj" in error.seen


def test_a_gguf_file_in_another_order(tmp_path: Path) -> None:
    # llama.cpp's order of queries and keys taken for that of a family where it has none.
    source = save(tiny_model("llama", hidden_size=128), tmp_path / "llama")
    write_gguf(source, tmp_path / "model.gguf", gives_heads=False, family="qwen3")
    error = refused_late(source, tmp_path / "model.gguf")
    assert "4 of its matrices" in error.seen and "q_proj" in error.seen


def test_linearised_gpt2(gpt2: Path, tmp_path: Path) -> None:
    state = copied(gpt2, tmp_path / "plain")
    turned = {name: t.T if is_layer(name) else t for name, t in state.items()}
    saved(turned, tmp_path / "plain")
    assert "(192, 64), and (64, 192)" in refused_early(gpt2, tmp_path / "plain").seen
    write_compressed_tensors(tmp_path / "plain", tmp_path / "packed")
    error = refused_early(gpt2, tmp_path / "packed")
    assert isinstance(error, VariantError) and "Conv1D" in error.seen


def test_another_vocabulary(source: Path, tmp_path: Path) -> None:
    write_gptq(source, tmp_path / "out")
    file = tmp_path / "out" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    file.write_text(json.dumps(tokenizer))
    error = refused_early(source, tmp_path / "out")
    assert "2 of 257 tokens differ" in error.seen and "'!'" in error.seen


def test_a_gguf_file_with_another_vocabulary(source: Path, tmp_path: Path) -> None:
    vocabulary = byte_tokenizer().get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    write_gguf(source, tmp_path / "model.gguf", tokens=tokens[:200])
    error = refused_early(source, tmp_path / "model.gguf")
    assert "57 of 257 tokens differ" in error.seen and "is not there" in error.seen


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"intermediate_size": 128}, "(128, 64), of the original (96, 64)"),
        ({"num_hidden_layers": 1}, "model.layers.1"),
        ({"vocab_size": 100}, "(100, 64), of the original (257, 64)"),
    ],
)
def test_other_shapes(source: Path, tmp_path: Path, changes: dict[str, Any], seen: str) -> None:
    other = save(tiny_model("llama", **changes), tmp_path / "other")
    write_gptq(other, tmp_path / "out")
    assert seen in refused_early(source, tmp_path / "out").seen


def test_a_gguf_file_of_other_dimensions(source: Path, tmp_path: Path) -> None:
    other = save(tiny_model("llama", num_hidden_layers=1), tmp_path / "other")
    write_gguf(other, tmp_path / "model.gguf")
    assert (
        refused_early(source, tmp_path / "model.gguf").seen == "block count: 1, of the original 2"
    )


def test_the_original_itself(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "out")
    error = refused_late(source, tmp_path / "out")
    assert isinstance(error, VariantError) and "0 of 61,440 weights changed" in error.seen


# -- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["compressed-tensors", "gguf", "hqq"])
def test_a_missing_library(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    FORMATS[kind](source, tmp_path / "out")
    monkeypatch.setattr(published, "installed", lambda name: None if name == kind else "1.0")
    error = refused_early(source, tmp_path / ("out.gguf" if kind == "gguf" else "out"))
    assert isinstance(error, VariantError)
    assert error.fix == f"pip install -c constraints.txt {kind}"


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"quant_method": "aqlm"}, "quantized with aqlm"),
        ({"bits": 4}, "settings do not name"),
    ],
)
def test_an_unknown_format(
    source: Path, tmp_path: Path, settings: dict[str, Any], seen: str
) -> None:
    saved(copied(source, tmp_path / "out", settings=settings), tmp_path / "out")
    error = refused_early(source, tmp_path / "out")
    assert isinstance(error, VariantError) and seen in error.seen
    assert "compressed-tensors, gguf, gptq" in error.fix


def test_mlx(source: Path, tmp_path: Path) -> None:
    saved(copied(source, tmp_path / "out"), tmp_path / "out")
    set_config(tmp_path / "out", quantization={"bits": 4, "group_size": 64})
    assert "quantized with mlx" in refused_early(source, tmp_path / "out").seen


@pytest.mark.parametrize(
    ("write", "changes", "seen"),
    [
        (write_gptq, {"checkpoint_format": "marlin"}, "layout marlin"),
        (write_awq, {"version": "gemv"}, "layout gemv"),
        (write_awq, {"bits": 8}, "is of 8"),
    ],
)
def test_a_layout_for_other_kernels(
    source: Path,
    tmp_path: Path,
    write: Callable[[Path, Path], object],
    changes: dict[str, Any],
    seen: str,
) -> None:
    write(source, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    set_config(tmp_path / "out", quantization_config=settings | changes)
    error = refused_early(source, tmp_path / "out")
    assert isinstance(error, VariantError) and seen in error.seen


def test_scales_on_activations(source: Path, tmp_path: Path) -> None:
    write_awq(source, tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    saved(state | {"model.layers.0.mlp.act.scales": torch.ones(96)}, tmp_path / "out")
    assert "scales its activations" in refused_late(source, tmp_path / "out").seen


def test_packed_weights_that_do_not_fit_each_other(source: Path, tmp_path: Path) -> None:
    write_gptq(source, tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.g_idx"
    saved(state | {name: state[name] + 7}, tmp_path / "out")
    assert "model.layers.0.mlp.up_proj: " in refused_late(source, tmp_path / "out").seen


def test_old_settings_in_a_file_of_their_own(source: Path, tmp_path: Path) -> None:
    write_gptq(source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    settings = config.pop("quantization_config")
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    (tmp_path / "out" / "quantize_config.json").write_text(
        json.dumps({key: settings[key] for key in ("bits", "group_size", "desc_act", "sym")})
    )
    receipt = make(open_checkpoint(str(source)), f"checkpoint:{tmp_path / 'out'}").receipt
    assert receipt.method == "GPTQ, 4 bits, groups of 32, asymmetric"
    assert receipt.relative_error < 0.1


# -- files ---------------------------------------------------------------------------------------


def test_files_that_are_cut_off(source: Path, tmp_path: Path) -> None:
    write_gptq(source, tmp_path / "out")
    write_gguf(source, tmp_path / "model.gguf")
    for file in (tmp_path / "out" / "model.safetensors", tmp_path / "model.gguf"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
        where = file if file.suffix == ".gguf" else file.parent
        error = refused_early(source, where)
        assert "whole" in error.must and "bytes" in error.seen


@pytest.mark.parametrize(
    ("field", "value", "seen"),
    [
        ("split.count", 3, "one of 3 parts"),
        ("general.type", "adapter", "holds an adapter"),
        ("general.architecture", "mamba", "is of mamba"),
    ],
)
def test_gguf_files_that_are_no_whole_model(
    source: Path, tmp_path: Path, field: str, value: Any, seen: str
) -> None:
    write_gguf(source, tmp_path / "model.gguf", fields={field: value})
    assert seen in refused_early(source, tmp_path / "model.gguf").seen


def test_several_gguf_files(source: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        write_gguf(source, tmp_path / name)
    error = refused_early(source, tmp_path)
    assert "2 GGUF files: a.gguf, b.gguf" in error.seen


def test_no_model_at_all(source: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert "no config.json among notes.txt" in refused_early(source, tmp_path).seen
    assert "begins with b'noth'" in refused_early(source, tmp_path / "notes.txt").seen
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter" in refused_early(source, tmp_path).seen


@pytest.mark.parametrize("name", ["nobody/nothing-like-this", "nobody/nothing/model.gguf"])
def test_an_id_that_is_not_there(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    error = refused_early(source, name)
    assert isinstance(error, ModelError) and "HF_HUB_OFFLINE" in error.seen
    assert error.must == published.MUST


class Evil:
    """What a pickle of somebody else's may hold."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("file", ["qmodel.pt", "pytorch_model.bin"])
def test_pickles(source: Path, tmp_path: Path, file: str) -> None:
    copied(source, tmp_path / "out")
    (tmp_path / "out" / file).write_bytes(pickle.dumps({"model": Evil(tmp_path / "mark")}))
    assert f"only pickle: {file}" in refused_early(source, tmp_path / "out").seen
    error = refused_late(source, tmp_path / "out", allow_pickle=True)
    assert "nothing but tensors" in error.must
    assert not (tmp_path / "mark").exists()


def test_text_in_hqq_files_is_not_run(source: Path, tmp_path: Path) -> None:
    write_hqq(source, tmp_path / "out")
    code = f"__import__('pathlib').Path({str(tmp_path / 'mark')!r}).touch()"
    state = load_file(tmp_path / "out" / "model.safetensors")
    evil = torch.tensor([ord(letter) for letter in code], dtype=torch.uint8)
    keys = ("compute_dtype", "unpack_view_dtype")
    assert sum(key.endswith(keys) for key in state) >= 14
    state = {key: evil.clone() if key.endswith(keys) else t for key, t in state.items()}
    save_file(state, tmp_path / "out" / "model.safetensors")
    make(open_checkpoint(str(source)), f"checkpoint:{tmp_path / 'out'}")
    assert not (tmp_path / "mark").exists()


# -- manners -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_silent_and_without_a_trace(
    source: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    FORMATS[kind](source, tmp_path / "out")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    capfd.readouterr()
    made = make(
        open_checkpoint(str(source)),
        f"checkpoint:{tmp_path / ('out.gguf' if kind == 'gguf' else 'out')}",
    )
    made.model(torch.zeros(1, 4, dtype=torch.long))
    assert capfd.readouterr() == ("", "")
    assert not list(Path.cwd().iterdir())


def test_the_digest_is_of_what_was_published(source: Path, tmp_path: Path) -> None:
    original = open_checkpoint(str(source))
    digests = set()
    for number, bits in enumerate((4, 8)):
        write_gptq(source, tmp_path / str(number), bits=bits)
        write_gguf(source, tmp_path / f"{number}.gguf", gives_heads=bool(number))
        for name in (str(number), f"{number}.gguf"):
            found = identify(CheckpointOptions(path=str(tmp_path / name)), original)
            assert found.path == tmp_path / name and len(found.sha256) == 64
            digests.add(found.sha256)
    assert len(digests) == 4
