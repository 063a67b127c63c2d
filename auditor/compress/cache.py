"""Versions that take long to make are made once: by one process, for all and for later runs.

Whoever wants one looks into the cache (`auditor.compress.entries`). Where it is not there whole,
one process makes it under a lock and writes it; the others wait. Then all of them, the maker too,
load what was written, so that whatever is scored, now and later, are the very same weights.

    COMPLEAK_CACHE   the cache's folder; "off" to do without. Left out: $HF_HOME/compleak

A cache never stops a run: what cannot be kept is made in memory, as it always was, and that is said
once.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from auditor.compress import COMPRESSORS, VariantSpec
from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement
from auditor.compress.entries import Entry, cache_folder, named
from auditor.compress.make import check_possible, compress
from auditor.compress.saved import Form, Stored, UnfitError, form_of
from auditor.environment import device_name, installed
from auditor.errors import first_line
from auditor.report.progress import Tell

if TYPE_CHECKING:
    from auditor.calibration import Calibration
    from auditor.lessons import Lessons

# Raised by whoever changes what a compressor makes, or what is written of it.
CACHE_VERSION = 1
# What can go wrong between a version and its files.
FAILURES = (OSError, SafetensorError, UnfitError)


def fingerprint_of(
    checkpoint: Checkpoint,
    spec: VariantSpec,
    placement: Placement,
    calibration: "Calibration | None",
    lessons: "Lessons | None" = None,
) -> dict[str, Any]:
    """Everything that determines the weights of a version.

    The seed is in it by the windows of the calibration, which are all that it decides, and beside
    what is learned where the version is trained.
    """
    libraries = ("compleak-llm", "torch", "transformers", *COMPRESSORS[spec.id].requires)
    found = {
        "cache": CACHE_VERSION,
        "variant": spec.canonical,
        "model": checkpoint.sha256,
        "dtype": str(placement.dtype).removeprefix("torch."),
        # Libraries choose their kernels, and with them how they pack, by the kind of GPU.
        "device": device_name(placement.device),
        # The same token ids in other windows are another calibration.
        "calibration": calibration.use.sha256 if calibration is not None else None,
        "windows": list(calibration.windows.shape) if calibration is not None else None,
        "attention": checkpoint.load_args.get("attn_implementation"),
        "libraries": {name: installed(name) for name in libraries},
    }
    return {**found, **learned_of(spec, lessons)}


def learned_of(spec: VariantSpec, lessons: "Lessons | None") -> dict[str, Any]:
    """What training adds to a version's fingerprint; nothing where it is not trained."""
    if spec.recovery is None or lessons is None:
        return {}
    from auditor.compress.recover import RECOVERY_VERSION

    learned = {"version": RECOVERY_VERSION, "rows": lessons.sha256, "seed": lessons.seed}
    return {"recovery": learned}


