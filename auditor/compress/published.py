"""Published versions of the original: recognised, checked, loaded, and measured against it.

What is audited here was compressed elsewhere: GPTQ, AWQ, compressed-tensors, bitsandbytes, torchao
and HQQ checkpoints, GGUF files, and plain folders whose weights were pruned, clustered or cast. The
receipt says what was found in the weights, not what the checkpoint says of itself.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from auditor.compress.checkpoint import (
    HUB_FILES,
    Checkpoint,
    CompressedModel,
    Placement,
    has_tokenizer,
    load_tokenizer,
    open_folder,
)
from auditor.compress.formats import HQQ_PICKLE, Format, recognise
from auditor.compress.hub import find_file, find_folder
from auditor.compress.make import library_missing
from auditor.compress.measure import write_receipt
from auditor.compress.options import CheckpointOptions
from auditor.compress.published_checks import (
    check_layers,
    check_shapes,
    check_stored,
    check_vocabulary,
    compare,
    other_settings,
)
from auditor.compress.published_gguf import GgufFile, gguf_checkpoint, open_gguf
from auditor.compress.published_load import load
from auditor.compress.published_plain import plain_method
from auditor.compress.quiet import quietly
from auditor.compress.weights import weight_files
from auditor.environment import installed
from auditor.errors import ModelError
from auditor.files import sha256_of

MUST = "a published version must be a folder in the Hugging Face format, a .gguf file or a model id"


@dataclass(frozen=True)
class Published:
    """A published version, recognised and found to fit the original as far as its headers tell.

    Attributes:
        checkpoint: Where it lies.
        form: How its weights are stored.
        gguf: Its file where it is one.
        notes: What its receipt must say.
    """

    checkpoint: Checkpoint
    form: Format
    gguf: GgufFile | None
    notes: list[str]

    @property
    def path(self) -> Path:
        """What was published: the file where it is a single one, else the folder."""
        return self.gguf.path if self.gguf is not None else self.checkpoint.path

    @property
    def sha256(self) -> str:
        """Over its weights, and its `config.json` where it has one, hex."""
        return self.checkpoint.sha256

    @property
    def requires(self) -> tuple[str, ...]:
        """Distributions that read it, beyond the core."""
        return self.form.requires

    @property
    def files(self) -> list[Path]:
        """Its weight files."""
        if self.form.weights:
            return list(self.form.weights)
        where = self.checkpoint
        return weight_files(where.name, where.path, allow_pickle=where.allow_pickle)


def identify(
    options: CheckpointOptions,
    original: Checkpoint,
    *,
    tokenizer: Any = None,  # noqa: ANN401 - transformers' own
) -> Published:
    """Find a published version and check, without loading its weights, that it may be one.

    Args:
        options: Where it is.
        original: The original.
        tokenizer: The original's; None for the one that lies beside its weights.

    Raises:
        VariantError: Its format is not known here, or its library is missing.
        ModelError: It cannot be used, or is a version of another model.
    """
    name = options.path
    path = _locate(options, original)
    form = recognise(name, path)
    if missing := tuple(library for library in form.requires if installed(library) is None):
        raise library_missing(
            f"checkpoint:{name} ({form.method})", missing, f"{', '.join(missing)} is not installed"
        )
    tokens = _tokens(original, tokenizer)
    gguf = None
    if form.kind == "gguf":
        gguf = open_gguf(name, form.weights[0])
        form = replace(form, method=gguf.method)
        checkpoint = gguf_checkpoint(name, gguf, original, sha256_of(gguf.path))
        found = gguf.tokens
    else:
        args = {k: v for k, v in original.load_args.items() if k != "use_safetensors"}
        checkpoint = open_folder(
            name,
            path,
            load_args=args,
            allow_pickle=original.allow_pickle,
            needs_tokenizer=False,
            weights=_allowed(name, form.weights, allow_pickle=original.allow_pickle),
        )
        found = _tokens(checkpoint, None)
    if tokens and found:
        check_vocabulary(name, original=tokens, found=found)
    check_layers(form, original)
    check_shapes(checkpoint, original, n_tokens=max((tokens or {}).values(), default=0) + 1)
    notes = [] if gguf else other_settings(checkpoint, original)
    if not found:
        notes.append("it holds no tokenizer, so that its vocabulary was compared by size alone")
    published = Published(checkpoint, form, gguf, notes)
    if form.kind == "plain":
        check_stored(checkpoint, published.files)
    return published


def make(
    checkpoint: Checkpoint, options: CheckpointOptions, placement: Placement, *, variant: str
) -> CompressedModel:
    """Load a published version of `checkpoint` and count what it changed.

    Raises:
        VariantError: Its format is not known here, or its library is missing or cannot load it.
        ModelError: It cannot be used, or is a version of another model.
    """
    published = identify(options, checkpoint)
    loaded = load(published.checkpoint, published.form, placement, published.gguf)
    ledger, matrices, notes = compare(checkpoint, loaded, published.form, dtype=placement.dtype)
    method, bits = published.form.method, loaded.bits_per_weight
    if bits is None:
        method, bits = plain_method(
            published.checkpoint, ledger, matrices=matrices, dtype=placement.dtype
        )
    receipt = write_receipt(
        checkpoint,
        loaded.model,
        ledger,
        variant=variant,
        library=loaded.library,
        method=method,
        bits_per_weight=bits,
        correlation=ledger.correlation if ledger.compressed else None,
        disk=sum(file.stat().st_size for file in published.files),
        batch_dependent=loaded.batch_dependent,
        repairs=loaded.repairs,
        notes=[*published.notes, *loaded.notes, *notes],
    )
    return CompressedModel(loaded.model, receipt, cannot_save=loaded.cannot_save)


def _locate(options: CheckpointOptions, original: Checkpoint) -> Path:
    """The folder or the file."""
    path = Path(options.path).expanduser()
    if path.is_file():
        return path
    if found := find_file(options.path, revision=options.revision, must=MUST):
        return found
    patterns = [*HUB_FILES]
    patterns += ["pytorch_model*.bin", HQQ_PICKLE] if original.allow_pickle else []
    patterns += ["*.py"] if original.load_args.get("trust_remote_code") else []
    return find_folder(options.path, revision=options.revision, patterns=patterns, must=MUST)


def _allowed(name: str, weights: tuple[Path, ...], *, allow_pickle: bool) -> tuple[Path, ...]:
    """Weight files of a format's own, which are pickles here."""
    if weights and not allow_pickle:
        raise ModelError(
            f"{name} must hold its weights as safetensors",
            seen=f"only pickle: {', '.join(file.name for file in weights)}",
            fix="convert it, or give --allow-pickle if you trust where it comes from",
        )
    return weights


def _tokens(checkpoint: Checkpoint, tokenizer: Any) -> dict[str, int] | None:  # noqa: ANN401
    """Ids of a checkpoint's tokens, or None where it has no tokenizer."""
    if tokenizer is None:
        if not has_tokenizer(checkpoint.path):
            return None
        with quietly():
            tokenizer = load_tokenizer(checkpoint)
    found: dict[str, int] = tokenizer.get_vocab()
    return found
