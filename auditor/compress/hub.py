"""Where a model lies: a local folder or file, or the hub's cache, or the hub itself."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from auditor.compress.inside import must_be_inside, must_be_revision
from auditor.errors import ModelError, first_line

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# A file within a model id, as GGUF files are published: several of them under one id.
HUB_FILE = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)/([\w./-]+\.gguf)", re.IGNORECASE)
MUST = "--model must be a folder in the Hugging Face format, or a model id"


def find_folder(
    name: str, *, revision: str | None, patterns: Sequence[str], must: str = MUST
) -> Path:
    """The local folder of a path or a model id; only an id may go to the hub, and not offline.

    Args:
        name: Path or id.
        revision: Of an id.
        patterns: Files to fetch of an id.
        must: What the error says must hold.

    Raises:
        ModelError: It is neither.
    """
    must_be_revision(revision)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not HUB_ID.fullmatch(name):
        raise ModelError(
            must,
            seen=f"{name} is {'a file' if path.exists() else 'not there'}",
            fix="give the folder that save_pretrained wrote",
        )
    from huggingface_hub import snapshot_download

    def fetch(*, local: bool) -> Path:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(patterns), local_files_only=local
            )
        )

    return _fetched(name, fetch, holds_weights, must=must)


def find_file(name: str, *, revision: str | None, must: str) -> Path | None:
    """The local path of `owner/model/file.gguf`, a file of a model id; None if it is not one.

    Raises:
        ModelError: It is such a name, and there is no such file.
    """
    match = HUB_FILE.fullmatch(name)
    if match is None or Path(name).expanduser().exists():
        return None
    repository, file = match.groups()
    must_be_revision(revision)
    must_be_inside(file, what="a file of a model id")
    from huggingface_hub import hf_hub_download

    def fetch(*, local: bool) -> Path:
        return Path(hf_hub_download(repository, file, revision=revision, local_files_only=local))

    return _fetched(name, fetch, Path.is_file, must=must)


def cached_snapshot(name: str, *, revision: str | None = None, kind: str = "model") -> Path | None:
    """What the hub's cache holds of an id, without a question to the hub; None where nothing.

    Args:
        name: The id.
        revision: Of it.
        kind: model or dataset.

    Raises:
        ModelError: The revision is none.
    """
    must_be_revision(revision)
    if not HUB_ID.fullmatch(name):
        return None
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(name, revision=revision, repo_type=kind, local_files_only=True)
    except (OSError, ValueError):  # what the hub raises derives from these
        return None
    return Path(found)


def _fetched(
    name: str, fetch: Callable[..., Path], is_whole: Callable[[Path], bool], *, must: str
) -> Path:
    """From the cache, and where it is not whole there and the network is allowed, from the hub."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    problem: Exception | None = None
    for local in (True,) if offline else (True, False):
        try:
            found = fetch(local=local)
        except (OSError, ValueError) as error:  # what the hub raises derives from these
            problem = error
            continue
        # A cache may hold a configuration alone, left by a program that asked for no more.
        if not local or offline or is_whole(found):
            return found
    where = "HF_HUB_OFFLINE is set, and the cache" if offline else "the hub"
    raise ModelError(
        must,
        seen=f"{name} is no folder here; {where} gave: {first_line(problem)}",
        fix="give the path of a local folder" + (", or unset HF_HUB_OFFLINE" if offline else ""),
    ) from problem


def holds_weights(path: Path) -> bool:
    """Whether weights lie in a folder."""
    return any(path.rglob("*.safetensors")) or any(path.rglob("pytorch_model*.bin"))
