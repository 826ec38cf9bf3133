"""How far a network's outputs are from those expected, and what that points to."""

from collections.abc import Sequence

import jax
import numpy as np

from solstice.arguments import describe
from solstice.compat.weights.files.torch import from_tensor, is_tensor
from solstice.errors import InvalidValueError, UnequalOutputsError
from solstice.tree.pytree import PyTree

# Up to here, weights fit and something around them differs: an epsilon, the form of GELU.
HYPER_PARAMETERS = 1e-2


def as_expected(outputs: PyTree, found: PyTree) -> PyTree:
    """Return outputs that are expected as numpy's arrays, in the structure of those found.

    Raises:
        ValueError: They have another structure or other shapes; both are described.
    """
    try:
        if isinstance(found, np.ndarray):
            expected = from_tensor(outputs) if is_tensor(outputs) else np.asarray(outputs)
        else:
            expected = jax.tree.map(
                lambda leaf: from_tensor(leaf) if is_tensor(leaf) else np.asarray(leaf), outputs
            )
    except ValueError:  # lists of no shape
        expected = None
    shapes = [jax.tree.map(np.shape, tree) for tree in (found, expected)]
    if shapes[0] != shapes[1] or any(
        leaf.dtype.kind in "OSU" for leaf in jax.tree.leaves(expected)
    ):
        raise InvalidValueError(
            f"outputs is expected to be like the model's own outputs, {describe(found)}; it is "
            f"{describe(outputs)}. Pass what the other network gives for the same inputs."
        )
    return expected


def explained(
    found: float,
    tolerance: float,
    suspects: Sequence[str],
    epsilons: Sequence[float],
    *,
    tries: int = 0,
    layer: str | None = None,
    where: str = "",
) -> UnequalOutputsError:
    """Return the error for outputs that are too far apart, with what that points to."""
    used = ", ".join(f"{one:g}" for one in dict.fromkeys(epsilons))
    if found <= HYPER_PARAMETERS:
        why = (
            "A difference of this size says that the weights fit and a hyper-parameter differs: "
            f"the epsilon of a norm{f' (here {used})' if used else ''} or the form of GELU "
            "(by tanh, or exact)"
        )
    elif suspects:
        few = ", ".join(suspects[:4]) + (", ..." if len(suspects) > 4 else "")
        why = (
            f"Leaves may have each other's numbers: {few} have the form of others. Pass the "
            f"outputs to load(..., example=inputs, outputs=outputs), which tries, or name them: "
            f"rename="
        )
    else:
        why = (
            "Every leaf had one array that fits, so the networks differ: in an activation, the "
            "order of axes before a flatten, padding, or what is done to the inputs"
        )
    if tries > 1:
        why += f". {tries} assignments of alike layers were tried"
    return UnequalOutputsError(
        f"The loaded model's outputs are expected to be those given, up to {tolerance:g}; they "
        f"differ by {found:.2g} of the largest{where}. {why}.",
        difference=found,
        layer=layer,
    )
