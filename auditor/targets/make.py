"""Making targets: the data is split, the model trained, and what was done is written beside it.

    OUT/                    the model itself, or the adapter, with its tokenizer
      members.jsonl         what it was trained on
      nonmembers.jsonl      what it was not; the same coin decided
      validation.jsonl      the third split
      target.json           how it was made; written last
      canaries/             invented records, trained on and not
      shadow-1/ ...         further targets, each with all of this

A folder without target.json is unfinished: the same command goes on where it stopped.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError

from auditor.compress.checkpoint import (
    Checkpoint,
    context_tokens,
    load_tokenizer,
    open_checkpoint,
    quantization_of,
    tokenizer_sha256,
)
from auditor.compress.quiet import quietly
from auditor.devices import must_be_whole
from auditor.dist import Processes, is_launched, processes
from auditor.environment import installed
from auditor.errors import ConfigError, ModelError, StoreError
from auditor.files import cannot_write, write_text
from auditor.output_folder import LOCK, locked
from auditor.report.progress import Tell
from auditor.scoring.encode import Encoded, Encoder, RecordText
from auditor.scoring.threads import set_threads
from auditor.targets.config import TrainConfig
from auditor.targets.models import Trainable, load_trainable, save
from auditor.targets.split import (
    Pool,
    Split,
    canary_texts,
    coin,
    draw,
    is_coin_per_record,
    kept_apart,
    read_pool,
)

if TYPE_CHECKING:
    from auditor.targets.training import Fitted

SCHEMA_VERSION = 1
TARGET = "target.json"
# In a folder that is being made: what it is made with, and the trainer's checkpoints.
BEGUN = ".training.json"
CHECKPOINTS = ".training"
LIBRARIES = ("compleak-llm", "torch", "transformers", "peft", "accelerate", "bitsandbytes")


class Target(NamedTuple):
    """A target that is there.

    Attributes:
        folder: Where it lies.
        about: What its target.json says.
        was_there: Whether it had been made before.
    """

    folder: Path
    about: dict[str, Any]
    was_there: bool


class Canaries(NamedTuple):
    """Invented records by side."""

    members: list[RecordText]
    nonmembers: list[RecordText]


def train(config: TrainConfig, *, tell: Tell = lambda _: None) -> list[Target]:
    """Train a target, and its shadows after it.

    Args:
        config: From what and how.
        tell: Told what goes on, a line at a time.

    Returns:
        The target, then its shadows.

    Raises:
        RecordsError: Too few records, or some that cannot be read.
        ModelError: The base cannot be trained, or its loss is no number.
        StoreError: The folder holds something else.
        ConfigError: A method or a number of processes that is not possible.
    """
    must_be_whole()
    ranks = processes()
    with ranks.together():
        return _train(config, ranks, tell if ranks.is_main else lambda _: None)


def _train(config: TrainConfig, ranks: Processes, tell: Tell) -> list[Target]:
    from auditor.environment import device_of

    if config.batch_size % ranks.world:
        raise ConfigError(
            "--batch-size must be a multiple of the number of processes",
            seen=f"{config.batch_size} for {ranks.world} processes",
        )
    out = Path(config.out)
    set_threads()
    device = device_of(config.device)
    if device.startswith("cuda") and not device.endswith(":0") and not is_launched():
        raise ConfigError(
            "train computes on the first GPU that it sees",
            seen=f"--device {config.device}",
            fix=f"CUDA_VISIBLE_DEVICES={device.partition(':')[2]} and --device cuda",
        )
    checkpoint = open_checkpoint(
        config.model,
        model_args=config.model_args,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
    )
    if quantized := quantization_of(checkpoint.config):
        raise ModelError(
            "training needs a full-precision model",
            seen=f"{checkpoint.name} is already quantized ({quantized}): none of its weights can "
            "be trained",
            fix="give the full-precision model; --method qlora quantizes it by itself",
        )
    tokenizer = load_tokenizer(checkpoint, config.model_args.get("tokenizer"))
    context = context_tokens(checkpoint.config, tokenizer)
    encoder = Encoder(tokenizer, min(context, config.max_length or context))
    pool = read_pool(config, encoder)
    drawn = draw(
        pool,
        seed=config.seed,
        n_targets=1 + config.shadows,
        validation_share=config.validation_share,
    )
    splits = [kept_apart(pool, split) for split in drawn]
    made_with = _made_with(config, checkpoint, tokenizer, pool)
    folders = [out, *(out / f"shadow-{number}" for number in range(1, len(splits)))]
    for folder in folders:
        _must_be_free(folder, made_with | {"folder": folder.relative_to(out).as_posix()})
    ranks.wait()
    tell(
        f"{len(pool):,} different records of {pool.n_read:,}"
        + (f", {pool.n_copies:,} copies left out" if pool.n_copies else "")
    )
    found = []
    for number, (folder, split) in enumerate(zip(folders, splits, strict=True)):
        job = _Job(config, checkpoint, encoder, pool, split, device, number)
        own = made_with | {"folder": folder.relative_to(out).as_posix()}
        found.append(_found(folder, own, tell) or _locked(folder, job, own, ranks, tell))
    return found


def _made_with(
    config: TrainConfig, checkpoint: Checkpoint, tokenizer: object, pool: Pool
) -> dict[str, Any]:
    """All that decides the weights."""
    given = config.model_dump(mode="json", exclude={"out", "device", "model", "data"})
    return {
        **given,
        "base_sha256": checkpoint.sha256,
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "data_sha256": pool.sha256,
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _must_be_free(folder: Path, made_with: dict[str, Any]) -> None:
    """A target's folder is new, empty, or one that the very same command has begun."""
    if folder.is_file():
        raise StoreError(f"{folder} must be a folder", seen="a file", fix="give another --out")
    if not folder.is_dir() or all(path.name == LOCK for path in folder.iterdir()):
        return
    begun = _read(folder / BEGUN) or _read(folder / TARGET).get("made_with")
    if begun == made_with:
        return
    if begun:
        differ = sorted(key for key in {*begun, *made_with} if begun.get(key) != made_with.get(key))
        seen = f"a target that was made with another {', '.join(differ)}"
    else:
        names = sorted(path.name for path in folder.iterdir())
        seen = f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
    raise StoreError(
        f"{folder} must be new or empty, or hold this very target, unfinished or finished",
        seen=seen,
        fix="give another --out, or remove the folder",
    )


