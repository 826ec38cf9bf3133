"""Staging folders: beside a path, for what is written there first and then gets the path's name.

A lock of the operating system, which ends with its process, shows that one is in use. So the next
writer to the same path recognises the folders that killed processes left, and deletes them.
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

# In a staging folder: what had the path's name, until something else has it.
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
def staged_beside(path: Path) -> Iterator[Path]:
    """Yield a new folder beside a path; it is deleted in the end, and so are those left before.

    What is moved to `staging / OLD / path.name` gets its name back if nothing else has got it.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "text"
    >>> with staged_beside(path) as staging:
    ...     _ = (staging / "new").write_text("all of it")
    ...     _ = (staging / "new").replace(path)
    >>> os.listdir(path.parent)
    ['text']
    """
    tidy(path)
    staging, lock = _taken(path)
    try:
        yield staging
    finally:
        if lock is not None:
            lock.release()
        _clear(staging, path)


def tidy(path: Path) -> None:
    """Delete the staging folders that killed processes left beside a path; those in use stay."""
    left = re.compile(rf"{re.escape(_head(path))}[0-9a-f]{{16}}\.tmp")
    try:
        names = os.listdir(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        return
    for staging in map(path.with_name, filter(left.fullmatch, names)):
        if staging.is_symlink():
            continue
        try:
            lock = locked(staging / _LOCK)
        except (OSError, NotImplementedError):  # nothing says that its process has ended
            continue
        if lock is not None:
            _clear(staging, path)
            lock.release()


def _taken(path: Path) -> "tuple[Path, FileLock | None]":
    """Return a new staging folder and its lock; no lock if the file system has none."""
    while True:
        staging = path.with_name(f"{_head(path)}{secrets.token_hex(8)}.tmp")
        staging.mkdir()
        try:
            lock = locked(staging / _LOCK)
        except (OSError, NotImplementedError):
            if staging.exists():
                return staging, None
            continue
        if lock is not None and (staging / _LOCK).exists():
            return staging, lock
        # Otherwise another process has just deleted it, as one that was left.


def _head(path: Path) -> str:
    # A name may have 255 bytes, up to 4 for each character.
    return f".{path.name[:50]}."


def _clear(staging: Path, path: Path) -> None:
    """Delete a staging folder; what had the path's name gets it back if nothing else has it."""
    kept = staging / OLD
    if kept.is_dir():
        if os.listdir(kept) != [path.name]:
            return  # of another path, whose name begins alike
        if not os.path.lexists(path):
            (kept / path.name).rename(path)
    shutil.rmtree(staging, ignore_errors=True)
