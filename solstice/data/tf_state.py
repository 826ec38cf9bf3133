"""The state of a tf.data iterator: saved as the contents of files, and restored.

TensorFlow is never imported: it is loaded if there is an iterator of it.
"""

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from solstice.errors import DamagedFileError
from solstice.tree.pytree import PyTree

# The only entry of a state, which tells it from other libraries' states.
_KEY = "tf.data"
_FILE = re.compile(r"iterator\.(index|data-\d+-of-\d+)|checkpoint")


def is_tf(iterator: Iterator[PyTree]) -> bool:
    """Return whether an iterator is tf.data's.

    >>> is_tf(iter([]))
    False
    """
    tf = sys.modules.get("tensorflow")
    return tf is not None and isinstance(iterator, tf.data.Iterator)


def is_tf_state(state: PyTree) -> bool:
    """Return whether a state is of a tf.data iterator.

    >>> is_tf_state({"tf.data": {}}), is_tf_state({"position": 3})
    (True, False)
    """
    return isinstance(state, dict) and set(state) == {_KEY}


class CannotSaveError(Exception):
    """An iterator cannot save its state; the message says why."""


def tf_state(iterator: Iterator[PyTree]) -> dict[str, PyTree]:
    """Return an iterator's state.

    Raises:
        CannotSaveError: A part of its dataset cannot be saved.
    """
    tf = sys.modules["tensorflow"]
    with tempfile.TemporaryDirectory(prefix="solstice-") as directory:
        try:
            tf.train.Checkpoint(iterator=iterator).write(str(Path(directory, "iterator")))
        except tf.errors.OpError as error:
            raise CannotSaveError(str(error.message).split("}} ")[-1]) from error
        return {_KEY: {path.name: path.read_bytes() for path in Path(directory).iterdir()}}


def set_tf_state(iterator: Iterator[PyTree], state: dict[str, PyTree]) -> None:
    """Restore an iterator's state.

    Raises:
        DamagedFileError: The state names an unexpected file.
        Exception: An error of TensorFlow, if the dataset is another one.
    """
    tf = sys.modules["tensorflow"]
    with tempfile.TemporaryDirectory(prefix="solstice-") as directory:
        for name, content in state[_KEY].items():
            if not _FILE.fullmatch(name):  # never write to a path from a checkpoint
                raise DamagedFileError(f"The state of a tf.data iterator has no file {name!r}.")
            Path(directory, name).write_bytes(content)
        status = tf.train.Checkpoint(iterator=iterator).read(str(Path(directory, "iterator")))
        status.assert_consumed()


def size(state: dict[str, PyTree]) -> int:
    """Return how many bytes a state has.

    >>> size({"tf.data": {"iterator.index": b"abc"}})
    3
    """
    return sum(map(len, state[_KEY].values()))


def seeds(state: PyTree) -> int:
    """Return how many generators of seeds an iterator's state holds; 0 for other iterators.

    TensorFlow has no API for this; the names in its files show it.

    >>> seeds({"tf.data": {"iterator.data-00000-of-00001": b"num_random_samples"}}), seeds(None)
    (1, 0)
    """
    return _count(state, b"num_random_samples")


def repeats(state: PyTree) -> bool:
    """Return whether the dataset repeats, and so draws seeds within a pass too.

    >>> repeats({"tf.data": {"iterator.data-00000-of-00001": b"Repeat"}}), repeats(None)
    (True, False)
    """
    return _count(state, b"Repeat") > 0


def _count(state: PyTree, word: bytes) -> int:
    if not is_tf_state(state):
        return 0
    return sum(content.count(word) for content in state[_KEY].values())
