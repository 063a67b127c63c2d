"""One version of the model on its way: made, scored shard by shard, stored, let go."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from auditor.compress.checkpoint import CompressedModel, Placement
from auditor.dist import Processes
from auditor.environment import peak_bytes
from auditor.errors import BrokenVariantError, ModelError
from auditor.report.progress import Display
from auditor.results import ModelIdentity, Timing
from auditor.scoring.encode import Encoder
from auditor.store import Manifest, VariantStore

if TYPE_CHECKING:
    from auditor.compress.materialise import How
    from auditor.compress.receipt import Receipt
    from auditor.records import Records
    from auditor.scoring.engine import Counters


@dataclass(frozen=True)
class Pass:
    """What one version needs to be scored.

    Attributes:
        name: What tables call it: a variant, or "reference".
        make: Loads and compresses; a `BrokenVariantError` leaves the version out.
        encoder: Its tokenizer.
        store: Where its scores go.
        placement: Where it runs.
        identity: Who it is, without its parameter count.
        materialise: Whether packed weights are decompressed once to be scored.
    """

    name: str
    make: Callable[[], CompressedModel]
    encoder: Encoder
    store: VariantStore
    placement: Placement
    identity: ModelIdentity
    materialise: "How" = "auto"


def score_variant(
    plan: Pass, records: "Records", *, batch_size: int | str, ranks: Processes, display: Display
) -> tuple[Manifest, Timing]:
    """Score one version of the model on all records that are not stored yet.

    Returns:
        Its manifest, and where the time went; a finished version costs no pass and no loading.

    Raises:
        VariantError: It cannot be made here.
        StoreError: Its scores cannot be written.
    """
    from auditor.compress.materialise import materialise

    found = plan.store.manifest()
    missing = plan.store.missing() if found is None else []
    # Nobody may write before everybody has looked: else two processes would share out two lists.
    ranks.wait()
    n_records = len(records)
    n_todo = sum(len(plan.store.shards[number]) for number in missing)
    display.start(plan.name, n_records=n_records, n_done=n_records - n_todo)
    if found is not None:
        display.finish("stored")
        return found, nothing_run(plan.name)
    begin = time.perf_counter()
    try:
        made = plan.make()
    except BrokenVariantError as error:
        manifest = _finish(plan, None, [f"{error.must}: {error.seen}"], ranks)
        display.finish("left out")
        return manifest, nothing_run(plan.name)
    compress_s = time.perf_counter() - begin - made.load_s
    begin = time.perf_counter()
    made = materialise(made, plan.placement, how=plan.materialise)
    load_s = made.load_s + time.perf_counter() - begin
    receipt = made.receipt
    begin = time.perf_counter()
    counters, broken = _score_shards(
        plan, made, records, ranks.share(missing), batch_size=batch_size, display=display
    )
    timing = Timing(
        variant=plan.name,
        load_s=load_s,
        compress_s=compress_s,
        forward_s=counters.forward_s,
        rest_s=max(0.0, time.perf_counter() - begin - counters.forward_s),
        n_forward_records=counters.n_records,
        n_forward_passes=counters.n_passes,
        n_tokens=counters.n_tokens,
        peak_bytes=peak_bytes(),
    )
    # The next version must find the memory that this one had.
    del made
    _empty_devices()
    reasons = [reason for reason in ranks.tell_all(broken) if reason]
    manifest = _finish(plan, receipt, reasons, ranks)
    display.finish("broken" if reasons else "done")
    return manifest, timing


def _score_shards(
    plan: Pass,
    made: CompressedModel,
    records: "Records",
    numbers: list[int],
    *,
    batch_size: int | str,
    display: Display,
) -> tuple["Counters", str | None]:
    """Score and store shards; the second value says why the version is broken, if it is."""
    import torch

    from auditor.scoring.engine import Engine

    engine = Engine(
        made.model,
        torch.device(plan.placement.device),
        batch_size=batch_size,
        one_at_a_time=made.receipt.batch_dependent,
        on_batch=display.advance,
    )
    try:
        for number in numbers:
            encoded = plan.encoder.encode(records.texts(plan.store.shards[number]))
            plan.store.write_shard(number, engine.score(encoded))
    except BrokenVariantError as error:
        return engine.counters, f"{error.must}: {error.seen}"
    return engine.counters, None


def _finish(plan: Pass, receipt: "Receipt | None", broken: list[str], ranks: Processes) -> Manifest:
    """Check that every shard is there once, and write the manifest.

    Args:
        plan: The version.
        receipt: How it was made; None where it could not be.
        broken: Why it is broken, one reason for each process that found one.
        ranks: The processes.
    """
    if not broken and (left := plan.store.missing()):
        raise ModelError(
            "every shard of a version must be there once all processes are done",
            seen=f"{plan.name}: {len(left)} of {len(plan.store.shards)} shards are missing",
            fix="run the same command again: what is stored is kept",
        )
    n_parameters = receipt.n_parameters if receipt is not None else None
    manifest = plan.store.manifest_of(
        identity=plan.identity.model_copy(update={"n_parameters": n_parameters}),
        receipt=receipt,
        status="broken" if broken else "ok",
        reason=broken[0] if broken else None,
    )
    if ranks.is_main:
        plan.store.finish(manifest)
    ranks.wait()
    return manifest


def _empty_devices() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def nothing_run(name: str) -> Timing:
    """The timing of a version that was stored already."""
    return Timing(
        variant=name,
        load_s=0.0,
        compress_s=0.0,
        forward_s=0.0,
        rest_s=0.0,
        n_forward_records=0,
        n_forward_passes=0,
        n_tokens=0,
        peak_bytes=0,
    )