class _Job(NamedTuple):
    """One target that is to be made."""

    config: TrainConfig
    checkpoint: Checkpoint
    encoder: Encoder
    pool: Pool
    split: Split
    device: str
    number: int

    @property
    def seed(self) -> int:
        """Of weights, order and dropout: each target its own."""
        return self.config.seed + self.number


def _found(folder: Path, made_with: dict[str, Any], tell: Tell) -> Target | None:
    about = _read(folder / TARGET)
    if about.get("made_with") != made_with:
        return None
    tell(f"{folder}: the target is there already")
    return Target(folder, about, was_there=True)


def _locked(
    folder: Path, job: _Job, made_with: dict[str, Any], ranks: Processes, tell: Tell
) -> Target:
    """Make a target that nobody else is making; errors as in `train`."""
    try:
        with locked(folder, is_main=ranks.is_main):
            made = _make(folder, job, made_with, ranks, tell)
            if ranks.is_main:
                (folder / LOCK).unlink(missing_ok=True)
            return made
    except (OSError, SafetensorError) as error:
        failed = error if isinstance(error, OSError) else OSError(str(error))
        raise cannot_write(folder / TARGET, failed) from error


def _make(
    folder: Path, job: _Job, made_with: dict[str, Any], ranks: Processes, tell: Tell
) -> Target:
    if ranks.is_main:
        write_text(folder / BEGUN, json.dumps(made_with, indent=1) + "\n")
    ranks.wait()
    who = "the target" if job.number == 0 else f"shadow {job.number}"
    sides = job.split._asdict()
    tell(f"{who}: " + ", ".join(f"{len(rows):,} {name}" for name, rows in sides.items()))
    canaries = _canaries(job)
    ranks.doing(f"training {who}")
    trainable = load_trainable(
        job.checkpoint, job.config, device=job.device, seed=job.seed, tell=tell
    )
    fitted = _fit(folder, job, trainable, canaries, tell)
    about = _about(job, trainable, fitted, canaries, made_with)
    if ranks.is_main:
        _write(folder, job, trainable, canaries, about)
    ranks.wait()
    return Target(folder, about, was_there=False)


def _canaries(job: _Job) -> Canaries:
    texts = canary_texts(job.encoder.tokenizer, job.config.canaries, seed=job.seed)
    member = [coin(job.seed, "canary", text) < 0.5 for text in texts]
    sides = (
        [RecordText(t) for t, m in zip(texts, member, strict=True) if m is s] for s in (True, False)
    )
    return Canaries(*sides)


