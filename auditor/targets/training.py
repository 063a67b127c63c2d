"""Training, left to `transformers.Trainer`: what is ours is which losses are looked at, and when.

After every epoch the mean loss per token is measured on members, nonmembers and the third split.
The Trainer's own machinery does the rest: stopping early, keeping the best epoch, going on from the
last one after a kill, many processes.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from auditor.compress.quiet import quiet_transformers, quietly
from auditor.environment import multiplies_bfloat16
from auditor.errors import ModelError
from auditor.report.progress import Tell
from auditor.scoring.encode import Encoded

if TYPE_CHECKING:
    from collections.abc import Iterator

IGNORED = -100
WARMUP_SHARE = 0.03
WEIGHT_DECAY = 0.01
# Tokens of one forward pass when losses are measured.
EVAL_TOKENS = 8192
Row = dict[str, list[int]]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        epochs: Passes over the rows.
        learning_rate: The highest; it rises over the first 3% of the steps and falls linearly to 0.
        batch_size: Rows in a step, over all processes together.
        patience: Epochs without a fall of the validation loss before it stops; 0 for never.
        seed: Of order and dropout.
    """

    epochs: float
    learning_rate: float
    batch_size: int
    patience: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """The state after one epoch; losses in nats per token.

    Attributes:
        epoch: 1, 2, ...
        train: Mean over the steps of the epoch.
        losses: By side: "members", "nonmembers", "validation".
    """

    epoch: float
    train: float | None
    losses: dict[str, float]


@dataclass(frozen=True)
class Fitted:
    """What training has come to.

    Attributes:
        epochs: One entry for each that was done.
        kept: The epoch whose weights the model has now.
        steps: Steps that were taken.
    """

    epochs: list[Epoch] = field(default_factory=list)
    kept: float = 0
    steps: int = 0


def row_of(record: Encoded) -> Row:
    """A record as the model is trained on it: what is scored is learned, what is not is not."""
    labels = [IGNORED] * record.first + record.ids[record.first :]
    return {"input_ids": record.ids, "labels": labels}


def packed(rows: Sequence[Row], length: int) -> list[Row]:
    """Rows end to end, cut into rows of `length` tokens; the last may be shorter."""
    ids = [token for row in rows for token in row["input_ids"]]
    labels = [token for row in rows for token in row["labels"]]
    cut = [
        {"input_ids": ids[start : start + length], "labels": labels[start : start + length]}
        for start in range(0, len(ids), length)
    ]
    # One token, or a part of a prompt: there is nothing to learn in it.
    return [row for row in cut if any(label != IGNORED for label in row["labels"][1:])]


