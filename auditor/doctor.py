"""What works here: devices, libraries, and every compressor tried on a model of a few weights."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from auditor.calibration import Calibration
from auditor.compress import COMPRESSORS, Compressor, parse_variant
from auditor.compress.receipt import CalibrationUse
from auditor.environment import installed, processor, versions
from auditor.errors import CompleakError, first_line
from auditor.lessons import Lessons
from auditor.report.catalogue import new_table
from auditor.scoring.encode import Encoded

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}

# What a version is trained on that is trained.
LESSONS = Lessons((Encoded([0, 1, 2, 3], 1, truncated=False, text_bytes=4, zlib_bytes=4),), 0, "")

# Options for those that need some, or whose defaults are too coarse for a model so small.
TRIED_WITH = {
    "gptq": ":group_size=32",
    "prune-magnitude": ":sparsity=0.5",
    "prune-wanda": ":sparsity=0.5",
    "prune-sparsegpt": ":sparsity=0.5",
    "retrain": ":recover=1",
}


def diagnose() -> Table:
    """A table of devices, libraries and compressors, and how to install what is missing."""
    import torch

    table = new_table("what", "here", "")
    table.add_row("processor", processor(), f"{torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(number).total_memory / 2**30
            table.add_row(f"cuda:{number}", torch.cuda.get_device_name(number), f"{memory:.0f} GiB")
    else:
        table.add_row("cuda", "none", f"torch {torch.__version__} sees no GPU")
    for name, release in versions().items():
        table.add_row(name, release, "")
    with tempfile.TemporaryDirectory() as folder:
        model = _tiny_model(Path(folder))
        for name, compressor in COMPRESSORS.items():
            if compressor.options.positional:  # it is made elsewhere
                continue
            works, note = _try(name, compressor, model)
            said = Text("works", "green") if works else Text("does not work", "red")
            table.add_row(name, said, note)
    return table


def _tiny_model(folder: Path) -> Path:
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    wrapped: Any = PreTrainedTokenizerFast
    wrapped(tokenizer_object=tokenizer, unk_token="a").save_pretrained(folder)
    return folder


def _try(name: str, compressor: Compressor, model: Path) -> tuple[bool, str]:
    import torch

    from auditor.compress.checkpoint import Placement, open_checkpoint
    from auditor.compress.make import compress

    missing = [need for need in compressor.requires if installed(need) is None]
    if missing:
        return False, f"pip install -c constraints.txt {' '.join(missing)}"
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        made = compress(
            open_checkpoint(str(model)),
            parse_variant(name + TRIED_WITH.get(name, "")),
            Placement(device, torch.float32),
            calibration=_calibration() if compressor.is_calibrated else None,
            lessons=LESSONS,
        )
        made.model(input_ids=torch.tensor([[0, 1]], device=device))
    except (CompleakError, RuntimeError, AssertionError) as error:
        return False, first_line(error)
    return True, "; ".join(made.receipt.repairs)


def _calibration() -> Calibration:
    """Windows of random tokens."""
    windows = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (4, 16))
    use = CalibrationUse(
        source="random tokens", n_records=0, n_samples=4, n_tokens=64, sha256="", ids=[]
    )
    return Calibration(windows, use, ())
