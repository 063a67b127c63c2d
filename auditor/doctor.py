"""What works here: devices, libraries, and every compressor tried on a model of a few weights."""

import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from auditor.compress import COMPRESSORS, Compressor, VariantSpec
from auditor.environment import installed, processor, versions
from auditor.errors import CompleakError
from auditor.report.catalogue import new_table

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
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
            works, note = _try(name, compressor, model)
            said = "[green]works[/green]" if works else "[red]does not work[/red]"
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
    fields = compressor.options.model_fields
    needed = {"sparsity": 0.5}
    given = {key: needed[key] for key, field in fields.items() if field.is_required()}
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        made = compress(
            open_checkpoint(str(model)),
            VariantSpec(name, compressor.options(**given)),
            Placement(device, torch.float32),
        )
        made.model(input_ids=torch.tensor([[0, 1]], device=device))
    except (CompleakError, RuntimeError, AssertionError) as error:
        return False, str(error).splitlines()[0]
    return True, "; ".join(made.receipt.repairs)
