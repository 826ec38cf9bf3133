"""Checkpoints: an experiment and the state of its run, in directories that are whole or not there.

Each process writes its part of the arrays; a digest of each piece notices what no file system and
no library does, a flipped bit say. It knows neither the loop nor when to save.

A checkpoint is a directory: `checkpoint.json` (a digest, then what each leaf is, the digests of the
parts' indices, where the run stood), each process's `part-N` and `arrays-N`, as `solstice.parts`
writes them, and the `records-N` of what grows, as `solstice.journal` does.
"""

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any, TypeVar

import jax

from solstice import arguments
from solstice.errors import DamagedFileError, InvalidValueError, NoCheckpointError
from solstice.journal import Journal, restored
from solstice.parts import Piece, damaged, pieces, read_parts, table, write_part
from solstice.tree import digest, from_json, leaves_by_path, to_json
from solstice.tree.encoding import OBJECT, check_kinds, from_host, is_array
from solstice.tree.files import sync_directory

_T = TypeVar("_T")

_logger = logging.getLogger("solstice")

_FORMAT = 4
_NAME = re.compile(r"checkpoint-(\d{6,})")
_REST, _BEST, _START = "checkpoint.json", "best.json", "start.json"


class Checkpoints:
    """The checkpoints in a directory, each a directory of its own.

    >>> import tempfile, jax.numpy as jnp
    >>> store = Checkpoints(tempfile.mkdtemp())
    >>> store.write({"w": jnp.ones(2)}, {"epoch": 3})
    'checkpoint-000000'
    >>> store.read("checkpoint-000000", like={"w": jnp.zeros(2)})
    ({'w': Array([1., 1.], dtype=float32)}, {'epoch': 3})
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = arguments.path(directory, "directory")
        # The newest that is known to outlive a power cut.
        self._synced: str | None = None
        self._journal = Journal()

    def names(self) -> list[str]:
        """Return the names of all checkpoints, damaged ones too, oldest first."""
        try:
            return _checkpoints(os.listdir(self.directory))
        except (FileNotFoundError, NotADirectoryError):  # a save says so, and training goes on
            return []

    def write(self, tree: Any, rest: Any) -> str:
        """Write a new checkpoint and return its name; until it is whole, it has another name.

        Args:
            tree: A pytree, whose arrays are written in parts, other data beside them.
            rest: A tree of plain containers: where the run stands. Of a `Growing` in it, only what
                came since the last checkpoint is written.
        """
        leaves = leaves_by_path(tree)
        name = self.begin()
        index = self.write_part(name, 0, pieces(leaves.values()))
        self.finish(name, json.dumps(table(leaves)), [index], rest)
        return name

    def begin(self) -> str:
        """Make room for a new checkpoint and return its name."""
        name = f"checkpoint-{max(map(_number, self.names()), default=-1) + 1:06d}"
        unfinished = self._unfinished(name)
        try:
            os.mkdir(unfinished)
        except FileNotFoundError:  # not even the directory is there
            os.makedirs(unfinished)
        except FileExistsError:  # of a process that was killed
            shutil.rmtree(unfinished)
            os.mkdir(unfinished)
        return name

    def write_part(self, name: str, number: int, pieces: list[Piece], *, sync: bool = False) -> str:
        """Write a process's part of a checkpoint that was begun; return its index's digest."""
        return write_part(self._unfinished(name), number, pieces, sync=sync)

    def finish(
        self,
        name: str,
        leaves: str,
        indices: list[str],
        rest: Any,
        *,
        sync: bool = True,
    ) -> None:
        """Make a checkpoint, all parts of which are written, a whole one.

        Args:
            name: Its name.
            leaves: What `solstice.parts.table` says of the tree, as JSON.
            indices: The digest of each part's index.
            rest: As in `write`.
            sync: Whether it outlives a power cut, and not only the end of this process.
        """
        unfinished = self._unfinished(name)
        rest, records = self._journal.write(unfinished, rest)
        text = (
            f'{{"format": {_FORMAT}, "leaves": {leaves}, "parts": {json.dumps(indices)}, '
            f'"records": {json.dumps(records)}, "rest": {json.dumps(to_json(rest))}}}'
        )
        with open(f"{unfinished}/{_REST}", "wb") as file:
            file.write(f"{digest(text)}\n{text}".encode())
        if sync:
            _sync(unfinished)
        os.rename(unfinished, f"{self.directory}/{name}")
        self._journal.written(f"{self.directory}/{name}")
        (self.directory / _START).unlink(missing_ok=True)
        if sync:
            sync_directory(self.directory)
            self._synced = name

    def note_start(self, about: Any) -> None:
        """Note about a run that begins, until its first checkpoint is there, in one go."""
        self.directory.mkdir(parents=True, exist_ok=True)
        unfinished = self.directory / f".{_START}.tmp"
        unfinished.write_text(json.dumps(to_json(about)))
        unfinished.rename(self.directory / _START)

    def start(self) -> Any:
        """Return what was noted about a run that began here and never saved; None for none."""
        try:
            return from_json(json.loads((self.directory / _START).read_text()))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise damaged(self.directory / _START, "it is no JSON") from error

    def sync(self) -> None:
        """Have the newest checkpoint outlive a power cut."""
        name = self.names()[-1]
        _sync(self.directory / name)
        sync_directory(self.directory)
        self._synced = name

    def _unfinished(self, name: str) -> str:
        return f"{self.directory}/.{name}.tmp"

    def read(self, name: str, like: _T) -> tuple[_T, Any]:
        """Return what was written: the tree, placed as `like` is, and the rest.

        Raises:
            DamagedFileError: Something is missing or is not what was written.
            ValueError: It is a checkpoint of another tree than `like`; the leaf is named.
        """
        path = self.directory / name
        found = self._read_rest(path)
        wanted = leaves_by_path(like)
        entries = {entry["path"]: entry for entry in found["leaves"]}
        kinds = {leaf_path: entry["kind"] for leaf_path, entry in entries.items()}
        check_kinds(f"the checkpoint {path}", kinds, wanted, "exp")
        arrays = read_parts(path, found["parts"], found["leaves"])
        numbers = {entry["path"]: i for i, entry in enumerate(found["leaves"])}
        leaves = []
        for leaf_path, leaf in wanted.items():
            entry = entries[leaf_path]
            if entry["kind"] == OBJECT:
                leaves.append(leaf)
            elif is_array(leaf):
                leaves.append(from_host(arrays[numbers[leaf_path]], leaf, entry["impl"]))
            else:
                leaves.append(from_json(entry["value"]))
        return jax.tree.unflatten(jax.tree.structure(like), leaves), _rest_of(path, found)

    def read_rest(self, name: str) -> Any:
        """Return only where the run stood.

        Raises:
            DamagedFileError: Something is missing or is not what was written.
        """
        path = self.directory / name
        return _rest_of(path, self._read_rest(path))

    def prune(self, keep: int | None) -> None:
        """Delete the oldest but `keep` checkpoints, and unfinished ones.

        The best one is spared, and the newest that outlives a power cut.
        """
        there = os.listdir(self.directory)
        names = _checkpoints(there)
        spared = {*names[-keep:], self._synced} if keep else {*names}
        if _BEST in there and (best := self.best()):
            spared.add(best["checkpoint"])
        for name in names:
            if name not in spared:
                # Under another name, so that a kill meanwhile leaves nothing that looks whole.
                doomed = f".{name}.old"
                os.rename(f"{self.directory}/{name}", f"{self.directory}/{doomed}")
                there.append(doomed)
        for name in there:
            if name.startswith(".checkpoint-"):
                _delete(f"{self.directory}/{name}")

    def best(self) -> dict[str, Any] | None:
        """Return what is known of the best checkpoint: its name, the metric, its value."""
        path = self.directory / _BEST
        if not path.exists():
            return None
        try:
            return from_json(path.read_text())
        except ValueError as error:
            raise damaged(path, "it is no JSON") from error

    def set_best(self, **about: Any) -> None:
        """Say which checkpoint is the best, in one go."""
        unfinished = self.directory / f".{_BEST}.tmp"
        unfinished.write_text(to_json(about))
        unfinished.rename(self.directory / _BEST)

    def _read_rest(self, path: Path) -> dict[str, Any]:
        try:
            written, text = (path / _REST).read_text().split("\n", 1)
            if digest(text) != written:
                raise damaged(path / _REST, "its digest is another one")
            found = json.loads(text)
        except (OSError, ValueError) as error:
            if isinstance(error, DamagedFileError):
                raise
            raise damaged(path / _REST, f"{type(error).__name__}: {error}") from error
        if found["format"] != _FORMAT:
            raise InvalidValueError(
                f"{path} has the format {found['format']}, and this version of Solstice reads "
                f"{_FORMAT}. Restore it with the version that wrote it."
            )
        return found


def restore(directory: str | os.PathLike[str], exp: _T, which: str = "newest") -> _T:
    """Return the experiment of a checkpoint that `CheckpointingCallback` wrote.

    Args:
        directory: The callback's.
        exp: An experiment of the same structure, shapes and dtypes. Each array is placed where
            that of `exp` is, wherever it was when it was saved.
        which: "newest" (complete one), "best" (by the callback's `best=`), or a checkpoint's name.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        DamagedFileError: It is damaged, or all are.
        ValueError: It is a checkpoint of another experiment; the leaf is named.

    >>> import tempfile, jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=x, key=0
    ... )
    >>> saving = solstice.CheckpointingCallback(tempfile.mkdtemp())
    >>> trained = exp.train(3, [(x, y)], callbacks=[saving], progress=False)
    >>> again = solstice.restore(saving.directory, exp)
    >>> bool((again(x) == trained(x)).all())
    True
    """
    store = Checkpoints(directory)
    arguments.text(which, "which")
    if which == "newest":
        found = newest(store, exp)
        if found is None:
            raise NoCheckpointError(
                f"The directory {os.fspath(directory)!r} is expected to hold a checkpoint; there "
                f"is none in {store.directory}."
            )
        return found[1]
    if which == "best":
        best = store.best()
        if best is None:
            raise NoCheckpointError(
                f"No checkpoint in the directory {store.directory} is known as the best. Train "
                f"with CheckpointingCallback(..., best='accuracy')."
            )
        which = best["checkpoint"]
    if which not in store.names():
        raise NoCheckpointError(
            f"which is expected to be 'newest', 'best' or a checkpoint of {store.directory}, "
            f"{', '.join(store.names()) or 'which has none'}; it is {which!r}."
        )
    return store.read(which, exp)[0]


def newest(
    store: Checkpoints, like: _T, *, before: str | None = None
) -> tuple[str, _T, Any] | None:
    """Return the name, the tree and the rest of the newest complete checkpoint; None for none.

    Damaged ones are skipped with a warning that names them.

    Args:
        store: Where they are.
        like: A tree of the same structure.
        before: The name of one; only those before it are looked at.

    Raises:
        DamagedFileError: All are damaged.
        ValueError: It is a checkpoint of another tree than `like`.
    """
    names = [name for name in store.names() if before is None or _number(name) < _number(before)]
    last = None
    for name in reversed(names):
        try:
            return name, *store.read(name, like)
        except DamagedFileError as error:
            _logger.warning("A checkpoint is skipped: %s", error)
            last = error
    if not names:
        return None
    raise DamagedFileError(
        f"None of the {len(names)} checkpoints in {store.directory} can be read, so the run is not "
        f"started over in silence. Restore the directory from a copy, or give another one to "
        f"start anew."
    ) from last


def _rest_of(path: Path, found: dict[str, Any]) -> Any:
    return restored(path, from_json(found["rest"]), found.get("records", []))


def _checkpoints(names: list[str]) -> list[str]:
    return sorted(filter(_NAME.fullmatch, names), key=_number)


def _number(name: str) -> int:
    return int(name.removeprefix("checkpoint-"))


def _delete(directory: str) -> None:
    """Delete a directory, most often one of few files, for which shutil.rmtree does much more."""
    with os.scandir(directory) as entries:
        for entry in entries:
            (shutil.rmtree if entry.is_dir(follow_symlinks=False) else os.unlink)(entry.path)
    os.rmdir(directory)


def _sync(directory: str | Path) -> None:
    for path, _, names in os.walk(directory, topdown=False):
        for name in names:
            with open(Path(path, name), "rb") as file:
                os.fsync(file.fileno())
        sync_directory(Path(path))
