"""A network whose weights are computed before each call, in any library.

The network's own adapter is kept without its arrays and called with the computed weights. So no
operation is intercepted, and the wrapper satisfies the same laws as the adapter.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import equinox as eqx
import jax

from solstice import arguments
from solstice.compat.model import Keys, Model, boxed_weights, checked_weights, divide
from solstice.compat.surgery.composed import is_composed, is_weight, joined, words
from solstice.static import Static
from solstice.tree.fields import replace
from solstice.tree.naming import flatten_with_paths
from solstice.tree.pytree import PyTree, PyTreeDef


class Weight(NamedTuple):
    """One weight of a network.

    Attributes:
        path: Its path in the network's own tree.
        node: The array, the node that computes it, or a box.
        trained: Which of the node's arrays are among `params`: booleans in a node like it.
        trainable: Which `compat.unfreeze` puts there.
    """

    path: str
    node: Any
    trained: Any
    trainable: Any


def weights_of(model: Model) -> tuple[list[Weight], PyTreeDef]:
    """Return a network's weights, in the tree's order, and the structure around them."""
    arguments.instance(model, "model", Model, "a compat.Model, such as as_model(network, ...)")
    tree = boxed_weights(model)
    named, structure = flatten_with_paths(tree, is_weight)
    trained, trainable = map(structure.flatten_up_to, (_trained(model, tree), model.trainable()))
    columns = zip(named, trained, trainable, strict=True)
    return [Weight(path, node, now, ever) for (path, node), now, ever in columns], structure


class WrappedModel(Model):
    """A network with weights that are computed from other arrays before each call.

    `compat.lora` and `compat.quantize` return it. It is called, trained, frozen, saved and resumed
    like the network's own model; `unwrap()` returns the library's object with the computed weights,
    and `compat.merge` the network's own model.

    Attributes:
        inner: The network's own model, without arrays.

    >>> import equinox as eqx, jax
    >>> from solstice import compat
    >>> model = compat.as_model(eqx.nn.Linear(8, 4, key=jax.random.key(0)))
    >>> tuned = compat.lora(compat.quantize(model, bits=4), rank=2, key=1)
    >>> tuned.made_of
    {'weight': 'int4 + rank 2', 'bias': 'float32'}
    >>> tuned.unwrap().weight.shape
    (4, 8)
    """

    params: PyTree
    frozen: PyTree
    state: PyTree
    inner: Model
    _tree: Static[PyTreeDef] = eqx.field(static=True)
    # In the order of this tree's leaves: what may be trained.
    _trainable: tuple[bool, ...] = eqx.field(static=True)
    # In the order of the network's own leaves: what was among its params.
    _before: tuple[bool, ...] = eqx.field(static=True)
    # Whether the network's own model has a tree for frozen leaves even if none is frozen.
    _holes: bool = eqx.field(static=True)

    def __init__(self, model: Model, weights: Sequence[Weight], structure: PyTreeDef) -> None:
        """Insert other weights into a network, which does not change; arrays are shared.

        Args:
            model: The network, wrapped before or not.
            weights: Its weights, in order, with new nodes.
            structure: The structure around them.
        """
        if isinstance(model, WrappedModel):
            self.inner, self._before, self._holes = model.inner, model._before, model._holes
        else:
            before = _trained(model, boxed_weights(model))
            self.inner = replace(model, params=None, frozen=None, state=None)
            self._before = tuple(jax.tree.leaves(before))
            self._holes = model.frozen is not None
        _, nodes, trained, trainable = zip(*weights, strict=True)
        tree = jax.tree.unflatten(structure, nodes)
        self._tree = Static(jax.tree.structure(tree))
        self._trainable = tuple(jax.tree.leaves(list(trainable)))
        self.params, self.frozen = divide(tree, jax.tree.unflatten(structure, trained))
        self.state = model.state

    def __call__(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, **kwargs: PyTree
    ) -> tuple[PyTree, Self]:
        before = self.merged()
        outputs, after = before(*inputs, key=key, train=train, **kwargs)
        return outputs, self._after(before, after)

    def tagged(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, **kwargs: PyTree
    ) -> tuple[PyTree, Self]:
        """Call it with tags at the outputs of sub-modules; see `compat.capture`."""
        before = self.merged()
        outputs, after = before.tagged(*inputs, key=key, train=train, **kwargs)
        return outputs, self._after(before, after)

    def _after(self, before: Model, after: Model) -> Self:
        return self if after is before else replace(self, state=after.state)

    def settle_averages(self) -> Self:
        return replace(self, state=self.merged().settle_averages().state)

    def intermediates(
        self, *inputs: PyTree, key: Keys = None, train: bool = False, name: str, **kwargs: PyTree
    ) -> PyTree:
        return self.merged().intermediates(*inputs, key=key, train=train, name=name, **kwargs)

    def trainable(self) -> PyTree:
        """Return what `unfreeze` may train: never weights that have factors or are quantized."""
        return jax.tree.unflatten(self._tree.value, self._trainable)

    def unwrap(self) -> Any:
        """Return the library's own object, with the computed weights."""
        return self.merged().unwrap()

    @property
    def example(self) -> tuple[PyTree, ...] | None:
        return self.inner.example

    @property
    def made_of(self) -> dict[str, str]:
        """How each weight is made, by path, such as "int4 + rank 2"; an array has its dtype."""
        named, _ = flatten_with_paths(boxed_weights(self), is_weight)
        return {path: words(node) for path, node in named}

    def merged(self) -> Model:
        """Return a model of the network's own adapter with the computed weights: `compat.merge`."""
        tree = jax.tree.map(joined, checked_weights(self, self._tree), is_leaf=is_composed)
        before = jax.tree.unflatten(jax.tree.structure(tree), self._before)
        params, frozen = eqx.partition(tree, before) if self._holes else divide(tree, before)
        return replace(self.inner, params=params, frozen=frozen, state=self.state)


def merge(model: Model) -> Model:
    """Return a model of the network's own adapter, with plain arrays as weights.

    Factors of `compat.lora` are added to their weights, and weights of `compat.quantize` become
    floats. The `params` are those that the network had before it was wrapped.

    Args:
        model: An adapted network; one without computed weights is returned unchanged.

    Raises:
        TypeError: It is not a `compat.Model`.

    >>> import equinox as eqx, jax, jax.numpy as jnp
    >>> from solstice import compat
    >>> x = jnp.ones((1, 8))
    >>> model = compat.as_model(eqx.nn.Linear(8, 4, key=jax.random.key(0)))
    >>> small = compat.quantize(model, bits=8)
    >>> merged = compat.merge(small)
    >>> type(merged).__name__, bool(jnp.allclose(merged(x)[0], small(x)[0]))
    ('EquinoxModel', True)
    """
    arguments.instance(model, "model", Model, "a compat.Model, such as as_model(network, ...)")
    return model.merged() if isinstance(model, WrappedModel) else model


def _trained(model: Model, weights: PyTree) -> PyTree:
    """Return booleans in a tree like a model's weights: which of them are params."""
    paths = {path for path, _ in jax.tree_util.tree_leaves_with_path(model.params)}
    return jax.tree_util.tree_map_with_path(lambda path, _: path in paths, weights)