def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
    """A batch padded on the right; padding has no label and is not attended to.

    So it does not matter which token it is, and a tokenizer without a padding token will do.
    """
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        n = len(row["input_ids"])
        ids[number, :n] = torch.tensor(row["input_ids"])
        labels[number, :n] = torch.tensor(row["labels"])
        mask[number, :n] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def fit(
    model: nn.Module,
    rows: Sequence[Row],
    schedule: Schedule,
    *,
    folder: Path,
    sides: Mapping[str, Sequence[Row]] | None = None,
    device: str = "cpu",
    tell: Tell = lambda _: None,
) -> Fitted:
    """Train a model in place.

    Args:
        model: A causal language model, or one with an adapter; what requires a gradient is trained.
        rows: What it is trained on.
        schedule: How long and how fast.
        folder: For its checkpoints; where an earlier try has left some, it goes on from the last.
        sides: Rows by side, whose losses are measured after each epoch; "validation" must be among
            them where there is a patience. None to measure nothing and keep no checkpoints.
        device: "cpu", or "cuda" and what the launcher says.
        tell: Told a line after each epoch.

    Raises:
        ModelError: Nothing can be trained, or the loss is not a number; says at which step.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            "a model must have weights that can be trained",
            seen="none of its parameters takes a gradient: it is quantized already",
            fix="give the full-precision model, or --method qlora",
        )
    with _as_the_seed_says(schedule.seed), quietly():
        trainer = _trainer(
            model, rows, schedule, folder=folder, sides=sides, device=device, tell=tell
        )
    last = last_whole(folder) if sides else None
    with _as_the_seed_says(schedule.seed), quiet_transformers():
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return _fitted(trainer, schedule)


def last_whole(folder: Path) -> Path | None:
    """The last of the Trainer's checkpoints that was written to its end, or None.

    The Trainer writes them file by file under their own name, its state last: one without was
    being written when the process was killed, and would be taken for whole.
    """
    found = {}
    for path in folder.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if number.isdigit():
            found[int(number)] = path
    return found[max(found)] if found else None


def _trainer(
    model: nn.Module,
    rows: Sequence[Row],
    schedule: Schedule,
    *,
    folder: Path,
    sides: Mapping[str, Sequence[Row]] | None,
    device: str,
    tell: Tell,
) -> "_Trainer":
    trainer = _Trainer(
        sides=dict(sides or {}),
        tell=tell,
        model=model,
        args=_arguments(schedule, folder, device=device, measured=bool(sides)),
        train_dataset=list(rows),
        eval_dataset=list(rows[:1]) if sides else None,  # it asks for one, and looks at none
        data_collator=collate,
        callbacks=[EarlyStoppingCallback(schedule.patience)] if schedule.patience else [],
    )
    trainer.pop_callback(PrinterCallback)
    return trainer


@contextmanager
def _as_the_seed_says(seed: int) -> "Iterator[None]":
    """What the Trainer seeds for the whole process is set back afterwards."""
    import random

    held = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        torch.manual_seed(seed)
        yield
    finally:
        random.setstate(held[0])
        np.random.set_state(held[1])
        torch.set_rng_state(held[2])


def _arguments(
    schedule: Schedule, folder: Path, *, device: str, measured: bool
) -> TrainingArguments:
    is_gpu = device.startswith("cuda")
    world = int(os.environ.get("WORLD_SIZE") or "1")
    epochly = "epoch" if measured else "no"
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=schedule.epochs,
        per_device_train_batch_size=max(1, schedule.batch_size // world),
        learning_rate=schedule.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=WARMUP_SHARE,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=1.0,
        seed=schedule.seed,
        data_seed=schedule.seed,
        use_cpu=not is_gpu,
        bf16=torch.cuda.is_bf16_supported() if is_gpu else multiplies_bfloat16(),
        dataloader_pin_memory=is_gpu,
        eval_strategy=epochly,
        save_strategy=epochly,
        save_total_limit=1,
        load_best_model_at_end=bool(schedule.patience),
        metric_for_best_model="loss" if schedule.patience else None,
        restore_callback_states_from_checkpoint=bool(schedule.patience),
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[],
        remove_unused_columns=False,
    )


class _ByLength(Sampler[int]):
    """An order that hangs on the seed and the epoch alone.

    The library's own draws from torch's generator of each process, which dropout has used by then:
    processes would come to different orders, and a run that goes on to another than it had.
    """

    def __init__(self, lengths: list[int], batch: int, trainer: Trainer) -> None:
        self._lengths, self._batch, self._trainer = lengths, batch, trainer

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> "Iterator[int]":
        epoch = round(self._trainer.state.epoch or 0)
        seed = np.random.SeedSequence([self._trainer.args.seed, epoch]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(seed))
        grouped: Any = get_length_grouped_indices
        yield from grouped(self._lengths, self._batch, generator=generator)


class _Trainer(Trainer):
    """The library's, with losses on three sides and a stop where the loss is not a number."""

    def __init__(self, *, sides: dict[str, Sequence[Row]], tell: Tell, **given: Any) -> None:  # noqa: ANN401
        super().__init__(**given)
        self._sides = sides
        self._tell = tell

    def _get_train_sampler(self, train_dataset: Any = None) -> "_ByLength":  # noqa: ANN401
        """See `Trainer`: rows of like length together, half of a batch is padding else."""
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        size = self.args.per_device_train_batch_size * self.args.world_size
        return _ByLength([len(row["input_ids"]) for row in rows], size, self)

    def training_step(self, *given: Any, **more: Any) -> Tensor:  # noqa: ANN401
        """See `Trainer`; errors as in `fit`."""
        loss: Tensor = super().training_step(*given, **more)
        if not torch.isfinite(loss):
            raise ModelError(
                "the training loss must stay a number",
                seen=f"{loss.item():g} at step {self.state.global_step + 1} of "
                f"{self.state.max_steps}",
                fix=f"give a lower --learning-rate than {self.args.learning_rate:g}; if it is so "
                "at the first step, check the model and the records",
            )
        return loss

    def evaluate(self, *given: Any, **more: Any) -> dict[str, float]:  # noqa: ANN401
        """The mean loss of each side; the third split's is what early stopping looks at."""
        del given, more
        found = {f"eval_{name}": self._loss(rows) for name, rows in self._sides.items()}
        if "validation" in self._sides:
            found["eval_loss"] = found["eval_validation"]
        self.log(dict(found))
        self._tell(
            f"epoch {self.state.epoch:g}: loss "
            + ", ".join(
                f"{value:.3f} on {name[5:]}" for name, value in found.items() if name != "eval_loss"
            )
        )
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    @torch.no_grad()
    def _loss(self, rows: Sequence[Row]) -> float:
        """Mean loss per token; every process takes its share of the batches."""
        model: Any = self.model
        was_training = model.training
        model.eval()
        total = torch.zeros(2, dtype=torch.float64)
        world, rank = self.args.world_size, self.args.process_index
        for batch in _batches(rows)[rank::world]:
            inputs = {key: value.to(self.args.device) for key, value in collate(batch).items()}
            labels = inputs.pop("labels")[:, 1:]
            logits = model(**inputs).logits[:, :-1].float()
            loss = nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
            )
            total += torch.tensor([loss.item(), float((labels != IGNORED).sum())])
        model.train(was_training)
        if world > 1:
            total = self.accelerator.reduce(total.to(self.args.device), reduction="sum").cpu()
        return float(total[0] / total[1])


def _batches(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of like length together, as many as `EVAL_TOKENS` allows."""
    found: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row["input_ids"])):
        width = len(row["input_ids"])
        if not found or (len(found[-1]) + 1) * width > EVAL_TOKENS:
            found.append([])
        found[-1].append(row)
    return found


def _fitted(trainer: Trainer, schedule: Schedule) -> Fitted:
    epochs: dict[float, Epoch] = {}
    train: dict[float, float] = {}
    for entry in trainer.state.log_history:
        number = round(float(entry.get("epoch", 0)), 6)
        if "loss" in entry:
            train[number] = float(entry["loss"])
        losses = {k[5:]: float(v) for k, v in entry.items() if k[5:] in trainer._sides}  # type: ignore[attr-defined]
        if losses:
            epochs[number] = Epoch(number, train.get(number), losses)
    kept = round(float(trainer.state.epoch or 0), 6)
    if schedule.patience and epochs:
        kept = min(epochs, key=lambda n: (_validation(epochs[n]), n))
    return Fitted(list(epochs.values()), kept, trainer.state.global_step)


def _validation(epoch: Epoch) -> float:
    loss = epoch.losses["validation"]
    return math.inf if math.isnan(loss) else loss