class Cache:
    """The cache of made versions, for one run.

    Args:
        root: Its folder; None to make everything anew.
        tell: Told, a line at a time, what the user should know.
        is_shared: Whether other processes of this run make the same versions.
    """

    def __init__(self, root: Path | None, *, tell: Tell, is_shared: bool = False) -> None:
        self.root = root
        self._tell = tell
        self._is_shared = is_shared
        self._has_warned = False

    @classmethod
    def of_user(cls, tell: Tell = lambda _: None) -> "Cache":
        """The cache that the environment names."""
        from auditor.dist import is_launched

        return cls(cache_folder(), tell=tell, is_shared=is_launched())

    def made(
        self,
        checkpoint: Checkpoint,
        spec: VariantSpec,
        placement: Placement,
        *,
        calibration: "Calibration | None" = None,
        lessons: "Lessons | None" = None,
    ) -> CompressedModel:
        """A version, from the cache where that keeps its kind; arguments and errors of `compress`.

        Its receipt says what it took when it was made.
        """
        if spec.over is not None:
            # What takes long is its base; the adapter is put over that in no time.
            from auditor.compress.unmerged import lay_over

            check_possible(checkpoint, spec)
            name = spec.canonical
            return lay_over(
                checkpoint, spec.over, placement, self.made, name, calibration=calibration
            )
        saved_as = spec.saved_as
        # Code that comes with a checkpoint decides what is made, and no fingerprint knows it.
        has_code = bool(checkpoint.load_args.get("trust_remote_code"))
        if self.root is None or saved_as is None or has_code:
            return compress(checkpoint, spec, placement, calibration=calibration, lessons=lessons)
        form = form_of(saved_as)
        wanted = Wanted(self.root, form, checkpoint, spec, placement, calibration, lessons)
        was_there = wanted.entry.manifest() is not None
        if (found := wanted.read()) is not None:
            self._tell(f"{spec.label}: taken from the cache")
            return replace(found, from_cache=True)
        try:
            lock = wanted.entry.locked(
                lambda: self._tell(f"{spec.label}: another process is at it")
            )
        except OSError as error:
            self._warn(spec, f"cannot be written ({first_line(error)})")
            return wanted.make()
        load_s, is_own = 0.0, False
        with lock:
            # Who has waited finds it made; who has found it damaged asks whether it still is.
            if not wanted.entry.is_whole(wanted.fingerprint, checked=was_there):
                made, is_own = wanted.make(), True
                try:
                    wanted.write(made)
                except FAILURES as error:
                    self._warn(spec, f"cannot be written ({first_line(error)})")
                    return made
                load_s = made.load_s
                del made
                _empty_devices()
        if (found := wanted.read()) is None:
            self._warn(spec, "does not give back what was written")
            return wanted.make()
        return replace(found, load_s=found.load_s + load_s, from_cache=not is_own)

    def _warn(self, spec: VariantSpec, what: str) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        who = "each process makes it by itself" if self._is_shared else "it is made in memory"
        self._tell(
            f"{spec.label}: {who}, and later runs make it anew, because the cache {self.root} "
            f"{what}; COMPLEAK_CACHE names another folder, or off"
        )


@dataclass(frozen=True)
class Wanted:
    """A version that is asked for: how it is made, read and written; arguments of `Cache.made`."""

    root: Path
    form: Form
    checkpoint: Checkpoint
    spec: VariantSpec
    placement: Placement
    calibration: "Calibration | None"
    lessons: "Lessons | None" = None

    @property
    def fingerprint(self) -> dict[str, Any]:
        """See `fingerprint_of`."""
        return fingerprint_of(
            self.checkpoint, self.spec, self.placement, self.calibration, self.lessons
        )

    @property
    def entry(self) -> Entry:
        """Its place in the cache."""
        return named(self.root, self.spec.label, self.fingerprint)

    def make(self) -> CompressedModel:
        """Make it in memory; errors of `compress`."""
        return compress(
            self.checkpoint,
            self.spec,
            self.placement,
            calibration=self.calibration,
            lessons=self.lessons,
        )

    def write(self, made: CompressedModel) -> None:
        """Put it into the cache; one of `FAILURES` where it cannot be."""
        # Where the texts come from, and their ids, are this run's and not the version's.
        self.entry.write(
            self.form.tensors(self.checkpoint, made),
            fingerprint=self.fingerprint,
            variant=self.spec.label,
            model=self.checkpoint.name,
            receipt=made.receipt.model_copy(update={"calibration": None}),
            settings=self.form.settings(made),
        )

    def read(self) -> CompressedModel | None:
        """Take it from the cache, all of it timed as loading; None where it is not there whole.

        Raises:
            ModelError: The original cannot be loaded.
        """
        begin, entry = time.perf_counter(), self.entry
        manifest = entry.manifest()
        if manifest is None or not entry.is_whole(self.fingerprint, checked=True):
            return None
        entry.touch()
        use = self.calibration.use if self.calibration is not None else None
        receipt = manifest.receipt.model_copy(update={"calibration": use})
        stored = Stored(receipt, manifest.settings, entry.tensors(manifest))
        try:
            found = self.form.restored(self.checkpoint, self.placement, stored)
        except FAILURES:
            return None
        return replace(found, load_s=time.perf_counter() - begin)


def _empty_devices() -> None:
    from auditor.scoring.variants import empty_devices

    empty_devices()
