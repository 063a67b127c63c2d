"""Checkpoints that would run code, read or write elsewhere, if they were obeyed."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch

from tests.tiny import save, tiny_model

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Path({marker!r}).mkdir(exist_ok=True)


class OddConfig(LlamaConfig):
    model_type = "odd"


class OddModel(LlamaForCausalLM):
    config_class = OddConfig


class OddTokenizer(PreTrainedTokenizerFast):
    pass
"""


class Bomb:
    """What makes a folder when it is unpickled.

    Args:
        marker: The folder.
    """

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return Path.mkdir, (self._marker,)


def write_pickle(path: Path, marker: Path, *, with_torch: bool) -> None:
    """A pickle that does harm: as torch writes it, or bare."""
    content = {"model.embed_tokens.weight": Bomb(marker)}
    if with_torch:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))


def pickled_model(folder: Path, marker: Path, *, with_torch: bool = True) -> Path:
    """A checkpoint whose only weights are such a pickle."""
    save(tiny_model("llama"), folder)
    (folder / "model.safetensors").unlink()
    write_pickle(folder / "pytorch_model.bin", marker, with_torch=with_torch)
    return folder


def with_code(folder: Path, marker: Path, *, seed: int = 0, changed: float = 0.0) -> Path:
    """A checkpoint that needs code of its own, which makes a folder when it is imported."""
    model = tiny_model("llama", seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + changed * torch.rand_like(parameter))
    save(model, folder)
    (folder / "odd.py").write_text(CODE.format(marker=str(marker)), encoding="utf-8")
    classes = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddModel"}
    settings = {"model_type": "odd", "architectures": ["OddModel"], "auto_map": classes}
    return edit(folder / "config.json", **settings)


def edit(file: Path, **values: Any) -> Path:
    """Set keys of a JSON file; gives its folder."""
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, **values}), encoding="utf-8")
    return file.parent
