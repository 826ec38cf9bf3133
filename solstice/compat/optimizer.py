"""What an optimizer is to Solstice: one immutable pytree, the same for every library."""

import abc
from typing import Any, Self

import equinox as eqx
import jax
from jaxtyping import Array, PyTree


class Optimizer(eqx.Module):
    """An optimizer and its state; calling it gives the new parameters and the new optimizer.

    >>> import jax, jax.numpy as jnp, optax
    >>> from solstice.compat import OptaxOptimizer
    >>> params = {"w": jnp.ones(3)}
    >>> opt = OptaxOptimizer(optax.sgd(0.5)).init(params)
    >>> params, opt = opt({"w": jnp.ones(3)}, params)
    >>> params["w"].tolist()
    [0.5, 0.5, 0.5]
    """

    # The extras it takes beside gradients and parameters: names such as "value" or "grad".
    wants: eqx.AbstractVar[tuple[str, ...]]

    @abc.abstractmethod
    def init(self, params: PyTree) -> Self:
        """Return the optimizer ready for these parameters, its state made anew."""

    @abc.abstractmethod
    def __call__(self, grads: PyTree, params: PyTree, **extras: Any) -> tuple[PyTree, Self]:
        """Return the updated parameters and the optimizer to go on with.

        Args:
            grads: Gradients, a tree like `params`.
            params: The parameters that the optimizer was initialised with, as they are now.
            **extras: Those named in `wants`, such as `value` (the loss), `grad` and `value_fn`
                (the loss as a function of the parameters); others are ignored.

        Raises:
            ValueError: It is not initialised, or the trees are not those it was initialised with,
                or an extra that it wants is missing.
        """

    @abc.abstractmethod
    def eval_params(self, params: PyTree) -> PyTree:
        """Return the parameters to evaluate with; most optimizers return `params`."""

    @abc.abstractmethod
    def learning_rate(self) -> Array | None:
        """Return the rate in use, None where the optimizer does not tell."""


def check_trees(adapter: str, structure: Any, **trees: PyTree) -> None:
    """Raise where a tree is not built like the parameters the optimizer was initialised with.

    Raises:
        ValueError: The first tree that differs is named.
    """
    if structure is None:
        raise ValueError(
            f"{adapter} is not initialised: call `opt = opt.init(params)` once before the steps."
        )
    for name, tree in trees.items():
        if (found := jax.tree.structure(tree)) != structure:
            raise ValueError(
                f"{adapter}: {name} are expected to be built like the parameters it was initialised "
                f"with, {structure}; they are {found}. After changing which parameters are "
                f"trained, initialise it again: opt.init(params)."
            )


def check_extras(adapter: str, wants: tuple[str, ...], extras: dict[str, Any]) -> dict[str, Any]:
    """Return the extras that the optimizer wants.

    Raises:
        ValueError: One is missing.
    """
    missing = [name for name in wants if name not in extras]
    if missing:
        raise ValueError(
            f"{adapter}: this optimizer wants {', '.join(missing)} beside the gradients; pass "
            f"opt(grads, params, {', '.join(f'{name}=...' for name in wants)})."
        )
    return {name: extras[name] for name in wants}
