"""Background: a thread of ours that keeps out of the way of the one that trains."""

import contextlib
import os


def stand_back() -> None:
    """Have the calling thread wait for a core to be free when it wakes up, where there is a way.

    Linux runs a thread that has waited for long at once, in place of one that has not: of the one
    that dispatches steps, say, which then waits for as long as a save takes Python. A thread of
    the policy SCHED_BATCH has the same share of the time, but it takes no other one's turn.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> writer = ThreadPoolExecutor(1, initializer=stand_back)
    """
    if not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    with contextlib.suppress(OSError):  # where it is forbidden, work is only slower
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
