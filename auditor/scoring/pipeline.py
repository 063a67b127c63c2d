"""The versions of the model one after the other, and the next one made while one is scored.

Making a version is work of the host and of the device in turns, and so is scoring. On a GPU they
fill each other's gaps. On a CPU both want the same cores: on two, k-means of GPT-2 124M beside its
scoring took 0.89 of the time that both take one after the other, what multiplies matrices gains
nothing, and the pass is no longer as quick as it is alone. So there versions are made in turn.

Only a version that starts from the kept original is made ahead: transformers sets torch's default
dtype and patches its initialisers for the whole process while it reads a model, which a forward
pass in another thread would feel. What is stored does not depend on any of it.
"""

import ctypes
import time
from collections.abc import Mapping
from contextvars import Context, copy_context
from functools import partial
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from auditor.compress.kept import KEPT, Kept, give_up, kept_original
from auditor.dist import Processes
from auditor.memory import ran_out
from auditor.report.progress import Display
from auditor.results import Timing
from auditor.scoring.variants import Made, Pass, empty_devices, look, make, score_variant
from auditor.store import Manifest

if TYPE_CHECKING:
    from auditor.compress.checkpoint import Checkpoint, Placement
    from auditor.records import Records

# Kinds of devices on which the next version is made while one is scored.
AHEAD_ON = ("cuda",)


class Scored(NamedTuple):
    """All versions, scored and stored.

    Attributes:
        manifests: By version, in the order of the plan.
        timings: Where the time of this run went, in the same order.
    """

    manifests: dict[str, Manifest]
    timings: list[Timing]


def score_versions(
    plan: Mapping[str, Pass],
    records: "Records",
    *,
    checkpoint: "Checkpoint",
    placement: "Placement",
    batch_size: int | str,
    ranks: Processes,
    display: Display,
) -> Scored:
    """Score every version that is not stored yet, in the order of the plan.

    Args:
        plan: The versions by name.
        records: The records.
        checkpoint: The audited model, from which most of them are made.
        placement: Where it goes.
        batch_size: Records per batch at most, or "auto".
        ranks: The processes.
        display: Told what is going on.

    Raises:
        CompleakError: As `score_variant` does, in the order of the versions.
    """
    looked = {name: look(step) for name, step in plan.items()}
    # Nobody may write before everybody has looked: else two processes would share out two lists.
    ranks.wait()
    left = [step for name, step in plan.items() if looked[name].manifest is None]
    manifests: dict[str, Manifest] = {}
    timings: list[Timing] = []
    n_users = sum(step.beside for step in left)
    with kept_original(checkpoint, placement, n_users=n_users) as kept, Ahead(kept) as ahead:
        for name, step in plan.items():
            if left and step is left[0]:
                left.pop(0)
                if kept is not None:
                    kept.expect(is_user=step.beside, n_later=sum(one.beside for one in left))
            manifests[name], timing = score_variant(
                step,
                records,
                looked=looked[name],
                making=ahead.made,
                meanwhile=partial(ahead.begin, left, beside=step),
                batch_size=batch_size,
                ranks=ranks,
                display=display,
            )
            timings.append(timing)
    return Scored(manifests, timings)


class Ahead:
    """The next version, made by another thread while one is scored; one at most.

    Used as a context manager: nothing goes on in the background once the block has ended, for
    whatever reason.

    Args:
        kept: The original that versions are made from; without it, none is made ahead.
    """

    def __init__(self, kept: Kept | None) -> None:
        self._kept = kept
        self._step: Pass | None = None
        self._thread: Thread | None = None
        self._found: Made | None = None

    def begin(self, left: list[Pass], *, beside: Pass) -> None:
        """Begin to make the next version, where that is allowed and pays.

        Args:
            left: The versions that are not scored yet, in order.
            beside: The version that is scored meanwhile.
        """
        if self._kept is None or not left or not left[0].beside or left[0].after == beside.name:
            return
        if left[0].placement.device.partition(":")[0] not in AHEAD_ON:
            return
        lent = self._kept.lend(n_later=sum(one.beside for one in left[1:]))
        if lent is None:
            return
        context = copy_context()
        context.run(KEPT.set, lent)
        self._step = left[0]
        self._thread = Thread(target=self._work, args=(context, left[0]), name="make-ahead")
        self._thread.start()

    def made(self, step: Pass) -> Made:
        """A version whose turn it is: made ahead, or made now; errors are those of its `make`.

        Where memory runs out while the original is kept, it is given up and the version made again.
        """
        found, self._found = self._finished(step), None
        if found is not None:
            return found
        try:
            return make(step)
        except Exception as error:
            if not ran_out(error) or not give_up():
                raise
        # Outside the except block, so that the traceback no longer holds the tensors.
        empty_devices()
        return make(step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _work(self, context: Context, step: Pass) -> None:
        try:
            self._found = context.run(make, step)
        except Exception:  # it is made again in its turn, where its error is raised
            self._found = None

    def _finished(self, step: Pass) -> Made | None:
        """What the thread has made, if it was this version; waits for it."""
        if self._thread is None or self._step is not step:
            return None
        begin = time.perf_counter()
        self._thread.join()
        waited = time.perf_counter() - begin
        self._thread = self._step = None
        if self._found is None:
            empty_devices()
            return None
        return self._found._replace(hidden_s=max(0.0, self._found.seconds - waited))

    def _stop(self) -> None:
        """Stop the thread at its next step in Python, as Ctrl-C does with the main one."""
        thread = self._thread
        if thread is not None and thread.is_alive() and thread.ident is not None:
            # Of all exceptions this one ends a thread without a word.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
            )
            thread.join()
        self._thread = self._step = self._found = None
