"""What a process does that meets others, in a launcher's environment.

It prints what it was told as JSON, or the error, on one line.
"""

import json
import os
import signal
import time

from auditor.dist import processes
from auditor.errors import CompleakError, StoreError


def play(case: str, timeout_s: float) -> object:
    ranks = processes(timeout_s)
    with ranks.together():
        ranks.wait()
        last = ranks.rank == ranks.world - 1
        ranks.doing(f"case {case}", counts=case in ("stuck", "slow-steps"))
        time.sleep(0.2)  # the sign of this stage goes out
        if last and case == "silent":
            os.kill(os.getpid(), signal.SIGSTOP)
        if last and case == "dead":
            os.kill(os.getpid(), signal.SIGKILL)
        if last and case in ("busy", "stuck"):  # longer than the time-out, and alive
            time.sleep(2.5 * timeout_s)
        if last and case == "slow-steps":
            for _ in range(5):
                time.sleep(0.5 * timeout_s)
                ranks.step(7)
        if last and case == "failed":
            raise StoreError("the disk must have room", seen="none", fix="make some")
        if case == "all-failed":
            raise StoreError("the disk must have room", seen="none", fix="make some")
        if last and case == "defect":
            raise ZeroDivisionError("by zero")
        return ranks.tell_all({"rank": ranks.rank, "local": ranks.local_rank})


def play_and_tell(arguments: list[str]) -> int:
    """Play a case with a time-out; returns the exit code."""
    case, timeout_s = arguments
    try:
        print(json.dumps(play(case, float(timeout_s))))
    except CompleakError as error:
        if error.is_said:
            return 2
        print(json.dumps(str(error)))
        return 2
    return 0
