"""A batch's memory: arrays of any library as numpy's, in memory that nobody else writes to.

jax gives a step numpy's own memory where it can (on a CPU, where an array begins at a multiple of
64 bytes) and reads larger arrays while the step is on its way, so a dataset that fills the same
buffers again would write into batches that are still to be read. `device_put(may_alias=False)` does
not help: it aliases numpy's memory all the same (jax 0.10).
"""

import jax
import numpy as np

from solstice.tree.pytree import PyTree

_TAKEN = (np.ndarray, np.generic, jax.Array)

# From so many bytes on, a copy begins where jax need not copy it once more.
_LARGE = 2**16
_ALIGNMENT = 64


def as_arrays(batch: PyTree) -> PyTree:
    """Return the batch with foreign arrays (TensorFlow's, torch's) as numpy ones, uncopied.

    numpy and jax arrays, numbers and anything that is no array stay as they are.

    >>> as_arrays((np.zeros(2), "a"))
    (array([0., 0.]), 'a')
    """
    # Usually nothing is to do, and a map is slow beside a small step.
    if all(map(_is_taken, jax.tree.leaves(batch))):
        return batch
    return jax.tree.map(_as_array, batch)


def own_arrays(batch: PyTree) -> PyTree:
    """Return the batch as `as_arrays` does, with copies of what is not jax's own.

    >>> buffer = np.zeros(2)
    >>> (mine,) = own_arrays((buffer,))
    >>> buffer[:] = 1
    >>> mine
    array([0., 0.])
    """
    # The usual forms by hand, in a quarter of the time.
    kind = type(batch)
    if kind is np.ndarray:
        return _own(batch)
    if kind is tuple or kind is list:
        return kind([own_arrays(part) for part in batch])
    if kind is dict:
        return {name: own_arrays(part) for name, part in batch.items()}
    leaves, structure = jax.tree.flatten(batch)
    return structure.unflatten([_own(leaf) for leaf in leaves])


def _is_taken(leaf: object) -> bool:
    return isinstance(leaf, _TAKEN) or not hasattr(leaf, "__array__")


def _as_array(leaf: PyTree) -> PyTree:
    return leaf if _is_taken(leaf) else np.asarray(leaf)


def _own(leaf: PyTree) -> PyTree:
    array = leaf if type(leaf) is np.ndarray else _as_array(leaf)
    if not isinstance(array, np.ndarray):
        return array
    if array.nbytes < _LARGE or type(array) is not np.ndarray or array.dtype.hasobject:
        return array.copy()
    memory = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy
