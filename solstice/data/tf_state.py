"""The state of a tf.data iterator: told, written as files' contents, and given back.

TensorFlow is never imported: who has an iterator of it has loaded it.
"""

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from solstice.errors import DamagedFileError
from solstice.tree.pytree import PyTree

# The one entry of a state, so that another library's is none.
_KEY = "tf.data"
_FILE = re.compile(r"iterator\.(index|data-\d+-of-\d+)|checkpoint")


def is_tf(iterator: Iterator[PyTree]) -> bool:
    """Say whether an iterator is tf.data's.

    >>> is_tf(iter([]))
    False
    """
    tf = sys.modules.get("tensorflow")
    return tf is not None and isinstance(iterator, tf.data.Iterator)


def is_tf_state(state: PyTree) -> bool:
    """Say whether a state is of a tf.data iterator.

    >>> is_tf_state({"tf.data": {}}), is_tf_state({"position": 3})
    (True, False)
    """
    return isinstance(state, dict) and set(state) == {_KEY}


class CannotSaveError(Exception):
    """An iterator that cannot save itself; the message says why."""


def tf_state(iterator: Iterator[PyTree]) -> dict[str, PyTree]:
    """Return an iterator's state.

    Raises:
        CannotSaveError: A part of its dataset cannot.
    """
    tf = sys.modules["tensorflow"]
    with tempfile.TemporaryDirectory(prefix="solstice-") as directory:
        try:
            tf.train.Checkpoint(iterator=iterator).write(str(Path(directory, "iterator")))
        except tf.errors.OpError as error:
            raise CannotSaveError(str(error.message).split("}} ")[-1]) from error
        return {_KEY: {path.name: path.read_bytes() for path in Path(directory).iterdir()}}


def set_tf_state(iterator: Iterator[PyTree], state: dict[str, PyTree]) -> None:
    """Have an iterator go on where a state was taken.

    Raises:
        DamagedFileError: The state names a file that no iterator has.
        Exception: TensorFlow's own, where the dataset is another one.
    """
    tf = sys.modules["tensorflow"]
    with tempfile.TemporaryDirectory(prefix="solstice-") as directory:
        for name, content in state[_KEY].items():
            if not _FILE.fullmatch(name):  # what a checkpoint says is no path to write to
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
    """Return how many generators of seeds have their state in an iterator's; 0 of another's.

    No interface of TensorFlow tells: the names of their fields in its files do.

    >>> seeds({"tf.data": {"iterator.data-00000-of-00001": b"num_random_samples"}}), seeds(None)
    (1, 0)
    """
    return _count(state, b"num_random_samples")


def repeats(state: PyTree) -> bool:
    """Say whether the dataset repeats itself, so that it draws seeds within a pass too.

    >>> repeats({"tf.data": {"iterator.data-00000-of-00001": b"Repeat"}}), repeats(None)
    (True, False)
    """
    return _count(state, b"Repeat") > 0


def _count(state: PyTree, word: bytes) -> int:
    if not is_tf_state(state):
        return 0
    return sum(content.count(word) for content in state[_KEY].values())
