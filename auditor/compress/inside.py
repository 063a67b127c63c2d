"""What a checkpoint may name: files of its own, and no code from elsewhere.

Names in an index, a subfolder and a revision become parts of paths; an implementation of attention
that is named like a repository is fetched from there, and run.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from auditor.errors import ModelError

IMPLEMENTATIONS = ("_attn_implementation", "_experts_implementation")
# As git has them: neither a step upwards nor a second slash, and nothing that a path would obey.
REVISION = re.compile(r"[\w.+-]+(/[\w.+-]+)*")


def is_inside(name: object) -> bool:
    """Whether a name leads to a file below the folder that it is joined to, as far as it tells."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def must_be_inside(name: str, *, what: str) -> str:
    """A name that a user gave for a part of a checkpoint, unchanged.

    Args:
        name: The name.
        what: What it is, for the error.

    Raises:
        ModelError: It leads out of the checkpoint.
    """
    if name and not is_inside(name):
        raise ModelError(
            f"{what} must lie within the checkpoint",
            seen=name,
            fix="give a relative path without '..', or the folder itself as the checkpoint",
        )
    return name


def must_be_revision(revision: str | None) -> str | None:
    """A branch, a tag or a commit, unchanged: the hub's client makes paths of it.

    Raises:
        ModelError: It is none.
    """
    if revision is None or (REVISION.fullmatch(revision) and ".." not in revision):
        return revision
    raise ModelError(
        "a revision must be a branch, a tag or a commit",
        seen=revision,
        fix="give it as the hub shows it, for example main",
    )


def is_own_file(path: Path, folder: Path) -> bool:
    """Whether a file is the checkpoint's own: no link leads from it to another place.

    The hub's cache keeps contents in `blobs`, beside the snapshots whose files link there.

    Args:
        path: The file.
        folder: The checkpoint.
    """
    real, root = path.resolve(), folder.resolve()
    homes = [root]
    if root.parent.name == "snapshots":
        homes.append(root.parent.parent / "blobs")
    return any(home in real.parents for home in homes)


def foreign_code(config: Any) -> str | None:  # noqa: ANN401 - transformers' own
    """The repository whose code a configuration asks for, or None.

    transformers takes `attn_implementation` from `config.json`; a name with a slash is that of a
    repository of kernels, which it would download and run.

    Args:
        config: The configuration; parts of it (a text model's in a larger one) are looked at too.
    """
    for name in IMPLEMENTATIONS:
        found = getattr(config, name, None)
        if isinstance(found, str) and "/" in found:
            return found
    parts = (getattr(config, name, None) for name in getattr(config, "sub_configs", {}))
    found = (foreign_code(part) for part in parts if part is not None)
    return next((name for name in found if name is not None), None)


def must_have_no_foreign_code(name: str, repository: str | None) -> None:
    """A checkpoint must not ask for code from elsewhere, where nobody has allowed it.

    Args:
        name: What errors call the checkpoint.
        repository: What it asks for, as `foreign_code` found it.

    Raises:
        ModelError: It asks for some.
    """
    if repository is not None and "/" in repository:
        raise ModelError(
            f"{name} must run without code from elsewhere",
            seen=f"an implementation that is fetched from the repository {repository}",
            fix="take sdpa or eager, or read that code, then give --trust-remote-code",
        )
