"""Checkpoints: an experiment and the state of its run, in directories that any tool can read.

A checkpoint is a directory with `arrays-N.safetensors`, one per process, with arrays by their
leaves' paths, and `checkpoint.json`, written last, with a description of each leaf, the size of
each file, the digest of each piece of an array, and the state of the run. Data that grows from one
checkpoint to the next is in `records-N`. A checkpoint is complete if the JSON is there and matches
the files.
"""

import json
import logging
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import jax

from solstice import arguments
from solstice.errors import (
    DamagedFileError,
    InvalidValueError,
    NoCheckpointError,
    ProcessError,
    SolsticeError,
)
from solstice.saving.arrays import Piece, check_places, named, pieces, placed
from solstice.saving.journal import Journal, restored
from solstice.saving.stores import LAST, Store, store
from solstice.sharding.processes import ticket, together
from solstice.tree.encoding import check_data, host_array
from solstice.tree.files import check_like, describe_leaf, value_of
from solstice.tree.json import from_json, to_json
from solstice.tree.kinds import OBJECT, is_array
from solstice.tree.naming import leaves_by_path
from solstice.tree.pytree import PyTree
from solstice.tree.tensors import (
    Tensors,
    array_digest,
    as_dtype,
    damaged,
    text_digest,
    untrusted,
    write_tensors,
)

_T = TypeVar("_T")

_logger = logging.getLogger("solstice")

_FORMAT = 5
_NAME = re.compile(r"checkpoint-(\d{6,})")
_TAKEN = re.compile(r"\.?checkpoint-(\d{6,})(\.tmp|\.old)?")
_FILE = re.compile(r"arrays-\d+\.safetensors")
_BEST, _START = "best.json", "start.json"
# checkpoint.json: a digest of the text between these and the last brace.
_HEAD, _MIDDLE = '{"digest": "', '", "checkpoint": '


