"""Signs of life between the processes of a run, and meetings that name who does not come.

What is shown stands in the key-value store that the launcher's processes share anyway (torch's
TCPStore at MASTER_ADDR:MASTER_PORT), so that it works for every backend and needs no file system:

    sign/RANK       a number that grows, and what the process is doing
    meet/N/RANK     what the process says at the N-th meeting
    failed/RANK     why it has stopped
    left/RANK       it has gone, as it should

A process that waits looks at the signs of those who are missing. One whose sign has not changed for
`timeout_s` is given up and named. While a process scores, its sign changes with every batch; while
it does anything else (a library that compresses for an hour cannot be asked how far it is), with
every beat of a thread of its own.
"""

import json
import os
import socket
import time
from datetime import timedelta
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

from auditor.errors import RankError, first_line

if TYPE_CHECKING:
    from torch.distributed import PrefixStore  # type: ignore[attr-defined] # torch forgets to say so

BEAT_S = 5.0
# Between two looks at who has come; doubled from look to look.
POLL_S = (0.005, 0.2)
# How long the process whose store all use waits for the others to go.
LEAVE_S = 10.0
# A process that stops is waited for so long to hear whether the main one has said the same.
SAME_WORDS_S = 3.0


class Signs:
    """What one process shows, and what it sees of the others.

    Args:
        rank: Number of this process.
        world: How many there are.
        timeout_s: Seconds without a sign of life after which a process is given up.
    """

    def __init__(self, rank: int, world: int, *, timeout_s: float) -> None:
        self.rank = rank
        self.world = world
        self.timeout_s = timeout_s
        self._store = _connected()
        self._n_meetings = 0
        self._lock = Lock()
        self._what, self._counts = "starting", False
        self._n_signs = self._n_records = 0
        self._failed = False
        self._over = False
        self._news = Event()
        # A store's calls take turns: one that waits must not hold up the signs.
        own = _connected()
        self._beat = Thread(target=self._work, args=(own,), name="signs-of-life", daemon=True)
        self._beat.start()

    def doing(self, what: str, *, counts: bool) -> None:
        """See `Processes.doing`."""
        with self._lock:
            self._what, self._counts, self._n_records = what, counts, 0
            self._n_signs += 1
        self._news.set()

    def step(self, n_records: int) -> None:
        """See `Processes.step`."""
        with self._lock:
            self._n_records += n_records
            self._n_signs += 1

    def meet(self, item: Any) -> list[Any]:  # noqa: ANN401
        """What every process says at this meeting, by rank.

        Raises:
            RankError: A process has stopped, or shows no sign of life.
        """
        prefix = f"meet/{self._n_meetings}"
        self._n_meetings += 1
        what, counts = self._what, self._counts
        self.doing(f"waiting for the others after {what}", counts=False)
        said: dict[int, Any] = {}
        try:
            self._store.set(f"{prefix}/{self.rank}", json.dumps(item))
            self._gather(prefix, said)
        except RankError:
            raise
        except Exception as error:  # torch has no class of its own for a store that is gone
            raise self._store_is_gone(error) from error
        self.doing(what, counts=counts)
        return [said[rank] for rank in range(self.world)]

    def fail(self, message: str) -> bool:
        """See `Processes.fail`."""
        self._failed = True
        try:
            self._store.set(f"failed/{self.rank}", message)
            if self.rank == 0:
                return True
            end = time.monotonic() + SAME_WORDS_S
            while time.monotonic() < end:
                if self._store.check(["failed/0"]):
                    return bool(self._store.get("failed/0").decode() != message)
                time.sleep(POLL_S[1])
        except Exception:  # whoever cannot ask speaks
            return True
        return True

    def leave(self) -> None:
        """Go; the main process, whose store the others may still be reading, goes last."""
        self._over = True
        self._news.set()
        try:
            self._store.set(f"left/{self.rank}", "")
            if self.rank:
                return
            # Who has failed with the same words still asks here whether they were said.
            end = time.monotonic() + (SAME_WORDS_S if self._failed else LEAVE_S)
            others = [f"left/{rank}" for rank in range(1, self.world)]
            while time.monotonic() < end and not self._store.check(others):
                time.sleep(POLL_S[1])
        except Exception:  # nobody is left to be told
            return
        finally:
            # A thread that comes back from torch into an interpreter that ends aborts the process.
            self._beat.join(LEAVE_S)

    def _gather(self, prefix: str, said: dict[int, Any]) -> None:
        """Fill `said` with what every process says; raises `RankError` where one will not."""
        seen: dict[int, str] = {}
        changed = dict.fromkeys(range(self.world), time.monotonic())
        pause = POLL_S[0]
        while True:
            for rank in range(self.world):
                if rank not in said and self._store.check([f"{prefix}/{rank}"]):
                    said[rank] = json.loads(self._store.get(f"{prefix}/{rank}"))
            missing = [rank for rank in range(self.world) if rank not in said]
            if not missing:
                return
            for rank in missing:
                if self._store.check([f"failed/{rank}"]):
                    raise self._has_stopped(rank)
                sign = self._sign(rank)
                if sign != seen.get(rank):
                    seen[rank], changed[rank] = sign, time.monotonic()
            late = [r for r in missing if time.monotonic() - changed[r] > self.timeout_s]
            if late:
                raise self._given_up(late, seen)
            time.sleep(pause)
            pause = min(2 * pause, POLL_S[1])

    def _sign(self, rank: int) -> str:
        return self._store.get(f"sign/{rank}").decode() if self._is_known(rank) else ""

    def _is_known(self, rank: int) -> bool:
        return bool(self._store.check([f"sign/{rank}"]))

    def _given_up(self, late: list[int], seen: dict[int, str]) -> RankError:
        said = [
            f"{_name(rank, seen[rank])} showed none; last: {_words(seen[rank])}" for rank in late
        ]
        return RankError(
            f"every process must show a sign of life within --rank-timeout {self.timeout_s:g} s",
            seen="; ".join(said),
            fix="look at that process and its machine; the same command goes on, on any number of "
            "processes: every finished shard is kept",
        )

    def _has_stopped(self, rank: int) -> RankError:
        why = self._store.get(f"failed/{rank}").decode()
        error = RankError(
            f"all {self.world} processes must go on to the end",
            seen=f"{_name(rank, self._sign(rank))} has stopped: " + why.replace("\n", "\n  "),
            fix="mend that; the same command goes on: every finished shard is kept",
        )
        error.is_said = self.rank > 0
        return error

    def _store_is_gone(self, error: Exception) -> RankError:
        said = first_line(error)
        return RankError(
            "the process that holds the run together (rank 0, or its launcher) must be there",
            seen=f"rank {self.rank} on {socket.gethostname()} cannot reach it: {said}",
            fix="look at that process and its machine; the same command goes on, on any number of "
            "processes: every finished shard is kept",
        )

    def _work(self, store: "PrefixStore") -> None:
        """Show a sign at every change of stage and from time to time, over an own connection."""
        try:
            host = socket.gethostname()
            while not self._over:
                self._news.clear()
                with self._lock:
                    self._n_signs += not self._counts
                    many = f", {self._n_records:,} records" if self._counts else ""
                    sign = [self._n_signs, host, self._what + many]
                store.set(f"sign/{self.rank}", json.dumps(sign))
                self._news.wait(min(BEAT_S, self.timeout_s / 5))
        except Exception:  # the store went with its process, and so the run is over
            return


def _name(rank: int, sign: str) -> str:
    host = f" on {json.loads(sign)[1]}" if sign else ""
    return f"rank {rank}{host}"


def _words(sign: str) -> str:
    return json.loads(sign)[2] if sign else "nothing at all"


def _connected() -> "PrefixStore":
    """A connection to the store that the processes of this run share."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined] # as above

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # A launcher that starts the processes again after a failure must not meet the last one's words.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = TCPStore(
        address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60)
    )
    return PrefixStore(f"compleak/{attempt}", store)