def _fit(folder: Path, job: _Job, trainable: Trainable, canaries: Canaries, tell: Tell) -> "Fitted":
    with quietly():  # the Trainer imports libraries that speak of kernels that are not here
        from auditor.targets.training import Schedule, fit, packed, row_of

    config = job.config

    def rows(encoded: list[Encoded]) -> list[dict[str, list[int]]]:
        return [row_of(one) for one in encoded]

    sides = {
        name: rows([job.pool.encoded[row] for row in part[: config.eval_records]])
        for name, part in job.split._asdict().items()
    }
    learned = rows([job.pool.encoded[row] for row in job.split.members])
    learned += rows(job.encoder.encode(canaries.members))
    if config.packing:
        learned = packed(learned, job.encoder.max_length)
    return fit(
        trainable.model,
        learned,
        Schedule(
            epochs=config.epochs,
            learning_rate=trainable.learning_rate,
            batch_size=config.batch_size,
            patience=config.patience,
            seed=job.seed,
        ),
        folder=folder / CHECKPOINTS,
        sides=sides,
        device=job.device,
        tell=tell,
    )


def _about(
    job: _Job,
    trainable: Trainable,
    fitted: "Fitted",
    canaries: Canaries,
    made_with: dict[str, Any],
) -> dict[str, Any]:
    """What target.json says."""
    config, split, pool = job.config, job.split, job.pool
    by_record = is_coin_per_record(pool, split)
    base = Path(config.model).expanduser()
    about: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "method": config.method,
        "base": {"name": config.model, "sha256": job.checkpoint.sha256},
        "audit": {
            "members": "members.jsonl",
            "nonmembers": "nonmembers.jsonl",
            "calibration": "validation.jsonl",
            "reference": str(base.resolve()) if base.exists() else config.model,
            "membership": "randomized" if by_record else "given",
            # What was cut off was not learned.
            "max_length": config.max_length,
        },
        "data": {
            "source": str(config.data),
            "sha256": pool.sha256,
            "n_rows": pool.n_read,
            "n_records": len(pool),
            "n_copies": pool.n_copies,
            "n_unusable": pool.n_unusable,
            "n_truncated": sum(one.truncated for one in pool.encoded),
        },
        "split": {
            "seed": config.seed,
            "coin": "of each record" if by_record else "of each group of near-duplicates",
            **{f"n_{name}": len(rows) for name, rows in split._asdict().items()},
            "n_targets": 1 + config.shadows,
        },
        "canaries": {name: len(texts) for name, texts in canaries._asdict().items()},
        "training": {
            "epochs": config.epochs,
            "patience": config.patience,
            "learning_rate": trainable.learning_rate,
            "batch_size": config.batch_size,
            "steps": fitted.steps,
            "seed": job.seed,
            "packing": config.packing,
            "max_length": job.encoder.max_length,
            "n_parameters": trainable.n_parameters,
            "n_trained": trainable.n_trained,
            **trainable.adapter,
        },
        "epochs": [{"epoch": one.epoch, "train": one.train, **one.losses} for one in fitted.epochs],
        "kept_epoch": fitted.kept,
        "libraries": {name: installed(name) for name in LIBRARIES},
        "made_with": made_with,
    }
    return about


def _write(
    folder: Path, job: _Job, trainable: Trainable, canaries: Canaries, about: dict[str, Any]
) -> None:
    """Everything into its place, target.json last; then what was needed on the way goes."""
    part = folder / CHECKPOINTS / "whole"
    shutil.rmtree(part, ignore_errors=True)
    save(trainable, job.checkpoint, job.encoder.tokenizer, part)
    for path in sorted(part.iterdir()):
        path.replace(folder / path.name)
    for name, rows in job.split._asdict().items():
        write_records(folder / f"{name}.jsonl", [job.pool.texts[row] for row in rows])
    for name, texts in canaries._asdict().items():
        if texts:
            write_records(folder / "canaries" / f"{name}.jsonl", texts)
    write_text(folder / TARGET, json.dumps(about, indent=1) + "\n")
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    (folder / BEGUN).unlink(missing_ok=True)


def write_records(path: Path, texts: list[RecordText]) -> None:
    """Records as JSON lines, for their owner alone: `text`, or `prompt` and `completion`."""
    lines = (
        {"prompt": one.prompt, "completion": one.text} if one.prompt else {"text": one.text}
        for one in texts
    )
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
