"""Files that do not belong in a published checkpoint, each with the reason."""

from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from auditor.artifacts.contents import ARCHIVES, PICKLES, Kind

Severity = Literal["info", "warning", "severe"]


class Misplaced(NamedTuple):
    """Why a file or folder does not belong.

    Attributes:
        reason: A short sentence without its subject.
        severity: How much it weighs.
    """

    reason: str
    severity: Severity = "warning"


SECRETS = Misplaced("may hold passwords or keys", "severe")
TRAINING = Misplaced("state of the training run, which only serves to go on with it")
LOG = Misplaced("a log of the training run: names, paths, and often samples of the data")
DATA = Misplaced("a data file: a checkpoint needs none")
BACKUP = Misplaced("left behind by an editor or a tool", "info")
PICKLE = Misplaced("a pickle: it can run code when it is loaded, and it was not opened or searched")
ARCHIVE = Misplaced("an archive: nobody sees what is in it, and it was not searched")
CODE = Misplaced("code, and no configuration here names any")
HISTORY = Misplaced("a version history: it keeps what was taken out, and it was not searched")

# Folders that are named once; their files are searched but not named again, save the first three,
# which hold compressed objects.
VERSIONED = (".git", ".hg", ".svn")
FOLDERS = {
    **dict.fromkeys(VERSIONED, HISTORY),
    **dict.fromkeys(("wandb", "runs", "mlruns", "lightning_logs"), LOG),
    **dict.fromkeys(("__pycache__", ".ipynb_checkpoints", ".idea", ".vscode"), BACKUP),
}
STEP = "an earlier state of the training run, with weights that tell more than the last ones alone"
# The first pattern that fits a name in lower case decides.
FILES: tuple[tuple[tuple[str, ...], Misplaced], ...] = (
    ((".env", ".env.*", "*.pem", "*.key", "id_rsa*", "id_ed25519*", ".netrc", ".pypirc"), SECRETS),
    ((".*_history", "credentials*.json"), SECRETS),
    (("optimizer*.pt", "optimizer*.pth", "optimizer*.bin", "optimizer*.safetensors"), TRAINING),
    (("*optim_states*.pt", "*model_states*.pt", "*.distcp", "zero_to_fp32.py"), TRAINING),
    (("scheduler*.pt", "scheduler*.bin", "scaler*.pt", "rng_state*.pth"), TRAINING),
    (("random_states*.pkl",), TRAINING),
    (("training_args.bin", "trainer_state.json"), LOG),
    (("events.out.tfevents*", "*.tfevents", "*.wandb"), LOG),
    (("*.log", "*.out", "*.err", "log.txt", "*_log.txt", "log_history.json"), LOG),
    (("*.ipynb",), Misplaced("a notebook, with whatever it printed")),
    (("*.jsonl", "*.ndjson", "*.csv", "*.tsv", "*.arrow", "*.parquet", "*.feather"), DATA),
    (("*.xls", "*.xlsx", "*.sqlite", "*.sqlite3", "*.db", "*.npy", "*.npz"), DATA),
    (("*~", "*.bak", "*.orig", "*.old", "*.swp", "*.swo", "*.tmp", "*.part", ".#*"), BACKUP),
    ((".ds_store", "thumbs.db", "desktop.ini", "*.pyc"), BACKUP),
)


def misplaced_file(name: str, kind: Kind, *, has_code: bool) -> Misplaced | None:
    """Why a file does not belong, or None.

    Args:
        name: Relative to the checkpoint, with slashes.
        kind: What it is.
        has_code: Whether the checkpoint's configuration names code of its own.
    """
    path = PurePosixPath(name.lower())
    if any(part in FOLDERS for part in path.parts[:-1]):
        return None
    for patterns, why in FILES:
        if any(fnmatchcase(path.name, pattern) for pattern in patterns):
            return why
    if kind == "pickle" or (path.suffix in PICKLES and kind not in ("safetensors", "gguf")):
        return PICKLE
    if kind == "archive" or path.suffix in ARCHIVES:
        return ARCHIVE
    if kind in ("parquet", "arrow"):
        return DATA
    # What runs a model behind an endpoint, and generation of its own, need no other word.
    is_known = path.name == "handler.py" or path.parts[0] == "custom_generate"
    if path.suffix in (".py", ".sh") and not is_known and not (has_code and path.suffix == ".py"):
        return CODE
    return None


def misplaced_folder(name: str) -> Misplaced | None:
    """Why a folder does not belong, or None; `name` is relative to the checkpoint, with slashes."""
    path = PurePosixPath(name.lower())
    if any(part in FOLDERS for part in path.parts[:-1]):
        return None
    if fnmatchcase(path.name, "checkpoint-[0-9]*") or fnmatchcase(path.name, "global_step[0-9]*"):
        return Misplaced(STEP)
    return FOLDERS.get(path.name)
