"""Claims: only one run at a time writes checkpoints into a directory.

On a local disk, the claim is a lock of the operating system, which is released as soon as its
process ends, killed or not. An object store has no locks: there the claim is a file with its
holder, rewritten every few seconds; otherwise it counts as given up.
"""

import contextlib
import datetime
import json
import math
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from solstice.errors import DirectoryInUseError
from solstice.saving.stores import Local, Store, answered
from solstice.tree.pytree import PyTree
from solstice.tree.staging import locked

if TYPE_CHECKING:
    from filelock import FileLock

_FILE, _LOCK = "claim.json", ".lock"
# Seconds: how often a claim in an object store is rewritten, and how long without that until it
# counts as given up.
BEAT, GIVEN_UP = 10.0, 60.0


class Claim:
    """The right to write into a directory, held between `take` and `release`.

    Raises:
        DirectoryInUseError: By `take`: another run holds it.
        InvalidValueError: By `take`: the directory cannot be written.

    >>> import tempfile
    >>> from solstice.saving.stores import store
    >>> directory = tempfile.mkdtemp()
    >>> claim, other = Claim(store(directory)), Claim(store(directory))
    >>> claim.take()
    >>> try:
    ...     other.take()
    ... except DirectoryInUseError as error:
    ...     print("is written by another run" in str(error))
    True
    >>> claim.release()
    >>> other.take(), other.release()
    (None, None)
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock: FileLock | None = None
        self._token = ""
        self._ended: threading.Event | None = None
        self._lost = False

    def take(self) -> None:
        """Take the claim, or raise immediately."""
        if self._lock is not None or self._ended is not None:
            return
        take = self._take_lock if isinstance(self._store, Local) else self._take_lease
        answered(take, f"{self._store.place} cannot be written")

    def check(self) -> None:
        """Raise if another run has taken over the claim, because it was not renewed in time."""
        if self._lost:
            raise DirectoryInUseError(
                f"This run did not renew its claim for over {GIVEN_UP:.0f} s, and another one took "
                f"over {self._store.place}. Let one of them end."
            )

    def release(self) -> None:
        """Release the claim."""
        if self._lock is None and self._ended is None:
            return
        if self._ended is not None:
            self._ended.set()
            self._ended = None
        with contextlib.suppress(OSError):  # the directory may be gone
            if self._mine():
                self._store.write(_FILE, b"{}")
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _take_lock(self) -> None:
        home = Path(self._store.place)
        home.mkdir(parents=True, exist_ok=True)
        lock = locked(home / _LOCK)
        if lock is None:
            raise self._refusal()
        self._lock, self._token = lock, secrets.token_hex(8)
        self._store.write(_FILE, self._card())

    def _take_lease(self) -> None:
        holder = self._holder()
        if holder and not _is_dead(holder):
            if abs(_age(holder)) > GIVEN_UP:
                time.sleep(1.2 * BEAT)  # the other host's clock may be wrong: is it renewed?
            if abs(_age(holder)) <= GIVEN_UP or self._holder() != holder:
                raise self._refusal()
        self._token, self._lost = secrets.token_hex(8), False
        self._store.write(_FILE, self._card())
        time.sleep(0.1)  # of two that write at once, the later one has it
        if not self._mine():
            raise self._refusal()
        self._ended = threading.Event()
        threading.Thread(
            target=self._beat, args=(self._ended,), name="solstice-claim", daemon=True
        ).start()

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT):
            try:
                self._lost = not self._mine()
                if self._lost:
                    return
                self._store.write(_FILE, self._card())
            except Exception:  # noqa: BLE001 - the store may answer again next time
                continue

    def _card(self) -> bytes:
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        card = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        return json.dumps(card | {"beat": time.time(), "token": self._token}).encode()

    def _holder(self) -> dict[str, PyTree]:
        try:
            found = json.loads(self._store.read(_FILE))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _mine(self) -> bool:
        return self._holder().get("token") == self._token

    def _refusal(self) -> DirectoryInUseError:
        end = time.monotonic() + 1
        while not (holder := self._holder()) and time.monotonic() < end:
            time.sleep(0.02)  # it has just taken the lock and is about to write its name
        who = "process {pid} on {host}, since {since}".format_map(
            {"pid": "?", "host": "an unknown host", "since": "an unknown time"} | holder
        )
        pid, host, since = (holder.get(name) for name in ("pid", "host", "since"))
        return DirectoryInUseError(
            f"{self._store.place} is written by another run ({who}). Wait until it ends, end it, "
            f"or use another directory: two runs in one would mix their checkpoints.",
            pid=pid if isinstance(pid, int) else None,
            host=host if isinstance(host, str) else None,
            since=since if isinstance(since, str) else None,
        )


def _is_dead(holder: dict[str, PyTree]) -> bool:
    """Return whether a claim's process has ended, if this host can tell."""
    pid = holder.get("pid")
    if not isinstance(holder.get("beat"), int | float) or not isinstance(pid, int):
        return True  # it is another user's
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


def _age(holder: dict[str, PyTree]) -> float:
    """Return the seconds since a claim was written, if both clocks are right; inf if unreadable."""
    age = time.time() - holder["beat"]
    return age if math.isfinite(age) else math.inf
