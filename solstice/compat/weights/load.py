"""Loads weights from any source into a network of any library."""

import os
import warnings
from collections.abc import Iterable, Mapping, Set
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.model import Model, as_inputs, check_example
from solstice.compat.surgery.wrapped import WrappedModel
from solstice.compat.weights.files.sources import Source, read
from solstice.compat.weights.joined import joined
from solstice.compat.weights.leaves import model_leaves
from solstice.compat.weights.plan import Plan
from solstice.compat.weights.renaming import Renames, renamed
from solstice.compat.weights.report import LoadReport
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.tree.pytree import PyTree

_M = TypeVar("_M", bound=Model)
# The parts of a weight in the files of wrapped models: of compat.lora, and of compat.quantize.
_WRAPPED = {"base", "a", "b", "scale"}, {"values", "scale"}


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

    An array with the name and shape of a leaf goes there; in a file from `compat.save`, all do. For
    the others, names and shapes show the role of an array, and a trace of the model shows the role
    of a leaf. Layers with equal names are matched first, then the k-th layer of a kind with the
    k-th in order of use, then the most similar names. Layouts are converted. If another array of
    the same kind is possible, the report and a warning say so.

    Args:
        model: An adapted network of any library; it does not change. A wrapped one (`compat.lora`,
            `compat.quantize`) takes only what `compat.save` wrote of a model like it.
        source: The path of a `.safetensors` file or a folder of them (shards with their index), an
            `.npz`, a torch checkpoint (`.pt`, `.pth`, `.ckpt`, `.bin`), Keras's `.weights.h5` or
            `.keras`, or the folder of an Orbax checkpoint; or a mapping of arrays, flat or nested,
            such as a torch module's `state_dict()`. Nothing is unpickled.
        example: A batch of inputs, or their `jax.ShapeDtypeStruct`s, for the trace; several inputs
            as a tuple. Needed if the model has no `model.example` and not all names match.
        rename: New names for arrays before they are matched: from regular expressions, which match
            anywhere in a name, to their replacements, or to None to drop the array; or a function
            from a name to the new one, or to None. The old name determines the layout.
        strict: Whether leftovers on either side are an error; otherwise the report lists them, and
            averages of other arrays (`ema.`, `model_ema.`) are left out.
        outputs: The original network's outputs for `example`, in evaluation; `example` must then be
            arrays. Layers of equal shapes are swapped until the model gives the same outputs.

    Returns:
        The loaded model, each leaf in its own dtype, and the report, which prints as a table.

    Raises:
        DamagedFileError: A file is truncated, or its format does not match its suffix.
        UnequalOutputsError: No tried assignment gives `outputs`.
        ImportError: A format needs a package that is not installed; the message says which.
        FileNotFoundError: There is no such file.
        TypeError: An argument has a wrong type, or the source holds something other than arrays.
        ValueError: Something is unmatched or does not fit; `rename` matches nothing or gives two
            arrays one name; a file is empty or of an unknown format.

    Weights of torch are (out, in), kernels of Flax (in, out):

    >>> import flax.linen as nn, numpy as np
    >>> from solstice import compat
    >>> x = np.ones((1, 3), np.float32)
    >>> model = compat.as_model(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]), x, key=0)
    >>> state_dict = {"0.weight": np.ones((4, 3)), "0.bias": np.zeros(4)}
    >>> state_dict |= {"2.weight": np.ones((2, 4)), "2.bias": np.zeros(2)}
    >>> model, report = compat.load(model, state_dict)
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
    own = {model.library_name(leaf) for leaf in leaves}
    own |= {*leaves, *(name.replace("/", ".") for name in own)}
    found, reasons = joined(read(source), own)
    names = renamed(found.arrays, rename)
    wrapped = isinstance(model, WrappedModel)
    if not wrapped:
        _check_bare(found, names, own)
    plan = Plan(model, found, names, reasons)
    plan.match_names(leaves, sure=inputs is None or wrapped)
    if wrapped:
        _check_wrapped(plan, leaves, strict=strict)
    if plan.is_open:
        if inputs is None:
            leaf, name = plan.first_open
            raise InvalidValueError(
                f"example is expected to be a batch's inputs: names are not enough here (the model "
                f"has {leaf!r} and {found.place} {name!r}), and this {type(model).__name__} does "
                f"not know the shapes of its inputs. Pass load(..., example=x), or rename the "
                f"arrays: rename=."
            )
        plan.match_uses(inputs, averaged=strict)
    if outputs is not None:
        plan.settle(as_inputs(example), outputs)
    with warnings.catch_warnings():
        # Values lost in a cast raise an error below.
        warnings.simplefilter("ignore", np.exceptions.ComplexWarning)
        warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning)
        loaded, report = plan.finish(strict=strict)
    _check_casts(report, found.arrays, model_leaves(loaded))
    return loaded, report


def _check_casts(
    report: LoadReport, arrays: Mapping[str, np.ndarray], leaves: Mapping[str, Any]
) -> None:
    """Raise if a leaf's dtype cannot hold its new values."""
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


def _check_bare(source: Source, names: Mapping[str, str], own: Set[str]) -> None:
    """Raise if arrays are those that a wrapped model computes a weight from.

    Raises:
        ValueError: The message names the weight.
    """
    nodes: dict[str, set[str]] = {}
    for name in names:
        weight, _, part = name.rpartition("/")
        nodes.setdefault(weight, set()).add(part)
    for weight, parts in nodes.items():
        # The base of LoRA may be quantized, so its parts are below it.
        kinds = parts, parts | {"base"} if f"{weight}/base" in nodes else parts
        if any(one in _WRAPPED for one in kinds) and f"{weight}/scale" not in own:
            raise InvalidValueError(
                f"source is expected to hold the weights of this network; {source.place} was saved "
                f"from a wrapped model (compat.lora, compat.quantize): {weight!r} has the parts "
                f"{', '.join(sorted(parts))}. Wrap the model in the same way before you load, or "
                f"save compat.merge(model) instead."
            )


def _check_wrapped(plan: Plan, leaves: Iterable[str], *, strict: bool) -> None:
    """Raise unless all names match: a trace cannot distinguish a base weight from its factors.

    Raises:
        ValueError: The message names the first unmatched leaf or array.
    """
    left = next(iter(plan.rest), None)
    missing = next((leaf for leaf in leaves if leaf not in plan.by_name), None)
    if left is None and (missing is None or not strict):
        return
    found = f"the model has {missing!r}" if missing else "the model has no leaf for its arrays"
    found += f", and {plan.source.place} has {left!r}" if left else ""
    raise InvalidValueError(
        f"source is expected to have the names and shapes of this WrappedModel, as compat.save "
        f"writes them; {found}. Load into the network before compat.lora or compat.quantize, or "
        f"merge the model first: load(compat.merge(model), ...)."
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
