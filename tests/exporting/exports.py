"""What the tests of exports share: networks, and an export that is loaded again."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.example_libraries import stax
from networks import LIBRARIES
from networks.common import TX

import solstice
from solstice import compat

SIX = "linen", "nnx", "haiku", "equinox", "stax", "keras"


X = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)


def leaves_of(tree):
    return jax.tree.leaves(tree)


def moved(tree, by):
    """A tree with other numbers, as training leaves them."""
    return jax.tree.map(
        lambda leaf: leaf + by * jnp.abs(leaf) if eqx.is_inexact_array(leaf) else leaf, tree
    )


def make(library, kind="cnn", **options):
    """An experiment whose average differs from its parameters, and whose state is no start."""
    model = LIBRARIES[library][kind].make_model(jax.random.key(0))
    exp = solstice.ClassificationExperiment(model, TX, key=1, ema_decay=0.9, **options)
    model = solstice.replace(exp.model, state=moved(exp.model.state, 0.2))
    return solstice.replace(exp, model=model, ema=moved(exp.ema, 0.1))


def sized(tree, size):
    """A batch of another size."""
    return jax.tree.map(lambda leaf: np.resize(np.asarray(leaf), (size, *leaf.shape[1:])), tree)


def exported(thing, tmp_path, **options):
    options = {"platforms": "cpu"} | options
    solstice.export(thing, tmp_path / "export", **options)
    return solstice.load_exported(tmp_path / "export")


def linear(num_classes=3, **options):
    return solstice.ClassificationExperiment(
        stax.serial(stax.Dense(num_classes)), TX, example_input=X, key=0, **options
    )


def function_model(function, x=X):
    return compat.FunctionModel(lambda key, x: jnp.ones((4, 3)), function, x, key=0)
