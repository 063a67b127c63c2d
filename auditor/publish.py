"""`compleak-llm compress`: one variant as a folder that loads anywhere, its receipt beside it.

The folder is written under another name, loaded again by transformers alone, compared with what was
made, searched for calibration texts and records, and only then given its name: what is there is
whole and is what its receipt says.
"""

import gc
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auditor.calibration import Calibration, read_calibrations
from auditor.compress import COMPRESSORS
from auditor.compress.inside import is_own_file
from auditor.compress.receipt import Receipt
from auditor.config import CompressConfig
from auditor.errors import ConfigError, ModelError, StoreError, VariantError
from auditor.files import cannot_write, write_text
from auditor.report.progress import Tell
from auditor.rows import RowReader
from auditor.sources import open_source

if TYPE_CHECKING:
    import torch

    from auditor.compress.checkpoint import Checkpoint, Placement
    from auditor.lessons import Lessons

RECEIPT = "compleak-receipt.json"
# What belongs to a model beside its weights and is copied as it is.
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "generation_config.json",
)
# Tokens that the written folder is compared on, and the relative difference of logits that loading
# in the same precision can make: kernels that split their sums otherwise.
PROBE_TOKENS = 24
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}


def publish(config: CompressConfig, *, tell: Tell = lambda _: None) -> Receipt:
    """Make a variant and write it.

    Args:
        config: What to make, and where to write it.
        tell: Told what is going on, a line at a time.

    Returns:
        The receipt, which also stands in the folder.

    Raises:
        CompleakError: It cannot be made, or not written so that it loads to the same logits.
    """
    from auditor.compress.cache import Cache
    from auditor.compress.checkpoint import (
        context_tokens,
        load_tokenizer,
    )
    from auditor.compress.dispatch import must_hold, quantizations
    from auditor.compress.make import check_possible
    from auditor.compress.measure import stored_dtype
    from auditor.compress.merged import open_audited
    from auditor.compress.quiet import quiet_transformers, quietly
    from auditor.environment import place

    out = _free(Path(config.out).expanduser())
    _must_have_members(config)
    checkpoint = open_audited(config)
    check_possible(checkpoint, config.spec)
    tokenizer = load_tokenizer(checkpoint, config.model_args.get("tokenizer"))
    calibrations = read_calibrations(
        config,
        [config.spec],
        tokenizer,
        context=context_tokens(checkpoint.config, tokenizer),
        known=lambda: _records(config, tokenizer),
    )
    calibration = next(iter(calibrations.values()), None)
    placement = place(config, getattr(checkpoint.config, "dtype", None))
    in_place = COMPRESSORS[config.spec.id].in_place
    must_hold(
        checkpoint,
        placement,
        changed=[config.spec.label] if in_place else (),
        quantized=quantizations([config.spec], placement),
    )
    tell(f"making {config.spec.label} of {checkpoint.name}")
    made = Cache.of_user(tell).made(
        checkpoint,
        config.spec,
        placement,
        calibration=calibration,
        lessons=_lessons(config, checkpoint, tokenizer, tell),
    )
    if made.cannot_save is not None:
        raise VariantError(
            f"{config.spec.label} must be something that a folder can hold",
            seen=made.cannot_save,
            fix="audit it all the same: compleak-llm audit makes variants in memory",
        )
    before = _logits(made.model, checkpoint, placement.device)
    receipt, model = made.receipt, made.model if made.dense is None else made.dense()
    del made
    with _renamed(out) as part:
        _cast_where_exact(model, stored_dtype(checkpoint.config, placement.dtype))
        with quiet_transformers(), quietly():
            model.save_pretrained(part)
        del model
        gc.collect()  # what was written is loaded into the memory that this one had
        tell("loading it again")
        _must_be_same(part, before, checkpoint, placement, variant=config.spec.label)
        written = sum(file.stat().st_size for file in part.glob("*.safetensors"))
        receipt = _to_be_shown(receipt, config).model_copy(update={"bytes_disk": written})
        write_text(part / RECEIPT, receipt.model_dump_json(indent=2) + "\n", private=False)
        _tokenizer_files(checkpoint, tokenizer, part)
        tell("searching what was written for calibration texts and records")
        _search(config, part, calibration, tokenizer)
    tell(f"wrote {out}")
    return receipt


