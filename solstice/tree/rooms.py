"""Rooms: a folder beside a path, for what is written first and then gets the path's name.

A lock of the operating system, which ends with its process, says that a room is in use. So whoever
writes to the same path next can tell what killed processes left, and removes it.
"""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from solstice.tree.tensors import packages

if TYPE_CHECKING:
    from filelock import FileLock

# The folder in a room for what had the path's name, until something else has it.
OLD = "old"
_LOCK = ".lock"


def locked(path: Path) -> "FileLock | None":
    """Return a lock on a file, held until it is released or the process ends; None if it is held.

    Raises:
        OSError, NotImplementedError: The file system has no locks, or the file cannot be written.
        MissingPackageError: A package is not installed.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "lock"
    >>> lock = locked(path)
    >>> locked(path) is None
    True
    >>> lock.release()
    """
    packages()
    import filelock

    lock = filelock.FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        return None
    return lock


@contextlib.contextmanager
def room_beside(path: Path) -> Iterator[Path]:
    """Yield a new folder beside a path; it is deleted in the end, and so are those left before.

    What is moved to `room / OLD / path.name` gets its name back if nothing else has got it.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "text"
    >>> with room_beside(path) as room:
    ...     _ = (room / "new").write_text("all of it")
    ...     _ = (room / "new").replace(path)
    >>> os.listdir(path.parent)
    ['text']
    """
    tidy(path)
    room, lock = _taken(path)
    try:
        yield room
    finally:
        if lock is not None:
            lock.release()
        _clear(room, path)


def tidy(path: Path) -> None:
    """Delete the rooms beside a path that killed processes left; those in use stay."""
    left = re.compile(rf"{re.escape(_head(path))}[0-9a-f]{{16}}\.tmp")
    try:
        names = os.listdir(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        return
    for room in map(path.with_name, filter(left.fullmatch, names)):
        if room.is_symlink():
            continue
        try:
            lock = locked(room / _LOCK)
        except (OSError, NotImplementedError):  # nothing says that its process has ended
            continue
        if lock is not None:
            _clear(room, path)
            lock.release()


def _taken(path: Path) -> "tuple[Path, FileLock | None]":
    """Return a new room and its lock; None where the file system has no locks."""
    while True:
        room = path.with_name(f"{_head(path)}{secrets.token_hex(8)}.tmp")
        room.mkdir()
        try:
            lock = locked(room / _LOCK)
        except (OSError, NotImplementedError):
            if room.exists():
                return room, None
            continue
        if lock is not None and (room / _LOCK).exists():
            return room, lock
        # Otherwise another process has just deleted it, as one that was left.


def _head(path: Path) -> str:
    # A name may have 255 bytes, up to 4 for each character.
    return f".{path.name[:50]}."


def _clear(room: Path, path: Path) -> None:
    """Delete a room, but for what no other thing has replaced."""
    kept = room / OLD
    if kept.is_dir():
        if os.listdir(kept) != [path.name]:
            return  # of another path, whose name begins alike
        if not os.path.lexists(path):
            (kept / path.name).rename(path)
    shutil.rmtree(room, ignore_errors=True)
