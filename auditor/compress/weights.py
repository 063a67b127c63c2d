"""The weight files of a checkpoint: which they are, whether they are whole, and their digest."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from auditor.errors import ModelError, first_line

# Shards are called model-00001-of-00002.safetensors and the like.
SHARD = re.compile(r"[\w-][\w.=+-]{0,199}")


def weight_files(name: str, path: Path, *, allow_pickle: bool) -> list[Path]:
    """The files that transformers would read, sorted, checked as far as their headers tell.

    Raises:
        ModelError: There are none, one is missing or cut off, or they are pickles.
    """
    files = _listed(name, path, "model.safetensors")
    for file in files:
        check_safetensors(name, file)
    if files:
        return files
    pickles = _listed(name, path, "pytorch_model.bin")
    if pickles and not allow_pickle:
        raise ModelError(
            f"{name} must hold its weights as safetensors",
            seen=f"only pickle: {', '.join(file.name for file in pickles)}",
            fix="convert it, or give --allow-pickle if you trust where it comes from",
        )
    if not pickles:
        raise ModelError(
            f"{name} must hold weights",
            seen=f"no model.safetensors, whole or in shards, among {some_files(path)}",
            fix="give the folder that save_pretrained wrote",
        )
    return pickles


def _listed(name: str, path: Path, whole: str) -> list[Path]:
    """The one file, or else the shards that its index lists: the order in which they are loaded."""
    if (path / whole).is_file():
        return [path / whole]
    index = path / f"{whole}.index.json"
    if not index.is_file():
        return []
    listed = read_json(name, index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ModelError(f"{name}/{index.name} must list the shards", seen="no weight_map in it")
    if odd := [file for file in listed.values() if not _is_name(file)]:
        raise ModelError(
            f"{name}/{index.name} must name files beside it", seen=f"{odd[0]!r} for a shard"
        )
    files = [path / file for file in sorted(set(listed.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(
            f"{name} must hold all of its weights",
            seen=f"{index.name} names {', '.join(missing)}, which is not there",
            fix="copy or download it again",
        )
    return files


def _is_name(file: object) -> bool:
    """Whether this is the name of a file in the same folder, and no way out of it."""
    return isinstance(file, str) and SHARD.fullmatch(file) is not None


def check_safetensors(name: str, file: Path) -> None:
    """Refuse a file that is no whole safetensors file.

    Raises:
        ModelError: It was cut off, or is something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{name}/{file.name} must be a whole safetensors file",
            seen=f"{first_line(error)}; {file.stat().st_size:,} bytes",
            fix="copy or download it again (for a Git LFS pointer: git lfs pull)",
        ) from error


def read_json(name: str, file: Path) -> dict[str, Any]:
    """The JSON object in a file of the checkpoint `name`.

    Raises:
        ModelError: It cannot be read, or is something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{name}/{file.name} must be readable JSON", seen=str(error)) from error
    if not isinstance(found, dict):
        raise ModelError(f"{name}/{file.name} must be a JSON object", seen=type(found).__name__)
    return found


def some_files(path: Path) -> str:
    """The first names in a folder, for an error message."""
    names = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "no files"


def model_sha256(path: Path, weights: list[Path]) -> str:
    """SHA-256 over `config.json` and the weight files: names and contents, in order, hex."""
    total = hashlib.sha256()
    for file in [path / "config.json", *weights]:
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").digest()
        total.update(file.name.encode() + b"\0" + content)
    return total.hexdigest()
