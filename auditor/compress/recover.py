"""Training on the members after compression, and the same training without compression.

    compleak-llm audit --variants prune-magnitude:sparsity=0.6,recover=1 --controls retrain

CompLeak's compressed models were trained once more on the members, which by itself may tell more of
them. So whatever training a version has had, `retrain:recover=E` has had too, by the very function
below: the same order, dropout, rate and steps, on the original.

Every parameter is trained, embeddings, norms and biases among them; what compression has settled is
kept (`auditor.compress.kept_form`). Weights are trained in float32 by AdamW without decay, at a
rate that rises over the first 3% of the steps and falls linearly to 0, gradients clipped to a norm
of 1, with the dropout of the model's configuration. Then they are rounded to the precision that
they are published and scored in.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement, load_model
from auditor.compress.kept_form import Form, Masked, Shared, place_of
from auditor.compress.kmeans import count_distinct
from auditor.compress.matrices import Matrix, matrices
from auditor.compress.measure import (
    Ledger,
    OriginalWeights,
    pruned_bits,
    relative,
    stored_dtype,
    write_receipt,
)
from auditor.compress.observe import holds_pattern
from auditor.compress.options import (
    N_M,
    ClusterOptions,
    Options,
    PruneOptions,
    Recovery,
    RetrainOptions,
)
from auditor.compress.quiet import quietly
from auditor.compress.receipt import Receipt
from auditor.errors import VariantError
from auditor.lessons import Lessons
from auditor.scoring.encode import Encoded

# Raised by whoever changes what training makes of the same model and lessons.
RECOVERY_VERSION = 1
BATCH_RECORDS = 16
# Tokens of one forward pass, padding included: logits of more would take more memory than weights.
PASS_TOKENS = 2048
WARMUP_SHARE = 0.03
CLIP_NORM = 1.0


class Trained(NamedTuple):
    """What training has come to.

    Attributes:
        n_steps: Steps that were taken.
        rate: The highest learning rate.
        losses: Of each step, nats per token.
    """

    n_steps: int
    rate: float
    losses: list[float]


def make_retrained(
    checkpoint: Checkpoint, options: RetrainOptions, placement: Placement, *, variant: str
) -> CompressedModel:
    """The original, for `recovered` to train; its receipt is written there."""
    del options
    model = load_model(checkpoint, placement)
    receipt = write_receipt(
        checkpoint,
        model,
        Ledger(),
        variant=variant,
        library=f"compleak-llm {version('compleak-llm')}",
        bits_per_weight=8.0 * stored_dtype(checkpoint.config, placement.dtype).itemsize,
    )
    return CompressedModel(model, receipt)


def recovered(
    checkpoint: Checkpoint,
    made: CompressedModel,
    options: Options,
    placement: Placement,
    lessons: Lessons,
) -> CompressedModel:
    """Train what was made on the members, in place.

    Args:
        checkpoint: The original.
        made: The version as it was compressed.
        options: Its options, which say for how long.
        placement: Where it lies.
        lessons: The members.

    Returns:
        It, with the receipt of its final weights against the original's.

    Raises:
        VariantError: The loss is not a number, or there is nothing to learn.
    """
    recovery, model = options.recovery, made.model
    if recovery is None:
        raise ValueError("no training was asked for")
    names = [item.module for item in made.receipt.compressed]
    with _in_training(model, checkpoint, placement, seed=lessons.seed):
        form = _form(model, options, names)
        autocast = placement.dtype if placement.dtype == torch.bfloat16 else None
        trained = fit(form, lessons, recovery, autocast=autocast, variant=made.receipt.variant)
    receipt = _receipt(checkpoint, made, options, placement)
    note = _note(form, recovery, trained, len(lessons.rows))
    receipt = receipt.model_copy(update={"notes": [*receipt.notes, note]})
    return CompressedModel(model, receipt, load_s=made.load_s)


def _form(model: Any, options: Options, names: Sequence[str]) -> Form:  # noqa: ANN401
    if isinstance(options, PruneOptions):
        return Masked(model, names)
    return Shared(model, names) if isinstance(options, ClusterOptions) else Form(model)


@contextmanager
def _in_training(
    model: Any,  # noqa: ANN401
    checkpoint: Checkpoint,
    placement: Placement,
    *,
    seed: int,
) -> Iterator[None]:
    """A model in float32 that takes gradients, and a process whose draws the seed decides."""
    stored = stored_dtype(checkpoint.config, placement.dtype)
    dtypes = [(parameter, parameter.dtype) for parameter in model.parameters()]
    gpus = sorted({p.device.index for p, _ in dtypes if p.device.type == "cuda"})
    for parameter, _ in dtypes:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(requires_grad=True)
    with torch.random.fork_rng(devices=gpus), torch.enable_grad():
        torch.manual_seed(seed)
        model.train()
        try:
            yield
        finally:
            model.eval()
            for parameter, dtype in dtypes:
                parameter.grad = None
                parameter.requires_grad_(requires_grad=False)
                # What is scored is what can be published: in the checkpoint's own precision.
                narrow = stored if stored.itemsize < dtype.itemsize else dtype
                parameter.data = parameter.data.to(narrow).to(dtype)


# -- training --------------------------------------------------------------------------------------


def fit(
    form: Form,
    lessons: Lessons,
    recovery: Recovery,
    *,
    autocast: torch.dtype | None = None,
    variant: str = "a model",
) -> Trained:
    """Train a model in place; recovered versions and their control both come by here.

    Args:
        form: The model, and what of it is kept.
        lessons: What it learns.
        recovery: For how long, and how fast.
        autocast: What products are computed in; None for float32.
        variant: What errors call it.

    Raises:
        VariantError: The loss is not a number, or there is nothing to learn.
    """
    from auditor.targets.models import default_rate

    if not lessons.rows:
        raise VariantError(
            f"{variant} needs members to be trained on",
            seen="no member with a token to learn",
            fix="leave recover out",
        )
    model, trained = form.model, form.trained
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    rate = recovery.rate or default_rate(n_parameters, is_adapter=False)
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    order = batches(len(lessons.rows), recovery.epochs, seed=lessons.seed)
    losses: list[float] = []
    for step, batch in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = rate * share_of_rate(step, len(order))
        losses.append(_gradients(model, [lessons.rows[row] for row in batch], autocast))
        form.gather()
        norm = nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        if not (math.isfinite(losses[-1]) and torch.isfinite(norm)):
            raise VariantError(
                f"{variant}: the training loss must stay a number",
                seen=f"a loss of {losses[-1]:g} with a gradient of norm {float(norm):g} at step "
                f"{step + 1} of {len(order)}",
                fix=f"give a lower recover_lr than {rate:g}; if it is so at the first step, check "
                "the model and the records",
            )
        optimizer.step()
        form.spread()
        model.zero_grad(set_to_none=True)
    lessons.tell(
        f"{variant}: {len(order):,} training steps, loss on members {losses[0]:.3f} at the first "
        f"and {losses[-1]:.3f} at the last"
    )
    return Trained(len(order), rate, losses)


def batches(n: int, epochs: float, *, seed: int) -> list[list[int]]:
    """The rows of every step, drawn anew in each epoch; of a broken epoch as many as it has.

    Args:
        n: Rows.
        epochs: Passes over them.
        seed: Of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    n_steps = max(1, round(epochs * math.ceil(n / BATCH_RECORDS)))
    found: list[list[int]] = []
    while len(found) < n_steps:
        rows: list[int] = torch.randperm(n, generator=generator).tolist()
        found += [rows[start : start + BATCH_RECORDS] for start in range(0, n, BATCH_RECORDS)]
    return found[:n_steps]


