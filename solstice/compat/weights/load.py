"""Weights from anywhere into a network of any library."""

import os
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.model import Model, as_inputs, check_example
from solstice.compat.weights.leaves import model_leaves
from solstice.compat.weights.plan import Plan
from solstice.compat.weights.renaming import Renames, renamed
from solstice.compat.weights.report import LoadReport
from solstice.compat.weights.sources import read
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.tree.pytree import PyTree

_M = TypeVar("_M", bound=Model)


def load(
    model: _M,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    example: PyTree = None,
    rename: Renames = None,
    strict: bool = True,
    outputs: PyTree = None,
) -> tuple[_M, LoadReport]:
    r"""Return the model with the weights of a source, and a report of what went where.

    Arrays of the source's that have a leaf's own name and shape go there (all of a file that
    `compat.save` wrote do). The others are understood by their names' last parts and shapes, and
    a trace of the model says what each of its leaves is for: layers of one name go together, then
    the k-th layer of a form to the k-th such layer in order of use, then the likest names. Layouts
    are turned on the way. Where another array of the same form could have been meant, the report
    says so, and a warning.

    Args:
        model: An adapted network of any library, which stays as it is.
        source: The path of a `.safetensors` file or a folder of them (shards with their index), an
            `.npz`, a checkpoint of torch (`.pt`, `.pth`, `.ckpt`, `.bin`), Keras's `.weights.h5` or
            `.keras`, or the folder of an Orbax checkpoint; or a mapping of arrays, nested ones too,
            as a torch module's `state_dict()`. Nothing is unpickled.
        example: A batch's inputs, or as many `jax.ShapeDtypeStruct`, for the trace; a tuple is
            several. Needed where the model knows none (`model.example`) and names do not suffice.
        rename: New names for arrays before they are matched: from regular expressions, found
            anywhere in a name, to what takes the place of the match, or to None to leave the array
            out; or a function from a name to its new one, or to None. The layout goes by the old.
        strict: Whether what is left over on either side is an error, or is told in the report.
        outputs: What the network that the weights come from gives for `example` (which must be
            values then), in evaluation. Alike layers are exchanged until the model gives it too.

    Returns:
        The loaded model, each leaf in its own dtype, and the report, which prints as a table.

    Raises:
        DamagedFileError: A file is cut short, or not of the format that its name says.
        UnequalOutputsError: No assignment that was tried gives `outputs`.
        ImportError: A format needs a package that is not installed; the message says which.
        FileNotFoundError: There is no such file.
        TypeError: An argument is of another type, or the source holds something else than arrays.
        ValueError: Something is left over, or does not fit; `rename` matches nothing or makes two
            names one; a file is empty or of an unknown format.

    A torch network's weights, (out, in), go to Flax's kernels, (in, out):

    >>> import flax.linen as nn, numpy as np
    >>> from solstice import compat
    >>> x = np.ones((1, 3), np.float32)
    >>> model = compat.as_model(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]), x, key=0)
    >>> torchs = {"0.weight": np.ones((4, 3)), "0.bias": np.zeros(4)}
    >>> torchs |= {"2.weight": np.ones((2, 4)), "2.bias": np.zeros(2)}
    >>> model, report = compat.load(model, torchs)
    >>> print(report)
    LoadReport of the mapping
    <BLANKLINE>
    leaf                    from      how           turned
    params/layers_0/bias    0.bias    order of use  float64 to float32
    params/layers_0/kernel  0.weight  order of use  transposed (1, 0), float64 to float32
    params/layers_2/bias    2.bias    order of use  float64 to float32
    params/layers_2/kernel  2.weight  order of use  transposed (1, 0), float64 to float32
    >>> report.check(x, [[12.0, 12.0]])
    0.0
    """
    leaves = model_leaves(model)
    arguments.check_untraced((leaves, source, example, outputs), "load()")
    strict = arguments.flag(strict, "strict")
    inputs = _inputs(model, example, outputs)
    found = read(source)
    plan = Plan(model, found, renamed(found.arrays, rename))
    plan.match_names(leaves, sure=inputs is None)
    if plan.is_open:
        if inputs is None:
            leaf, name = plan.first_open
            raise InvalidValueError(
                f"example is expected to be a batch's inputs: names do not suffice here (the model "
                f"has {leaf!r} and {found.place} {name!r}), and this {type(model).__name__} does "
                f"not know what its inputs look like. Pass load(..., example=x), or say what "
                f"belongs together: rename=."
            )
        plan.match_uses(inputs)
    if outputs is not None:
        plan.settle(as_inputs(example), outputs)
    with warnings.catch_warnings():
        # What a cast loses is an error below.
        warnings.simplefilter("ignore", np.exceptions.ComplexWarning)
        warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning)
        loaded, report = plan.finish(strict=strict)
    _check_casts(report, found.arrays, model_leaves(loaded))
    return loaded, report


def _check_casts(
    report: LoadReport, arrays: Mapping[str, np.ndarray], leaves: Mapping[str, Any]
) -> None:
    """Raise where a leaf's dtype cannot hold the numbers that it got."""
    for row in report.rows:
        leaf = leaves[row.leaf]
        for name in row.sources:
            array = arrays[name]
            if not jnp.issubdtype(leaf.dtype, jnp.inexact) or array.dtype == leaf.dtype:
                continue
            lossy = (
                array.dtype.kind == "c" and leaf.dtype.kind != "c" and bool(np.imag(array).any())
            )
            if not lossy and (np.isfinite(leaf).all() or not np.isfinite(array).all()):
                continue
            why = "has imaginary parts" if lossy else "holds numbers that are infinite in it"
            raise InvalidValueError(
                f"{row.leaf} of the model is {leaf.dtype.name}, and {name!r} of {report.source}, "
                f"{array.dtype.name}, {why}. Give the model a wider dtype, or change the array."
            )


def _inputs(model: Model, example: PyTree, outputs: PyTree) -> PyTree:
    """Return what to trace the model with, or None."""
    if example is not None:
        check_example(example, "example")
        return example
    if outputs is not None:
        raise InvalidTypeError(
            f"example is expected to be the inputs that outputs, {describe(outputs)}, was computed "
            f"for; it is None."
        )
    return model.example
