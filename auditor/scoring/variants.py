"""One version of the model on its way: made, scored shard by shard, stored, let go."""

import gc
import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from auditor.compress.checkpoint import CompressedModel, Placement
from auditor.dist import Processes
from auditor.environment import peak_bytes
from auditor.errors import BrokenVariantError, ModelError, VariantError
from auditor.files import write_text
from auditor.report.progress import Display
from auditor.results import ModelIdentity, Timing
from auditor.scoring.encode import Encoder
from auditor.store import Manifest, VariantStore

if TYPE_CHECKING:
    from auditor.compress.materialise import How
    from auditor.compress.receipt import Receipt
    from auditor.records import Records
    from auditor.scoring.encode import Encoded
    from auditor.scoring.engine import Counters
    from auditor.scoring.scores import Scores


# Kinds of devices beside which the host reads, encodes and writes while they compute.
OVERLAPPED_ON = ("cuda",)


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
        beside: Whether it is made from the audited model, by a compressor that may work while
            another version is scored (see `Compressor.beside`).
        after: The version that must be stored before it can be made, or None.
    """

    name: str
    make: Callable[[], CompressedModel]
    encoder: Encoder
    store: VariantStore
    placement: Placement
    identity: ModelIdentity
    materialise: "How" = "auto"
    beside: bool = False
    after: str | None = None


# Read and encode a shard, score it, write it.
Encode = Callable[[int], "list[Encoded]"]
Score = Callable[["list[Encoded]"], "Scores"]
Write = Callable[[int, "Scores"], None]


class Looked(NamedTuple):
    """What is stored of a version when a run begins.

    Attributes:
        manifest: Its manifest where it is finished, or None.
        missing: Numbers of the shards that must be scored.
    """

    manifest: Manifest | None
    missing: list[int]


class Made(NamedTuple):
    """A version that is ready to be scored, and what it took.

    Attributes:
        variant: The version.
        seconds: Of loading and compressing.
        hidden_s: How many of them passed while the version before was scored.
    """

    variant: CompressedModel
    seconds: float
    hidden_s: float = 0.0


def look(plan: Pass) -> Looked:
    """See what is stored of a version; every shard of it is read."""
    found = plan.store.manifest()
    return Looked(found, plan.store.missing() if found is None else [])


def make(plan: Pass) -> Made:
    """Make a version, on the clock; errors are those of its `make`."""
    begin = time.perf_counter()
    variant = plan.make()
    return Made(variant, time.perf_counter() - begin)


def _made(
    plan: Pass, making: Callable[[Pass], Made]
) -> tuple[CompressedModel | None, float, float, str | None]:
    """What `making` gives, or why that cannot be."""
    try:
        return (*making(plan), None)
    except BrokenVariantError as error:
        return None, 0.0, 0.0, f"{error.must}: {error.seen}"


def score_variant(
    plan: Pass,
    records: "Records",
    *,
    looked: Looked,
    making: Callable[[Pass], Made] = make,
    meanwhile: Callable[[], None] = lambda: None,
    batch_size: int | str,
    ranks: Processes,
    display: Display,
) -> tuple[Manifest, Timing]:
    """Score one version of the model on all records that are not stored yet.

    Args:
        plan: The version.
        records: The records.
        looked: What was stored of it before any process has written anything.
        making: Makes it, or gives it back where it is made already.
        meanwhile: Called once it is about to be scored.
        batch_size: Records per batch at most, or "auto".
        ranks: The processes.
        display: Told what is going on.

    Returns:
        Its manifest, and where the time went; a finished version costs no pass and no loading.

    Raises:
        VariantError: It cannot be made here.
        StoreError: Its scores cannot be written.
    """
    n_records = len(records)
    n_todo = sum(len(plan.store.shards[number]) for number in looked.missing)
    display.start(plan.name, n_records=n_records, n_done=n_records - n_todo)
    if looked.manifest is not None:
        display.finish("stored")
        return looked.manifest, nothing_run(plan.name)
    ranks.doing(f"making {plan.name}")
    made, seconds, hidden_s, impossible = _made(plan, making)
    # All take the same way from here, whoever of them could not make it.
    reasons = [reason for reason in ranks.tell_all(impossible) if reason]
    if made is None or reasons:
        manifest = _finish(plan, None, reasons, ranks)
        display.finish("left out")
        return manifest, nothing_run(plan.name)
    compress_s = seconds - made.load_s
    begin = time.perf_counter()
    made = _decompressed(plan, made, ranks)
    load_s = made.load_s + time.perf_counter() - begin
    receipt = made.receipt
    begin = time.perf_counter()
    counters, broken = _score_shards(
        plan,
        made,
        records,
        ranks.share(looked.missing),
        meanwhile=meanwhile,
        batch_size=batch_size,
        ranks=ranks,
        display=display,
    )
    timing = Timing(
        variant=plan.name,
        load_s=load_s,
        compress_s=compress_s,
        from_cache=made.from_cache,
        hidden_s=hidden_s,
        forward_s=counters.forward_s,
        rest_s=max(0.0, time.perf_counter() - begin - counters.forward_s),
        n_forward_records=counters.n_records,
        n_forward_passes=counters.n_passes,
        n_tokens=counters.n_tokens,
        peak_bytes=peak_bytes(),
    )
    # The next version must find the memory that this one had.
    del made
    empty_devices()
    # Every shard is read once more: no batch tells any longer that this process lives.
    ranks.doing(f"looking through the scores of {plan.name}")
    reasons = [reason for reason in ranks.tell_all(broken) if reason]
    manifest = _finish(plan, receipt, reasons, ranks)
    display.finish("broken" if reasons else "done")
    return manifest, timing


def _decompressed(plan: Pass, made: CompressedModel, ranks: Processes) -> CompressedModel:
    """The version with its packed weights decompressed, where it was settled so.

    It is settled once, by the main process, and written down beside the shards: whoever goes on
    with a version must score the rest of it in the same way, whatever memory is free by then.

    Raises:
        VariantError: Memory ran out.
    """
    from auditor.compress.kept import give_up
    from auditor.compress.materialise import fits, materialise, packed_layers
    from auditor.memory import ran_out

    how = plan.materialise
    if how == "auto" and packed_layers(made.model):
        settled = plan.store.folder / "weights.json"
        try:
            earlier = json.loads(settled.read_text(encoding="utf-8"))["materialise"]
        except (OSError, ValueError, KeyError, TypeError):
            earlier = None
        if earlier not in ("always", "never"):
            earlier = "always" if fits(made, plan.placement) else "never"
        how = ranks.tell_all(earlier)[0]
        if ranks.is_main:
            write_text(settled, json.dumps({"materialise": how}) + "\n")
    try:
        return materialise(made, plan.placement, how=how)
    except Exception as error:
        if not ran_out(error):
            raise
        give_up()
        raise VariantError(
            f"the decompressed weights of {plan.name} must fit into memory",
            seen=str(error).partition("\n")[0] or type(error).__name__,
            fix="give --materialise never: it is then scored packed, and slower",
        ) from error


def _score_shards(
    plan: Pass,
    made: CompressedModel,
    records: "Records",
    numbers: list[int],
    *,
    meanwhile: Callable[[], None],
    batch_size: int | str,
    ranks: Processes,
    display: Display,
) -> tuple["Counters", str | None]:
    """Score and store shards; the second value says why the version is broken, if it is."""
    import torch

    from auditor.scoring.engine import Engine

    def on_batch(n_records: int, n_tokens: int) -> None:
        ranks.step(n_records)
        display.advance(n_records, n_tokens)

    engine = Engine(
        made.model,
        torch.device(plan.placement.device),
        batch_size=batch_size,
        one_at_a_time=made.receipt.batch_dependent,
        on_batch=on_batch,
    )

    def encode(number: int) -> "list[Encoded]":
        return plan.encoder.encode(records.texts(plan.store.shards[number]))

    meanwhile()
    ranks.doing(f"scoring {plan.name}", counts=True)
    is_overlapped = plan.placement.device.partition(":")[0] in OVERLAPPED_ON
    run = _overlapped if is_overlapped else _one_by_one
    try:
        run(numbers, encode=encode, score=engine.score, write=plan.store.write_shard)
    except BrokenVariantError as error:
        return engine.counters, f"{error.must}: {error.seen}"
    return engine.counters, None


def _one_by_one(numbers: list[int], *, encode: Encode, score: Score, write: Write) -> None:
    for number in numbers:
        write(number, score(encode(number)))


def _overlapped(numbers: list[int], *, encode: Encode, score: Score, write: Write) -> None:
    """The same, with the next shard encoded and the last one written while one is scored.

    No more than one shard is ahead and one behind. Of several errors the one is raised that would
    have come first one by one; what was scored before it is written.
    """
    if not numbers:
        return
    with ThreadPoolExecutor(1, "encode") as encoder, ThreadPoolExecutor(1, "write") as writer:
        written: Future[None] | None = None
        coming = encoder.submit(encode, numbers[0])
        try:
            for number, following in zip(numbers, [*numbers[1:], None], strict=True):
                encoded = coming.result()
                if following is not None:
                    coming = encoder.submit(encode, following)
                scores = score(encoded)
                if written is not None:
                    written.result()
                written = writer.submit(write, number, scores)
        finally:
            if written is not None:
                written.result()


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


def empty_devices() -> None:
    """Let go of memory that nothing holds any more."""
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
