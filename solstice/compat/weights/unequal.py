"""Likely causes of unequal outputs of two networks, for error messages."""

from collections.abc import Sequence

from solstice.compat.weights.uses import Trace
from solstice.errors import UnequalOutputsError
from solstice.tree.names import few

# Up to here, weights fit and something around them differs: an epsilon, the form of GELU.
_HYPER_PARAMETERS = 1e-2
# The same for weights drawn at random, with which such differences are larger.
_HYPER_PARAMETERS_DRAWN = 1e-1
_ELSEWHERE = (
    "in an activation, the order of axes before a flatten, padding, or preprocessing of the inputs"
)
# Operations by which activations differ.
_ACTIVATIONS = "cos", "erf", "erfc", "exp", "log1p", "logistic", "max", "sin", "tanh"


def explained(
    found: float,
    tolerance: float,
    suspects: Sequence[str],
    epsilons: Sequence[float],
    *,
    tries: int | None = None,
    fixed: int = 0,
    layer: str | None = None,
    where: str = "",
) -> UnequalOutputsError:
    """Return the error for outputs that are too far apart, with the likely cause.

    Args:
        found: How far apart they are.
        tolerance: What is allowed.
        suspects: Leaves that another array fits too, or this one in another layout.
        epsilons: Of the network's norms.
        tries: How many ways to match `load` has tried; None if it was not given outputs.
        fixed: How many leaves it never tries otherwise, as their names are exact.
        layer: The first layer that differs, if known.
        where: Words about it.
    """
    some = few(list(dict.fromkeys(suspects)), 4)
    used = ", ".join(f"{one:g}" for one in dict.fromkeys(epsilons))
    if found <= _HYPER_PARAMETERS:
        why = (
            "A difference of this size means that the weights fit and a hyper-parameter differs: "
            f"the epsilon of a norm{f' (here {used})' if used else ''} or the variant of GELU "
            "(by tanh, or exact)"
        )
    elif tries is not None and tries > 1:
        of = f" of {some}" if suspects else ""
        why = (
            f"{tries} ways to match and to lay out the arrays{of} were tried, and none gives "
            f"these outputs. So the outputs are of other weights or inputs, or the networks "
            f"differ: {_ELSEWHERE}. If only the match is wrong, name the layers: rename="
        )
    elif suspects and tries is None:
        why = (
            f"Leaves may be swapped: {some} have the form of others, or fit in "
            f"another layout. Pass the outputs to load(..., example=inputs, outputs=outputs), "
            f"which tries swaps, or name them: rename="
        )
    else:
        why = (
            f"Every leaf had one array that fits, so the outputs are of other weights or inputs, "
            f"or the networks differ: {_ELSEWHERE}"
        )
    if fixed:
        why += (
            f". {fixed} arrays have exactly the model's own names and shapes; those are never "
            f"swapped"
        )
    return UnequalOutputsError(
        f"The loaded model's outputs are expected to be those given, up to {tolerance:g}; they "
        f"differ by {found:.2g} of the largest{where}. {why}.",
        difference=found,
        layer=layer,
    )


def causes(gap: float, model: Trace, like: Trace) -> str:
    """Describe why two traced networks may differ by a gap, and what to do.

    Args:
        gap: How far their outputs are apart, as `proof.difference` measures it.
        model: What is known of the source's uses.
        like: What is known of the target's.
    """
    if hints := unlike(model, like):
        return (
            f"Probably the weights fit and hyper-parameters differ: {'; '.join(hints)}. "
            f"Give `like` the hyper-parameters of model."
        )
    if not has_one_order(model):
        return (
            "Probably the recurrent cells are of two kinds: no order of gates makes them "
            "equal. GRUs, for example, reset before or after the product with the carry, with "
            "or without a second bias there. Give a `like` with the cell of model."
        )
    if gap <= _HYPER_PARAMETERS_DRAWN:
        return (
            "Probably the weights fit and hyper-parameters differ. Give `like` those of "
            "model: strides, paddings, numbers of heads, scales."
        )
    return (
        "Probably the weights fit by role and shape, but the networks combine them differently. "
        "Give a `like` that applies the same layers in the same order to the same values."
    )


def has_one_order(found: Trace) -> bool:
    """Return whether a network has no recurrent cells, whose gates come in several orders."""
    return all(use.loop is None for use in found.uses)


def unlike(model: Trace, like: Trace) -> list[str]:
    """Say in what two networks differ whose weights fit.

    >>> from collections import Counter
    >>> unlike(Trace((), (), (1e-3,), Counter(erf=1)), Trace((), (), (1e-5,), Counter(tanh=1)))
    ['epsilon: 0.001 in model, 1e-05 in like', 'activation: erf in model, tanh in like']
    """
    found = []
    if (ours := _numbers(model.epsilons)) != (theirs := _numbers(like.epsilons)):
        found.append(f"epsilon: {ours or 'none'} in model, {theirs or 'none'} in like")
    here = [name for name in _ACTIVATIONS if model.operations[name] and not like.operations[name]]
    there = [name for name in _ACTIVATIONS if like.operations[name] and not model.operations[name]]
    if here or there:
        ours, theirs = ", ".join(here) or "none", ", ".join(there) or "none"
        found.append(f"activation: {ours} in model, {theirs} in like")
    return found


def _numbers(epsilons: Sequence[float]) -> str:
    return ", ".join(dict.fromkeys(f"{one:.3g}" for one in epsilons))