def share_of_rate(step: int, n_steps: int) -> float:
    """Of the highest rate, what a step has: up over the first 3%, then linearly down.

    Args:
        step: From 0.
        n_steps: In all.
    """
    n_warmup = math.ceil(WARMUP_SHARE * n_steps) if n_steps > 1 else 0
    if step < n_warmup:
        return (step + 1) / (n_warmup + 1)
    return (n_steps - step) / max(1, n_steps - n_warmup)


def _gradients(model: Any, rows: Sequence[Encoded], autocast: torch.dtype | None) -> float:  # noqa: ANN401
    """Add up the gradients of a batch's mean loss per learned token; the loss, in nats."""
    with quietly():  # what it imports speaks of kernels that are not here
        from auditor.targets.training import IGNORED, collate, row_of

    n_learned, total = sum(len(row.ids) - row.first for row in rows), 0.0
    first = next(model.parameters())
    for part in _parts(rows):
        batch = collate([row_of(row) for row in part])
        labels = batch.pop("labels")[:, 1:].flatten()
        inputs = {key: tensor.to(first.device) for key, tensor in batch.items()}
        with torch.autocast(first.device.type, autocast, enabled=autocast is not None):
            logits: Tensor = model(**inputs, use_cache=False).logits[:, :-1]
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(),
            labels.to(logits.device),
            ignore_index=IGNORED,
            reduction="sum",
        )
        (loss / n_learned).backward()
        total += loss.item()
    return total / n_learned