class Checkpoints:
    """The checkpoints in a directory; each is a directory.

    Attributes:
        place: The directory's path or URL, one for all its aliases.
        seen: The names of the checkpoints that `newest` found there.

    >>> import tempfile, jax.numpy as jnp
    >>> there = Checkpoints(tempfile.mkdtemp())
    >>> there.write({"w": jnp.ones(2)}, {"epoch": 3})
    'checkpoint-000000'
    >>> there.read("checkpoint-000000", like={"w": jnp.zeros(2)})
    ({'w': Array([1., 1.], dtype=float32)}, {'epoch': 3})
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.store: Store = store(directory)
        self.place: str = self.store.place
        self.seen: list[str] = []
        self._journal = Journal()

    def names(self) -> list[str]:
        """Return the names of all checkpoints, also damaged ones, oldest first."""
        return sorted(filter(_NAME.fullmatch, self.store.names()), key=_number)

    def hint(self) -> str:
        """Return a hint if this directory is itself a checkpoint."""
        above, _, name = self.place.rpartition("/")
        if not _NAME.fullmatch(name) or name not in Checkpoints(above).names():
            return ""
        return (
            f" It is itself a checkpoint: pass the directory above it, {above}; restore() "
            f"reads this one by its name, which={name!r}."
        )

    def write(self, tree: PyTree, run: PyTree) -> str:
        """Write a new checkpoint and return its name.

        Args:
            tree: A pytree.
            run: The state of the run: a tree of plain containers, numbers, strings and arrays. On a
                local disk, only the new entries of a `Growing` are written; a store gets all of
                them.
        """
        leaves = leaves_by_path(tree)
        name = self.begin()
        file = self.write_arrays(name, 0, pieces(leaves), run)
        self.finish(name, json.dumps(describe_leaves(leaves)), [file], run)
        return name

    def begin(self) -> str:
        """Start a new checkpoint and return its unused name."""
        taken = map(_TAKEN.fullmatch, self.store.names(whole=False))
        name = f"checkpoint-{max((int(one[1]) for one in taken if one), default=-1) + 1:06d}"
        self.store.begin(name)
        return name

    def write_arrays(self, name: str, number: int, mine: list[Piece], run: PyTree = None) -> str:
        """Write a process's file of arrays; return its entry for `finish`, as JSON.

        Args:
            name: The name of the checkpoint that was started.
            number: The process.
            mine: Its pieces of the tree.
            run: For the first process, the state of the run, whose arrays are written too.
        """
        arrays, entries = named(mine)
        table = json.dumps(entries)
        of_run = {path: host_array(leaf) for path, leaf in _arrays_of(run).items()}
        arrays |= {_in_run(path): values for path, values in of_run.items()}
        file = f"arrays-{number}.safetensors"
        size = self.store.add(
            name, file, lambda path: write_tensors(path, arrays, {"pieces": table})
        )
        digests = {path: array_digest(values) for path, values in of_run.items()}
        return json.dumps({"name": file, "bytes": size, "pieces": entries, "run": digests})

    def finish(self, name: str, leaves: str, files: list[str], run: PyTree) -> None:
        """Complete a checkpoint after all its files are written.

        Args:
            name: Its name.
            leaves: What `describe_leaves` returned for the tree, as JSON.
            files: What `write_arrays` returned in each process.
            run: The state of the run.
        """
        state = {path: describe_leaf(leaf) for path, leaf in _arrays_of(run).items()}
        room, records = self.store.room(name), []
        if room is not None:
            run, records = self._journal.write(str(room), run)
        rest = to_json(jax.tree.map(lambda leaf: 0 if is_array(leaf) else leaf, run))
        text = (
            f'{{"format": {_FORMAT}, "leaves": {leaves}, "files": [{", ".join(files)}], '
            f'"arrays of the run": {json.dumps(state)}, "records": {json.dumps(records)}, '
            f'"run": {rest}}}'
        )
        whole = f"{_HEAD}{text_digest(text)}{_MIDDLE}{text}}}\n"
        self.store.finish(name, whole.encode())
        if room is not None:
            self._journal.written(f"{self.place}/{name}")
        self.store.remove(_START)

    def read(self, name: str, like: _T) -> tuple[_T, PyTree]:
        """Return what was written: the tree, placed like `like`, and the state of the run.

        Raises:
            DamagedFileError: Something is missing or was changed.
            ValueError: It is a checkpoint of another tree than `like`; the message names the leaf.
        """
        where = f"{self.place}/{name}"
        with untrusted(where):
            found = self._read_last(name)
            leaves, wanted = found["leaves"], leaves_by_path(like)
            check_like(f"the checkpoint {where}", leaves, wanted, "exp")
            with ExitStack() as opened:
                files = _Files(self, name, found["files"], opened)
                tree = [
                    _leaf(where, path, leaves[path], files, leaf) for path, leaf in wanted.items()
                ]
                return jax.tree.unflatten(jax.tree.structure(like), tree), files.run(found)

    def read_run(self, name: str) -> PyTree:
        """Return only the state of the run.

        Raises:
            DamagedFileError: Something is missing or was changed.
        """
        with untrusted(f"{self.place}/{name}"), ExitStack() as opened:
            found = self._read_last(name)
            return _Files(self, name, found["files"], opened).run(found)

    def prune(self, keep: int | None) -> None:
        """Delete all but the newest `keep` checkpoints and the best, and unfinished ones."""
        self.store.tidy()
        if keep is None:
            return
        try:
            best = self.best()
        except DamagedFileError as error:
            _logger.warning("The best checkpoint is no longer known: %s", error)
            best = None
        for name in self.names()[:-keep]:
            if best is None or name != best["checkpoint"]:
                try:
                    self.store.delete(name)
                except OSError as error:
                    _logger.warning("%s in %s cannot be deleted: %s", name, self.place, error)

    def note_start(self, about: Mapping[str, PyTree]) -> None:
        """Record a new run, atomically, until its first checkpoint exists."""
        self.store.write(_START, to_json(dict(about)).encode())

    def start(self) -> dict[str, PyTree] | None:
        """Return the record of a run that started here and never saved, or None.

        Raises:
            DamagedFileError: The note was changed.
        """
        where = f"{self.place}/{_START}"
        with untrusted(where):
            try:
                found = _parsed(where, self.store.read(_START).decode())
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                raise damaged(where, f"it cannot be read ({error})") from error
            if not isinstance(found, dict) or set(found) != {"sinks", "callbacks"}:
                raise damaged(where, "it is not the record of a new run")
            return found

    def best(self) -> dict[str, PyTree] | None:
        """Return the best checkpoint's name, metric and value.

        Raises:
            DamagedFileError: The file with them was changed.
        """
        where = f"{self.place}/{_BEST}"
        try:
            content = self.store.read(_BEST)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise damaged(where, f"it cannot be read ({error})") from error
        with untrusted(where):
            best = _parsed(where, content.decode())
            if not _NAME.fullmatch(best["checkpoint"]):
                raise damaged(where, f"it names {best['checkpoint']!r}, which is not a checkpoint")
            return best

    def set_best(self, **about: PyTree) -> None:
        """Record which checkpoint is the best, atomically."""
        self.store.write(_BEST, to_json(about).encode())

    def _read_last(self, name: str) -> dict[str, PyTree]:
        """Return the content of a checkpoint's JSON."""
        where = f"{self.place}/{name}/{LAST}"
        try:
            text = self.store.read(f"{name}/{LAST}").decode()
        except OSError as error:
            raise damaged(where, f"it cannot be read ({error})") from error
        head, middle, inner = text.partition(_MIDDLE)
        digest, inner = head.removeprefix(_HEAD), inner.removesuffix("}\n")
        if not middle or len(head) != len(_HEAD) + len(digest) or text_digest(inner) != digest:
            older = re.search(r'"format": (\d+)', text[:1000])
            if older and int(older[1]) < _FORMAT and not text.startswith(_HEAD):
                raise InvalidValueError(
                    f"{where} has the format {older[1]}, but this version of Solstice reads "
                    f"{_FORMAT}. Restore it with the version that wrote it."
                )
            raise damaged(where, "its digest does not match, so it was changed or truncated")
        found = json.loads(inner)
        if found["format"] != _FORMAT:
            raise InvalidValueError(
                f"{where} has the format {found['format']}, but this version of Solstice reads "
                f"{_FORMAT}. Restore it with the version that wrote it."
            )
        return found


