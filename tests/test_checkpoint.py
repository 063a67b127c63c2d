"""Opening a checkpoint: what it is, what is refused and with which words, what is loaded."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from auditor.compress.checkpoint import (
    Placement,
    context_tokens,
    load_model,
    load_tokenizer,
    open_checkpoint,
    quantization_of,
    tokenizer_sha256,
)
from auditor.errors import ModelError
from tests.tiny import CONTEXT, byte_tokenizer, save, tiny_model

CPU = Placement("cpu", torch.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model("llama"), tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def refusal(name: object, **arguments: object) -> str:
    with pytest.raises(ModelError) as caught:
        open_checkpoint(str(name), **arguments)
    assert caught.value.must and caught.value.seen
    return str(caught.value)


def test_what_is_loaded_is_what_was_saved(saved: Path) -> None:
    model = load_model(open_checkpoint(str(saved)), CPU)
    stored = load_file(saved / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, stored[name]), name
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_dtype_is_the_placements(saved: Path) -> None:
    model = load_model(open_checkpoint(str(saved)), Placement("cpu", torch.bfloat16))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_progress_bars_are_as_before(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    load_model(open_checkpoint(str(saved)), CPU)
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before
    assert capfd.readouterr() == ("", "")


def test_digest_is_of_the_contents(saved: Path, folder: Path) -> None:
    assert open_checkpoint(str(saved)).sha256 == open_checkpoint(str(folder)).sha256
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with_other_weights = open_checkpoint(str(folder)).sha256
    edit_config(folder, rms_norm_eps=0.5)
    digests = {open_checkpoint(str(saved)).sha256, with_other_weights}
    assert len(digests | {open_checkpoint(str(folder)).sha256}) == 3


def test_subfolder_and_attention_reach_loading(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "inside")
    args = {"subfolder": "inside", "attn_implementation": "eager"}
    checkpoint = open_checkpoint(str(tmp_path), model_args=args)
    assert load_model(checkpoint, CPU).config._attn_implementation == "eager"


def test_shards(folder: Path) -> None:
    whole = load_model(open_checkpoint(str(folder)), CPU)
    (folder / "model.safetensors").unlink()
    whole.save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    again = load_model(open_checkpoint(str(folder)), CPU)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    shards[1].unlink()
    assert shards[1].name in refusal(folder)


# -- refusals ------------------------------------------------------------------------------------


def test_no_folder(tmp_path: Path) -> None:
    assert "not there" in refusal(tmp_path / "nowhere")


def test_a_file(saved: Path) -> None:
    assert "is a file" in refusal(saved / "config.json")


@pytest.mark.parametrize("name", ["nobody/nothing-like-this", "nothing-like-this"])
def test_an_id_offline(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: list[bool] = []
    real = huggingface_hub.snapshot_download

    def watched(*args: object, **kwargs: object) -> str:
        asked.append(bool(kwargs["local_files_only"]))
        return real(*args, **{**kwargs, "cache_dir": tmp_path})

    monkeypatch.setattr(huggingface_hub, "snapshot_download", watched)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refusal(name)
    assert "no folder here" in message and "HF_HUB_OFFLINE" in message
    assert asked == [True], "the hub was asked although it is switched off"


def test_an_id_is_looked_up_here_first(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[bool] = []

    def found(*_: object, local_files_only: bool, **__: object) -> str:
        asked.append(local_files_only)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", found)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert open_checkpoint("somebody/model").path == saved
    assert asked == [True]


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    message = refusal(folder)
    assert "no config.json" in message and "model.safetensors" in message


def test_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "readable JSON" in refusal(folder)


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [("t5", "T5ForConditionalGeneration"), ("vit", "ViTModel"), ("bert", "BertForMaskedLM")],
)
def test_no_causal_model(folder: Path, model_type: str, architecture: str) -> None:
    (folder / "config.json").write_text(
        json.dumps({"model_type": model_type, "architectures": [architecture]})
    )
    message = refusal(folder)
    assert "must be a causal language model" in message and architecture in message


def test_unknown_architecture(folder: Path) -> None:
    edit_config(folder, model_type="nothing_like_this")
    assert "nothing_like_this" in refusal(folder)


def test_no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    message = refusal(folder)
    assert "must hold a tokenizer" in message and "tokenizer.json" in message
    assert open_checkpoint(str(folder), model_args={"tokenizer": "elsewhere"}).path == folder


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "must hold weights" in refusal(folder)


@pytest.mark.parametrize("n_bytes", [0, 5, 100, -7])
def test_cut_off_weights(folder: Path, n_bytes: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:n_bytes])
    message = refusal(folder)
    assert "model.safetensors must be a whole safetensors file" in message
    assert "download it again" in message


def test_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "gpt2"}')
    message = refusal(folder)
    assert "adapter" in message and "--model BASE --adapter" in message


class Touch:
    """Unpickled by an unsafe reader, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def make_pickle(folder: Path, content: object) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")


