"""How far a network's outputs are from those expected, and what that points to."""

from collections.abc import Sequence

import jax
import numpy as np

from solstice.arguments import describe
from solstice.errors import InvalidValueError, UnequalOutputsError
from solstice.tree.pytree import PyTree

# Up to here, weights fit and something around them differs: an epsilon, the form of GELU.
HYPER_PARAMETERS = 1e-2


def difference(found: PyTree, expected: PyTree) -> float:
    """Return the largest difference, as a part of the largest expected number (at least 1).

    Raises:
        ValueError: They differ in structure or shape.

    >>> difference(np.float32([1.0, 200.0]), np.float32([1.0, 202.0]))
    0.0099...
    """
    leaves, structure = jax.tree.flatten(found)
    wanted = jax.tree.leaves(expected)
    if len(wanted) == len(leaves):
        wanted = [np.asarray(leaf) for leaf in wanted]
    if [np.shape(leaf) for leaf in leaves] != [np.shape(leaf) for leaf in wanted]:
        raise InvalidValueError(
            f"outputs is expected to be like the model's own outputs, {describe(found)}; it is "
            f"{describe(expected)}. Pass what the other network gives for the same inputs."
        )
    del structure
    far = 0.0
    for one, other in zip(leaves, wanted, strict=True):
        a, b = np.asarray(one).astype(complex), np.asarray(other).astype(complex)
        if a.size:
            far = float(np.maximum(far, np.abs(a - b).max() / max(1.0, np.abs(b).max())))
    return far


def explained(
    found: float, tolerance: float, suspects: Sequence[str], epsilons: Sequence[float]
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
    return UnequalOutputsError(
        f"The loaded model's outputs are expected to be those given, up to {tolerance:g}; they "
        f"differ by {found:.2g} of the largest. {why}.",
        difference=found,
    )