class _Files:
    """The array files of one checkpoint, each opened when it is first read."""

    def __init__(
        self, there: Checkpoints, name: str, files: list[dict[str, PyTree]], opened: ExitStack
    ) -> None:
        self._there, self._name, self._stack = there, name, opened
        self._sizes = {file["name"]: file["bytes"] for file in files}
        self._digests = [file["run"] for file in files]
        self._open: dict[str, Tensors] = {}
        self.pieces: dict[str, list[dict[str, PyTree]]] = {}
        for file in files:
            if not _FILE.fullmatch(file["name"]):
                raise damaged(f"{there.place}/{name}", f"it names the file {file['name']!r}")
            for entry in file["pieces"]:
                self.pieces.setdefault(entry["leaf"], []).append({**entry, "file": file["name"]})

    def tensors(self, file: str) -> Tensors:
        """Return an open file after a check of its size."""
        if file not in self._open:
            where = f"{self._there.place}/{self._name}/{file}"
            try:
                path = self._stack.enter_context(self._there.store.open(self._name, file))
                size = path.stat().st_size
            except OSError as error:
                raise damaged(where, f"it cannot be read ({error})") from error
            if size != self._sizes[file]:
                raise damaged(where, f"it has {size} bytes instead of {self._sizes[file]}")
            self._open[file] = self._stack.enter_context(Tensors.open(path, where))
        return self._open[file]

    def run(self, found: Mapping[str, PyTree]) -> PyTree:
        """Return the state of the run, with its arrays."""
        where = f"{self._there.place}/{self._name}/{LAST}"
        tree = _parsed(where, json.dumps(found["run"]))
        if found["records"]:
            tree = restored(Path(self._there.place, self._name), tree, found["records"])
        state = found["arrays of the run"]
        if not state:
            return tree
        file, digests = self.tensors("arrays-0.safetensors"), self._digests[0]
        arrays = {
            path: file.read(
                _in_run(path), as_dtype(about["dtype"]), tuple(about["shape"]), digests[path]
            )
            for path, about in state.items()
        }
        leaves = [arrays.get(path, leaf) for path, leaf in leaves_by_path(tree).items()]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def describe_leaves(leaves: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Return a checkpoint's description of each leaf of a tree, by path.

    Raises:
        TypeError: One is an array of something other than numbers.
    """
    check_data(dict(leaves))
    return {path: describe_leaf(leaf) for path, leaf in leaves.items()}


def restore(directory: str | os.PathLike[str], exp: _T, which: str = "newest") -> _T:
    """Return the experiment of a checkpoint that `CheckpointingCallback` wrote.

    Args:
        directory: The callback's directory: a path or a URL.
        exp: An experiment of the same structure, shapes and dtypes. Each array is placed where that
            of `exp` is, no matter where it was when saved.
        which: "newest" (complete one), "best" (by the callback's `best=`), or a checkpoint's name.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        DamagedFileError: It is damaged, or all of them are.
        ValueError: It is a checkpoint of another experiment; the message names the leaf.

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
    there = Checkpoints(directory)
    arguments.text(which, "which")
    if which == "newest":
        found = newest(there, exp)
        if found is None:
            raise NoCheckpointError(
                f"The directory {os.fspath(directory)!r} is expected to hold a checkpoint; there "
                f"is none in {there.place}.{there.hint()}"
            )
        return found[1]
    if which == "best":
        best = there.best()
        if best is None:
            raise NoCheckpointError(
                f"No checkpoint in the directory {there.place} is known as the best. Train with "
                f"CheckpointingCallback(..., best='accuracy')."
            )
        which = best["checkpoint"]
    if which not in there.names():
        raise NoCheckpointError(
            f"which is expected to be 'newest', 'best' or a checkpoint of {there.place}, "
            f"{', '.join(there.names()) or 'which has none'}; it is {which!r}."
        )
    return _agreed(there, which, exp)[0]


def newest(
    there: Checkpoints, like: _T, *, before: str | None = None
) -> tuple[str, _T, PyTree] | None:
    """Return the name, the tree and the run's state of the newest complete checkpoint, or None.

    Damaged ones are skipped, with a warning.

    Args:
        there: The checkpoints.
        like: A tree of the same structure.
        before: The name of one; only earlier ones are considered.

    Raises:
        DamagedFileError: All are damaged.
        ValueError: It is a checkpoint of another tree than `like`.
    """
    there.seen = there.names()
    names = [n for n in there.seen if before is None or _number(n) < _number(before)]
    last = None
    for name in reversed(names):
        try:
            return name, *_agreed(there, name, like)
        except DamagedFileError as error:
            _logger.warning("A checkpoint is skipped: %s", error)
            last = error
    if not names:
        return None
    raise DamagedFileError(
        f"None of the {len(names)} checkpoints in {there.place} can be read, so the run is not "
        f"started over silently. Restore the directory from a copy, or pass another one to "
        "start from the beginning.",
        path=str(there.place),
    ) from last


def _agreed(there: Checkpoints, name: str, like: _T) -> tuple[_T, PyTree]:
    """Read a checkpoint; if processes share its arrays, all of them succeed or all fail.

    Each reads other pieces, so one may find damage that the others do not.
    """
    leaves = jax.tree.leaves(like)
    if all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        return there.read(name, like)
    found: list[tuple[_T, PyTree]] = []

    def read() -> str:
        found.append(there.read(name, like))
        return ""

    try:
        together(f"read-{ticket()}", read)
    except ProcessError as error:
        raise damaged(
            f"{there.place}/{name}", f"not all processes can read it ({error})"
        ) from error
    return found[0]


def _leaf(where: str, path: str, about: dict[str, PyTree], files: _Files, like: PyTree) -> PyTree:
    if about["kind"] == OBJECT:
        return like
    if "dtype" not in about:
        return value_of(where, path, about)
    shape, dtype = tuple(about["shape"]), as_dtype(about["dtype"])
    entries = files.pieces.get(path, [])
    check_places(where, path, shape, entries)

    def read(entry: Mapping[str, PyTree]) -> PyTree:
        file = files.tensors(entry["file"])
        return file.read(entry["name"], dtype, tuple(entry["shape"]), entry["digest"])

    return placed(entries, read, about | {"numpy": dtype}, like)


def _parsed(where: str, text: str) -> PyTree:
    try:
        return from_json(text)
    except SolsticeError as error:
        raise damaged(where, f"it is not what tree.to_json writes ({error})") from error


def _arrays_of(run: PyTree) -> dict[str, PyTree]:
    return {path: leaf for path, leaf in leaves_by_path(run).items() if is_array(leaf)}


def _in_run(path: str) -> str:
    return f"run:{path}"


def _number(name: str) -> int:
    return int(name.removeprefix("checkpoint-"))