def _to_be_shown(receipt: Receipt, config: CompressConfig) -> Receipt:
    """The receipt as everybody may read it, who downloads the folder.

    Ids of calibration texts would let whoever holds a text find out that it was among them, and
    the path of the texts is this machine's own affair.
    """
    use = receipt.calibration
    if use is not None:
        use = use.model_copy(update={"ids": [], "source": Path(use.source).name})
    allowed = (
        (config.trust_remote_code, "code that came with the checkpoint was allowed to run"),
        (config.allow_pickle, "weights were allowed to be read from pickle files"),
    )
    notes = [*receipt.notes, *(sentence for is_allowed, sentence in allowed if is_allowed)]
    return receipt.model_copy(update={"calibration": use, "notes": notes})


def _free(out: Path) -> Path:
    if out.is_dir() and not any(out.iterdir()):
        return out
    if out.exists():
        raise StoreError(
            "--out must be a folder that is not there yet",
            seen=f"{out} is {'not empty' if out.is_dir() else 'a file'}",
            fix="choose another name, or remove it",
        )
    return out


@contextmanager
def _renamed(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name once the block has ended well."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        yield part
        for file in part.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if out.is_dir():
            out.rmdir()  # empty: `_free` has looked
        part.rename(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _must_be_same(
    part: Path,
    before: "torch.Tensor",
    checkpoint: "Checkpoint",
    placement: "Placement",
    *,
    variant: str,
) -> None:
    """Load what was written and compare its logits with those of what was made.

    Raises:
        VariantError: They differ by more than arithmetic explains.
    """
    remote_code = checkpoint.load_args.get("trust_remote_code", False)
    again = load_written(part, placement, remote_code=remote_code)
    after = _logits(again, checkpoint, placement.device)
    difference = float((after - before).norm() / before.norm())
    name = str(placement.dtype).removeprefix("torch.")
    if not difference <= TOLERANCE[name]:
        raise VariantError(
            f"{variant} must load again to the same logits",
            seen=f"a relative difference of {difference:.1e} after saving and loading in {name}",
            fix="audit it all the same; what cannot be loaded again is not written",
        )


def _logits(model: Any, checkpoint: "Checkpoint", device: str) -> "torch.Tensor":  # noqa: ANN401
    import torch

    size = checkpoint.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, size, (1, PROBE_TOKENS), generator=generator).to(device)
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float().cpu()
    return logits


def _cast_where_exact(model: Any, dtype: "torch.dtype") -> None:  # noqa: ANN401
    """Cast what is not packed to the checkpoint's own precision, where nothing is lost by it."""
    import torch

    from auditor.compress.matrices import plain_parameters

    for parameter in plain_parameters(model):
        data = parameter.data
        narrow = data.to(dtype)
        if data.itemsize > dtype.itemsize and torch.equal(narrow.to(data.dtype), data):
            parameter.data = narrow


def load_written(folder: Path, placement: "Placement", *, remote_code: bool = False) -> Any:  # noqa: ANN401
    """Load a folder as anybody would, with transformers alone.

    Where bitsandbytes computes wrongly on this machine its layers are mended, as when they were
    made: the folder is right, and is loaded rightly elsewhere.
    """
    from transformers import AutoModelForCausalLM

    from auditor.compress.checkpoint import quantization_of
    from auditor.compress.dispatch import load_placed
    from auditor.compress.matrices import cast_plain
    from auditor.compress.quiet import quiet_transformers, quietly

    loader: Any = AutoModelForCausalLM

    def load(where: dict[str, Any]) -> tuple[Any, None]:
        model = loader.from_pretrained(
            folder,
            dtype=placement.dtype,
            local_files_only=True,
            trust_remote_code=remote_code,
            use_safetensors=True,
            **where,
        )
        return model.eval(), None

    with quiet_transformers(), quietly():
        model, _ = load_placed(load, placement, str(folder))
    cast_plain(model, placement.dtype)
    packed = quantization_of(model.config)
    if packed == "bitsandbytes":
        from auditor.compress.bnb_cpu import make_right

        make_right(model)
    elif packed == "gptq":
        from auditor.compress.gptq import without_compiler

        without_compiler(model)
    return model


def _tokenizer_files(checkpoint: "Checkpoint", tokenizer: Any, part: Path) -> None:  # noqa: ANN401
    found = [name for name in COPIED if (checkpoint.path / name).is_file()]
    for name in found:
        # A link in a checkpoint of others could publish any file of this machine.
        if not is_own_file(checkpoint.path / name, checkpoint.path):
            raise ModelError(
                f"{checkpoint.name}/{name} must be a file of the checkpoint itself to be copied",
                seen=f"a link to {(checkpoint.path / name).resolve()}",
                fix="put the file itself in the place of the link",
            )
        shutil.copyfile(checkpoint.path / name, part / name)
    if not any(name.startswith(("tokenizer", "vocab", "spiece")) for name in found):
        tokenizer.save_pretrained(part)


def _records(config: CompressConfig, tokenizer: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401
    """Id and text of every member and nonmember that was given."""
    for identity, _, text in _sided_records(config, tokenizer):
        yield identity, text


def _sided_records(
    config: CompressConfig,
    tokenizer: Any,  # noqa: ANN401
) -> Iterator[tuple[str, bool, str]]:
    from auditor.records import record_id

    reader = RowReader(config, tokenizer)
    for source, is_member in ((config.members, True), (config.nonmembers, False)):
        if source is not None:
            for placed in open_source(source).stream():
                text = reader.text(placed)
                yield record_id(text), is_member, text.words


def _must_have_members(config: CompressConfig) -> None:
    """Refuse, before anything is run, what is to be trained and has nothing to be trained on.

    Raises:
        ConfigError: There are no members.
    """
    if config.spec.recovery is not None and config.members is None:
        raise ConfigError(
            f"{config.spec.label} is trained on members",
            seen="no --members",
            fix="give --members FILE, or leave recover out",
        )


def _lessons(
    config: CompressConfig,
    checkpoint: "Checkpoint",
    tokenizer: Any,  # noqa: ANN401
    tell: Tell,
) -> "Lessons | None":
    """The members that the variant is trained on, each once; None where it is not trained."""
    from auditor.compress.checkpoint import context_tokens
    from auditor.lessons import lessons
    from auditor.records import record_id
    from auditor.scoring.encode import Encoder

    if config.spec.recovery is None or config.members is None:
        return None
    reader = RowReader(config, tokenizer)
    texts = {
        record_id(text): text for text in map(reader.text, open_source(config.members).stream())
    }
    encoder = Encoder(tokenizer, context_tokens(checkpoint.config, tokenizer))
    return lessons(texts.values(), encoder, seed=config.seed, tell=tell)


def _search(
    config: CompressConfig,
    part: Path,
    calibration: Calibration | None,
    tokenizer: Any,  # noqa: ANN401
) -> None:
    """Refuse to give a folder its name that holds what it must not.

    Raises:
        VariantError: Calibration texts or records stand in it.
    """
    from auditor.artifacts.scan import scan_checkpoints

    found = scan_checkpoints(
        {config.out: part},
        _sided_records(config, tokenizer),
        calibration=calibration.texts if calibration is not None else (),
        own_files=set(),
    )
    for artifact in found:
        if artifact.kind in ("record", "calibration"):
            raise VariantError(
                "nothing that is written may hold calibration texts or records",
                seen=f"{artifact.file}: {artifact.message}",
                fix="take it out of the model's own files first: they are copied as they are",
            )
