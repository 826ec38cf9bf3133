"""Looking inside a network and a training step.

Everything here runs a separate pass, so training steps do not get slower.
"""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.model import Keys, Model
from solstice.compat.optimizer import Optimizer
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.tree.naming import leaves_by_path
from solstice.tree.norms import norm
from solstice.tree.overwritten import trained
from solstice.tree.pytree import PyTree


def intermediates(
    model: Model,
    *inputs: PyTree,
    key: Keys = None,
    train: bool = False,
    name: str = "intermediates",
    **kwargs: PyTree,
) -> dict[str, PyTree]:
    """Return the values that a network sows in a forward pass, by their paths.

    Args:
        model: A Flax Linen network that sows into the collection `name`, a Flax NNX network that
            sows `nnx.Intermediate`s, or a Haiku network that sets states whose names begin with
            `name`. A network of another library should return them with its outputs.
        *inputs: Batched inputs, as in the model's call.
        key: As in the model's call.
        train: Whether the pass is in training mode; the model does not change.
        name: The name under which they are sown.
        **kwargs: As in the model's call.

    Raises:
        TypeError: The model's library does not support it.
        ValueError: The network sows nothing.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> from solstice import compat
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         hidden = nn.relu(nn.Dense(8)(x))
    ...         self.sow("intermediates", "dead", (hidden == 0).mean())
    ...         return nn.Dense(2)(hidden)
    >>> x = jnp.ones((4, 3))
    >>> model = compat.as_model(Net(), x, key=jax.random.key(0))
    >>> list(compat.intermediates(model, x))
    ['dead']
    """
    what = "a compat.Model, such as as_model(network, example, key=key)"
    arguments.instance(model, "model", Model, what)
    noted: Any = model.intermediates(*inputs, key=key, train=train, name=name, **kwargs)
    # A value sown once is a tuple of one.
    single = jax.tree.map(_single, noted, is_leaf=lambda node: type(node) is tuple)
    found = leaves_by_path(single)
    if not found:
        raise InvalidValueError(
            f"{type(model).__name__}: the network recorded nothing under {name!r} in this pass. "
            "Sow values there, or pass the name= that it uses."
        )
    return found


def gradients(exp: PyTree, batch: PyTree) -> PyTree:
    """Return the gradients that an experiment's training step passes to its optimizer for a batch.

    The step runs with an optimizer that only keeps the gradients; the experiment must hold its
    optimizer as a `compat.Optimizer`. For several, a list is returned, in the tree's order.

    Raises:
        ValueError: The experiment holds no optimizer, or its step does not call it.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=x, key=0
    ... )
    >>> jax.tree.map(jnp.shape, solstice.compat.gradients(exp, (x, y)))
    [((4, 2), (2,))]
    """
    if isinstance(exp, type) or not callable(getattr(exp, "train_step", None)):
        raise InvalidTypeError(
            f"exp is expected to be an instance of solstice.Experiment; it is {describe(exp)}."
        )
    keeping = jax.tree.map(
        lambda node: _Keeping(node) if isinstance(node, Optimizer) else node,
        exp,
        is_leaf=_is_optimizer,
    )
    after, _ = keeping.train_step(batch)
    kept = [node for node in jax.tree.leaves(after, is_leaf=_is_optimizer) if _is_optimizer(node)]
    grads = [one.grads for one in kept if isinstance(one, _Keeping) and one.grads is not None]
    if not grads or len(grads) < len(kept):
        raise InvalidValueError(
            f"gradients() takes the training step of an experiment whose optimizers are "
            f"compat.Optimizers, each called once; in {type(exp).__name__}, {len(grads)} of "
            f"{len(kept)} were. Adapt them with compat.as_optimizer."
        )
    return grads[0] if len(grads) == 1 else grads


def training_norms(exp: PyTree, batch: PyTree) -> dict[str, Array]:
    """Return the norms of an experiment's gradients for a batch and of its parameters.

    Parameters are those of its `compat.Model`s. If an optimizer gives its learning rate,
    `learning_rate` is the current one; with several optimizers, the first one's.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)),
    ...     optax.inject_hyperparams(optax.adam)(0.5),
    ...     example_input=x,
    ...     key=0,
    ... )
    >>> sorted(solstice.compat.training_norms(exp, (x, y)))
    ['gradient_norm', 'learning_rate', 'parameter_norm']
    """
    is_part = lambda node: isinstance(node, Model | Optimizer)  # noqa: E731
    parts = jax.tree.leaves(exp, is_leaf=is_part)
    params = [trained(part.params) for part in parts if isinstance(part, Model)]
    rates = [part.learning_rate() for part in parts if isinstance(part, Optimizer)]
    values = {"gradient_norm": norm(gradients(exp, batch)), "parameter_norm": norm(params)}
    known = [rate for rate in rates if rate is not None]
    return values | ({"learning_rate": known[0]} if known else {})


class _Keeping(Optimizer):
    """An optimizer that keeps the gradients and changes no parameter."""

    optimizer: Optimizer
    wants: tuple[str, ...] = eqx.field(static=True)
    grads: PyTree

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.wants = optimizer.wants
        self.grads = None

    def init(self, params: PyTree) -> "_Keeping":
        return _Keeping(self.optimizer.init(params))

    def __call__(
        self, grads: PyTree, params: PyTree, **extras: PyTree
    ) -> tuple[PyTree, "_Keeping"]:
        return params, eqx.tree_at(
            lambda one: one.grads, self, trained(grads), is_leaf=lambda node: node is None
        )

    def eval_params(self, params: PyTree) -> PyTree:
        return self.optimizer.eval_params(params)

    def learning_rate(self) -> Array | None:
        return self.optimizer.learning_rate()


def _is_optimizer(node: object) -> bool:
    return isinstance(node, Optimizer)


def _single(node: PyTree) -> PyTree:
    return node[0] if type(node) is tuple and len(node) == 1 else node
