"""Checkpoints: an experiment and the state of its run, in directories that are whole or not there.

Orbax writes the arrays. What it cannot notice, a flipped bit say, a digest of each leaf does. It
knows neither the loop nor when to save.
"""

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from solstice.errors import DamagedFileError
from solstice.tree import digest, from_json, leaves_by_path, to_json
from solstice.tree.digests import array_digest
from solstice.tree.encoding import (
    OBJECT,
    check_kinds,
    from_host,
    is_array,
    key_impl,
    kind,
    to_host,
)

_T = TypeVar("_T")

_logger = logging.getLogger("solstice")

_FORMAT = 1
_NAME = re.compile(r"checkpoint-(\d{6,})")
_ARRAYS, _REST, _BEST = "arrays", "checkpoint.json", "best.json"


class Checkpoints:
    """The checkpoints in a directory, each a directory of its own.

    >>> import tempfile
    >>> store = Checkpoints(tempfile.mkdtemp())
    >>> store.write({"w": jnp.ones(2)}, {"epoch": 3})
    'checkpoint-000000'
    >>> store.read("checkpoint-000000", like={"w": jnp.zeros(2)})
    ({'w': Array([1., 1.], dtype=float32)}, {'epoch': 3})
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory).absolute()

    def names(self) -> list[str]:
        """Return the names of all checkpoints, damaged ones too, oldest first."""
        if not self.directory.is_dir():
            return []
        found = (path.name for path in self.directory.iterdir() if _NAME.fullmatch(path.name))
        return sorted(found, key=_number)

    def write(self, tree: Any, rest: Any) -> str:
        """Write a new checkpoint and return its name; until it is whole, it has another name.

        Args:
            tree: A pytree; its arrays are written by Orbax, other data beside them.
            rest: A tree of plain containers: where the run stands.
        """
        name = f"checkpoint-{max(map(_number, self.names()), default=-1) + 1:06d}"
        unfinished = self.directory / f".{name}.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        arrays, entries = {}, []
        for i, (path, leaf) in enumerate(leaves_by_path(tree).items()):
            entry: dict[str, Any] = {"path": path, "kind": kind(leaf)}
            if is_array(leaf):
                values = to_host(leaf)
                entry |= {"shape": values.shape, "dtype": values.dtype.name}
                entry |= {"impl": key_impl(leaf), "digest": array_digest(entry["kind"], values)}
                if values.size:  # Orbax refuses the others
                    arrays[str(i)] = values
            elif entry["kind"] != OBJECT:
                entry["value"] = to_json(leaf)
            entries.append(entry)
        if arrays:
            ocp, handler = _orbax()
            handler.save(unfinished / _ARRAYS, args=ocp.args.PyTreeSave(arrays))
        text = json.dumps({"format": _FORMAT, "leaves": entries, "rest": to_json(rest)})
        (unfinished / _REST).write_text(f"{digest(text)}\n{text}")
        unfinished.rename(self.directory / name)
        return name

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
        check_kinds(f"the checkpoint {path}", kinds, wanted)
        arrays = self._read_arrays(path, entries)
        leaves = []
        for leaf_path, leaf in wanted.items():
            entry = entries[leaf_path]
            if entry["kind"] == OBJECT:
                leaves.append(leaf)
            elif is_array(leaf):
                values = arrays[leaf_path]
                if array_digest(entry["kind"], values) != entry["digest"]:
                    raise _damaged(path, f"the bytes of {leaf_path!r} are not those written")
                leaves.append(from_host(values, leaf, entry["impl"]))
            else:
                leaves.append(from_json(entry["value"]))
        return jax.tree.unflatten(jax.tree.structure(like), leaves), from_json(found["rest"])

    def read_rest(self, name: str) -> Any:
        """Return only where the run stood.

        Raises:
            DamagedFileError: Something is missing or is not what was written.
        """
        return from_json(self._read_rest(self.directory / name)["rest"])

    def prune(self, keep: int | None) -> None:
        """Delete the oldest but `keep` checkpoints, never the best one, and unfinished ones."""
        names = self.names()
        spared = {*names[-keep:]} if keep else {*names}
        if best := self.best():
            spared.add(best["checkpoint"])
        for name in names:
            if name not in spared:
                # Under another name, so that a kill meanwhile leaves nothing that looks whole.
                doomed = self.directory / f".{name}.old"
                (self.directory / name).rename(doomed)
        for path in self.directory.glob(".checkpoint-*"):
            shutil.rmtree(path)

    def best(self) -> dict[str, Any] | None:
        """Return what is known of the best checkpoint: its name, the metric, its value."""
        path = self.directory / _BEST
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise _damaged(path, "it is no JSON") from error

    def set_best(self, **about: Any) -> None:
        """Say which checkpoint is the best, in one go."""
        unfinished = self.directory / f".{_BEST}.tmp"
        unfinished.write_text(json.dumps(about))
        unfinished.rename(self.directory / _BEST)

    def _read_rest(self, path: Path) -> dict[str, Any]:
        try:
            written, text = (path / _REST).read_text().split("\n", 1)
            if digest(text) != written:
                raise _damaged(path / _REST, "its digest is another one")
            found = json.loads(text)
        except (OSError, ValueError) as error:
            if isinstance(error, DamagedFileError):
                raise
            raise _damaged(path / _REST, f"{type(error).__name__}: {error}") from error
        if found["format"] != _FORMAT:
            raise ValueError(
                f"{path} has the format {found['format']}, and this version of Solstice reads "
                f"{_FORMAT}. Restore it with the version that wrote it."
            )
        return found

    def _read_arrays(self, path: Path, entries: dict[str, Any]) -> dict[str, np.ndarray]:
        ocp, handler = _orbax()
        shapes = {
            str(i): (leaf_path, np.empty(entry["shape"], jnp.dtype(entry["dtype"])))
            for i, (leaf_path, entry) in enumerate(entries.items())
            if "digest" in entry
        }
        arrays = {leaf_path: empty for leaf_path, empty in shapes.values() if not empty.size}
        full = {i: empty for i, (_, empty) in shapes.items() if empty.size}
        if not full:
            return arrays
        try:
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), full)
            args = ocp.args.PyTreeRestore(item=full, restore_args=as_numpy)
            read = handler.restore(path / _ARRAYS, args=args)
        except Exception as error:  # damage shows in whatever Orbax and its stores raise
            why = str(error).split(" [tensorstore_spec", 1)[0]
            raise _damaged(path / _ARRAYS, f"{type(error).__name__}: {why:.200}") from error
        return arrays | {shapes[i][0]: np.asarray(values) for i, values in read.items()}


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
    if which == "newest":
        found = newest(store, exp)
        if found is None:
            raise FileNotFoundError(f"There is no checkpoint in {store.directory}.")
        return found[1]
    if which == "best":
        best = store.best()
        if best is None:
            raise FileNotFoundError(
                f"No checkpoint in {store.directory} is known as the best. Train with "
                f"CheckpointingCallback(..., best=('accuracy', 'max'))."
            )
        which = best["checkpoint"]
    if which not in store.names():
        raise FileNotFoundError(
            f"There is no checkpoint {which!r} in {store.directory}; there are: "
            f"{', '.join(store.names()) or 'none'}."
        )
    return store.read(which, exp)[0]


def newest(store: Checkpoints, like: _T) -> tuple[str, _T, Any] | None:
    """Return the name, the tree and the rest of the newest complete checkpoint; None for none.

    Damaged ones are skipped with a warning that names them.

    Raises:
        DamagedFileError: All are damaged.
        ValueError: It is a checkpoint of another tree than `like`.
    """
    names = store.names()
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


def _orbax() -> tuple[Any, Any]:
    try:
        import orbax.checkpoint as ocp
    except ModuleNotFoundError as error:
        raise ImportError(
            "Checkpoints need the package orbax-checkpoint, which is not installed: "
            "pip install 'solstice[checkpoint]'. Without it, solstice.tree.save writes one file."
        ) from error
    # Each process is alone to Orbax, or a save by one would wait for all.
    alone = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        index = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=index,
            active_processes={index},
            barrier_sync_key_prefix=f"solstice-{index}",
        )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp, ocp.Checkpointer(handler, multiprocessing_options=alone)


def _number(name: str) -> int:
    return int(name.removeprefix("checkpoint-"))


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(f"{path} is damaged: {why}.")
