"""A batch's memory: arrays of any library as numpy arrays that nothing else writes to.

On a CPU, jax shares numpy's memory if an array starts at a multiple of 64 bytes, and reads larger
arrays while the step runs. So a dataset that reuses its buffers would write into batches that are
still to be read. `device_put(may_alias=False)` does not help: it aliases numpy's memory too (jax
0.10).
"""

import jax
import numpy as np

from solstice.tree.pytree import PyTree

_TAKEN = (np.ndarray, np.generic, jax.Array)

# From this many bytes on, a copy is aligned so that jax need not copy it again.
_LARGE = 2**16
_ALIGNMENT = 64


def as_arrays(batch: PyTree) -> PyTree:
    """Return the batch with arrays of TensorFlow or torch as numpy arrays, uncopied.

    numpy and jax arrays, numbers and anything that is not an array do not change.

    >>> as_arrays((np.zeros(2), "a"))
    (array([0., 0.]), 'a')
    """
    # Usually there is nothing to do, and a map is slow compared with a small step.
    if all(map(_is_taken, jax.tree.leaves(batch))):
        return batch
    return jax.tree.map(_as_array, batch)


def own_arrays(batch: PyTree) -> PyTree:
    """Return the batch as `as_arrays` does, with copies of all but jax arrays.

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