def test_pickle_only_when_allowed(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    make_pickle(folder, tensors)
    message = refusal(folder)
    assert "pytorch_model.bin" in message and "--allow-pickle" in message
    model = load_model(open_checkpoint(str(folder), allow_pickle=True), CPU)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())


def test_pickle_runs_nothing(folder: Path, tmp_path: Path) -> None:
    make_pickle(folder, {"lm_head.weight": Touch(tmp_path / "touched")})
    checkpoint = open_checkpoint(str(folder), allow_pickle=True)
    with pytest.raises(ModelError, match="nothing but tensors"):
        load_model(checkpoint, CPU)
    assert not (tmp_path / "touched").exists()


def test_code_of_its_own(folder: Path, tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    edit_config(folder, model_type="own", auto_map=auto_map, architectures=["OwnModel"])
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'touched')!r})\n")
    message = refusal(folder)
    assert "auto_map" in message and "--trust-remote-code" in message
    assert not (tmp_path / "touched").exists()


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors are missing, such as lm_head\.weight"):
        load_model(open_checkpoint(str(folder)), CPU)


def test_weights_of_another_shape(folder: Path) -> None:
    edit_config(folder, intermediate_size=80)
    with pytest.raises(ModelError, match=r"fit its config\.json"):
        load_model(open_checkpoint(str(folder)), CPU)


# -- the tokenizer and the context ---------------------------------------------------------------


def test_tokenizer_digest(saved: Path) -> None:
    checkpoint = open_checkpoint(str(saved))
    tokenizer = load_tokenizer(checkpoint)
    digest = tokenizer_sha256(tokenizer)
    # What a call of the tokenizer leaves behind says nothing about how text becomes tokens.
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["a", "bc"], padding=True, truncation=True, max_length=2)
    assert tokenizer.backend_tokenizer.padding is not None
    assert tokenizer_sha256(tokenizer) == digest
    other = byte_tokenizer()
    other.add_tokens(["xyz"])
    assert tokenizer_sha256(other) != digest


def test_slow_tokenizer_digest() -> None:
    class Slow:
        def __init__(self, vocabulary: dict[str, int]) -> None:
            self.get_vocab = lambda: vocabulary

    one = tokenizer_sha256(Slow({"a": 0, "b": 1}))
    assert one == tokenizer_sha256(Slow({"b": 1, "a": 0}))
    assert one != tokenizer_sha256(Slow({"a": 1, "b": 0}))


def test_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer of .* must load"):
        load_tokenizer(open_checkpoint(str(folder)))


@pytest.mark.parametrize(
    ("family", "limit", "expected"),
    [
        ("llama", int(1e30), CONTEXT),
        ("gpt2", int(1e30), CONTEXT),
        ("gpt_neox", int(1e30), CONTEXT),
        ("llama", 40, 40),
        ("llama", 400, CONTEXT),
    ],
)
def test_context(family: str, limit: int, expected: int) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = limit
    assert context_tokens(tiny_model(family).config, tokenizer) == expected


def test_context_of_a_model_without_a_limit() -> None:
    from transformers import MambaConfig

    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = int(1e30)
    assert context_tokens(MambaConfig(), tokenizer) == 2048
    tokenizer.model_max_length = 512
    assert context_tokens(MambaConfig(), tokenizer) == 512


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (None, None),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"load_in_8bit": True}, "bitsandbytes"),
    ],
)
def test_quantization_of(folder: Path, given: dict[str, object] | None, name: str | None) -> None:
    edit_config(folder, quantization_config=given)
    assert quantization_of(open_checkpoint(str(folder)).config) == name