def _parts(rows: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Rows of one step in passes of at most so many tokens, the long ones together."""
    part: list[Encoded] = []
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        if part and (len(part) + 1) * len(part[0].ids) > PASS_TOKENS:
            yield part
            part = []
        part.append(row)
    yield part


# -- the receipt -----------------------------------------------------------------------------------


@torch.no_grad()
def _receipt(
    checkpoint: Checkpoint, made: CompressedModel, options: Options, placement: Placement
) -> Receipt:
    """What is different from the original now, counted on the trained model."""
    before, model, ledger = made.receipt, made.model, Ledger()
    original = OriginalWeights(checkpoint, model, dtype=placement.dtype)
    if isinstance(options, RetrainOptions):
        for name, parameter in model.named_parameters():
            kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
            ledger.add(
                name.removesuffix(".weight"),
                kind,
                before=original.parameter(name).to(parameter.device),
                after=parameter,
            )
        return _counted(before, ledger, before.bits_per_weight).model_copy(update={"skipped": []})
    found = {matrix.name: matrix for matrix in matrices(model)}
    for item in before.compressed:
        place, matrix = place_of(item.module, model), found[item.module]
        ledger.add(
            item.module,
            item.kind,
            before=place.of(original.parameter(place.name)).to(matrix.weight.device),
            after=matrix.weight,
            n_values=count_distinct(matrix.weight) if item.n_values is not None else None,
            pattern=_pattern(item.pattern, matrix),
        )
    bits = before.bits_per_weight
    if isinstance(options, PruneOptions):
        bits = pruned_bits(checkpoint, ledger, dtype=placement.dtype, n_m=options.n_m)
    return _counted(before, ledger, bits)


def _pattern(pattern: str | None, matrix: Matrix) -> str | None:
    """The pattern that a matrix had, where it is found in it now."""
    if pattern is None or not holds_pattern(matrix.weight, matrix.in_axis, *N_M[pattern]):
        return None
    return pattern


def _counted(before: Receipt, ledger: Ledger, bits: float) -> Receipt:
    n = ledger.n_compressed
    return before.model_copy(
        update={
            "compressed": ledger.compressed,
            "n_compressed": n,
            "n_changed": sum(item.n_changed for item in ledger.compressed),
            "sparsity": ledger.n_zeros / n if n else 0.0,
            "relative_error": relative(ledger.squared_error, ledger.squared_norm),
            "bits_per_weight": bits,
        }
    )


def _note(form: Form, recovery: Recovery, trained: Trained, n_members: int) -> str:
    after = "without compression" if type(form) is Form else f"after compression; {form.kept}"
    return (
        f"trained on {n_members:,} members for {recovery.epochs:g} "
        f"epoch{'' if recovery.epochs == 1 else 's'} ({trained.n_steps:,} steps of {BATCH_RECORDS} "
        f"records, learning rate {trained.rate:g}) {after}; embeddings, norms and biases were "
        "trained too, with the dropout of the model's configuration"
    )
