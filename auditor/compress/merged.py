"""The audited model where it is a base and an adapter: both merged, as publishers do.

    (W + s B A) in float32, rounded to the precision that the base is stored in

The merged weights are written once, into the cache of made versions (`auditor.compress.entries`),
and are loaded from there like any checkpoint's: libraries that quantize while they load find files.
Only where weights are wanted are they merged: a dry run and a run whose scores are all there read
none. Without a cache a temporary folder serves, for as long as the process lives.
"""

import atexit
import hashlib
import os
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from auditor.compress.adapter import Adapter, open_adapter, put_over
from auditor.compress.checkpoint import Checkpoint, Placement, load_model, open_checkpoint
from auditor.compress.entries import Entry, File, cache_folder, file_of, named
from auditor.compress.quiet import quiet_transformers
from auditor.errors import ModelError, StoreError, first_line

if TYPE_CHECKING:
    from auditor.config import Shared

LABEL = "merged"
# Raised by whoever changes what merging gives.
MERGE_VERSION = 1
# Merged weights that were found whole in this process, and temporary ones, by fingerprint.
_FOUND: dict[str, Path] = {}


def open_audited(config: "Shared") -> Checkpoint:
    """The model that is audited or compressed: `--model`, with `--adapter` merged in where given.

    Raises:
        ModelError: One of them cannot be used, or they do not fit.
    """
    checkpoint = open_checkpoint(
        config.model,
        model_args=config.model_args,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
    )
    return checkpoint if config.adapter is None else with_adapter(checkpoint, config.adapter)


def with_adapter(base: Checkpoint, name: str) -> Checkpoint:
    """The checkpoint of a base with an adapter merged in; its weights are not merged yet.

    Args:
        base: The base.
        name: Folder or model id of the adapter.

    Raises:
        ModelError: They do not fit, or one of them cannot be used.
    """
    adapter = open_adapter(name, base)
    text = "\0".join((LABEL, str(MERGE_VERSION), base.sha256, adapter.sha256))
    return replace(
        base,
        name=f"{base.name} + {name}",
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        load_args={**base.load_args, "use_safetensors": True},
        adapter=adapter,
    )


def merged_weights(checkpoint: Checkpoint, adapter: Adapter) -> Path:
    """The folder with the merged weights; one process makes it, and the others wait.

    Raises:
        ModelError: The base cannot be loaded, or peft cannot merge the adapter into it.
        StoreError: There is no room for the merged weights.
    """
    fingerprint = {
        "model": checkpoint.sha256,
        "libraries": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
    key = checkpoint.sha256
    found = _FOUND.get(key)
    if found is None or not (found / "config.json").is_file():
        found = _FOUND[key] = _in_cache(checkpoint, adapter, fingerprint) or _in_passing(
            checkpoint, adapter
        )
    return found


def _in_cache(checkpoint: Checkpoint, adapter: Adapter, fingerprint: dict[str, Any]) -> Path | None:
    """Their folder in the cache; None where there is none, or it cannot be written."""
    root = cache_folder()
    # Code that comes with a checkpoint decides what is made, and no fingerprint knows it.
    if root is None or checkpoint.load_args.get("trust_remote_code"):
        return None
    entry = named(root, LABEL, fingerprint)
    if not entry.is_whole(fingerprint, checked=True):
        try:
            with entry.locked(lambda: None):
                if not entry.is_whole(fingerprint, checked=True):
                    _write(entry, checkpoint, adapter, fingerprint)
        except (OSError, SafetensorError):  # a cache never stops a run
            return None
    entry.touch()
    return entry.folder


def _write(
    entry: Entry, checkpoint: Checkpoint, adapter: Adapter, fingerprint: dict[str, Any]
) -> None:
    from auditor.compress.measure import Ledger, write_receipt

    model = _merged(adapter)
    receipt = write_receipt(
        adapter.base,
        model,
        Ledger(),
        variant=LABEL,
        library=f"peft {version('peft')}",
        bits_per_weight=8.0 * model.dtype.itemsize,
        left="merged, and not compressed",
    )

    def fill(folder: Path) -> dict[str, File]:
        _save(model, folder)
        return {file.name: file_of(file) for file in sorted(folder.iterdir())}

    entry.write_files(
        fill,
        fingerprint=fingerprint,
        variant=LABEL,
        model=checkpoint.name,
        receipt=receipt,
        settings={},
    )


def _in_passing(checkpoint: Checkpoint, adapter: Adapter) -> Path:
    """A temporary folder of this process, removed when it ends."""
    model = _merged(adapter)
    try:
        folder = _temporary() / checkpoint.sha256
        folder.mkdir()
        _save(model, folder)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"there must be room for the merged weights of {checkpoint.name}",
            seen=f"{tempfile.gettempdir()}: {first_line(error)}",
            fix="name a folder for them by COMPLEAK_CACHE, or by TMPDIR",
        ) from error
    return folder


@cache
def _temporary() -> Path:
    folder, owner = tempfile.mkdtemp(prefix="compleak-merged-"), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a process that was forked off ends without it
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return Path(folder)


def _merged(adapter: Adapter) -> Any:  # noqa: ANN401
    """The merged model on the CPU, in the base's own precision."""
    import torch

    from auditor.compress.kept import KEPT
    from auditor.compress.measure import stored_dtype

    base = adapter.base
    token = KEPT.set(None)
    try:
        model = load_model(base, Placement("cpu", torch.float32))
    finally:
        KEPT.reset(token)
    try:
        with torch.no_grad():
            merged = put_over(model, adapter).merge_and_unload(safe_merge=True)
    except ValueError as error:  # of numbers that are none
        raise ModelError(
            f"{adapter.name} must be something that can be merged into {base.name}",
            seen=first_line(error),
            fix="train or save the adapter again",
        ) from error
    return merged.to(stored_dtype(base.config, torch.float32)).eval()


def _save(model: Any, folder: Path) -> None:  # noqa: ANN401
    """Write the model, in whichever process holds the lock.

    Raises:
        OSError: Nothing was written.
    """
    # Of several processes the library would have the first alone write, and the others be silent.
    model.should_save_on_this_rank = lambda *_, **__: True
    with quiet_transformers():
        model.save_pretrained(folder)
    if not any(folder.glob("*.safetensors")):
        raise OSError(f"no weights were written to {folder}")
