"""Keras 3 on JAX: networks that hold their variables, called on other values in a scope."""

import functools

import jax
import jax.numpy as jnp
import keras
import optax

from networks.common import CLASSES, INPUTS, TX, Subject, loss_of, rounded
from solstice.compat import KerasModel, Model, overwrite, trained
from solstice.tree import replace

layers = keras.layers


def mlp():
    return keras.Sequential(
        [layers.Input((4,)), layers.Dense(5, activation="relu"), layers.Dense(CLASSES)]
    )


def cnn():
    return keras.Sequential(
        [
            layers.Input((4, 4, 1)),
            layers.Conv2D(4, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(0.4),
            layers.Dense(CLASSES),
        ]
    )


def recurrent():
    return keras.Sequential([layers.Input((5, 3)), layers.GRU(5), layers.Dense(CLASSES)])


def attention():
    queries, memory = layers.Input((5, 8)), layers.Input((3, 8))
    x = layers.MultiHeadAttention(2, 4, dropout=0.3)(queries, memory)
    x = layers.GaussianNoise(0.1)(x)
    x = layers.LayerNormalization()(queries + x)
    classes = layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x))
    return keras.Model([queries, memory], {"sequence": x, "classes": classes})


def embedding():
    return keras.Sequential(
        [
            layers.Input((5,), dtype="int32"),
            layers.Embedding(7, 4),
            layers.GlobalAveragePooling1D(),
            layers.Dense(CLASSES),
        ]
    )


def parameterless():
    return keras.Sequential([layers.Input((4,)), layers.Softmax()])


def shared():
    """A layer shared with a nested model, as tied embeddings are."""
    x, dense = layers.Input((4,)), layers.Dense(4)
    nested = keras.Model(x, layers.ReLU()(dense(x)))
    x = layers.Input((4,))
    return keras.Model(x, dense(nested(x)))


class Rounded(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, x):
        return rounded(x, jax.random.wrap_key_data(self.seed_generator.next()))


def rounding():
    return keras.Sequential([layers.Input((4,)), layers.Dense(5), Rounded(), layers.Dense(CLASSES)])


def fp8():
    return keras.Sequential(
        [layers.Input((4,)), layers.Dense(CLASSES, dtype="float8_from_float32")]
    )


def _subject(kind: str, build) -> Subject:
    inputs = INPUTS[kind]

    @functools.cache
    def made():
        keras.utils.set_random_seed(0)
        return build()

    def make_model(key) -> Model:
        # Keras draws its initial values itself, from its own seed; these are drawn from the key.
        model = KerasModel(made())
        leaves, structure = jax.tree.flatten(trained(model.params))
        keys = jax.random.split(key, len(leaves) + 1)[1:]
        fresh = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        params = jax.tree.unflatten(structure, fresh)
        return replace(model, params=overwrite(params, model.params))

    def forward(values, others, inputs, train, streams=()):
        network = made()
        pairs = [
            *zip(network.trainable_variables, values, strict=True),
            *zip(network.non_trainable_variables, others, strict=True),
            *streams,
        ]
        with keras.StatelessScope(pairs) as scope:
            outputs = network(list(inputs) if len(inputs) > 1 else inputs[0], training=train)
        return outputs, [scope.get_current_value(v) for v in network.non_trainable_variables]

    def start(key):
        # In the order of the variables, as the adapter names them by.
        values = jax.tree.leaves(make_model(key).params)
        others = [jnp.array(v.value) for v in made().non_trainable_variables]
        return values, others, TX.init(moved(values))

    def moved(values):
        """None in place of what Keras's optimizers overwrite with its gradient."""
        variables = made().trainable_variables
        return [
            None if v.overwrite_with_gradient else x for v, x in zip(variables, values, strict=True)
        ]

    @jax.jit
    def step(carry, inputs, key):
        values, others, opt_state = carry

        def objective(values):
            outputs, new = forward(values, others, inputs, True)
            return loss_of(outputs), new

        (loss, others), grads = jax.value_and_grad(objective, has_aux=True)(values)
        updates, opt_state = TX.update(moved(grads), opt_state, moved(values))
        new = optax.apply_updates(moved(values), updates)
        values = [g if v is None else v for v, g in zip(new, grads, strict=True)]
        return loss, (values, others, opt_state)

    @jax.jit
    def evaluate(carry, inputs):
        return forward(carry[0], carry[1], inputs, False)[0]

    def own(carry):
        copy = keras.models.clone_model(made(), recursive=True)
        for variable, value in zip(copy.trainable_variables, carry[0], strict=True):
            variable.assign(value)
        for variable, value in zip(copy.non_trainable_variables, carry[1], strict=True):
            variable.assign(value)
        return copy

    def call(own, *inputs, key, train):
        seeds = [v for v in made().variables if v.path.endswith("seed_generator_state")]
        streams = [
            (seed, jax.random.bits(jax.random.fold_in(key, i), seed.shape, jnp.uint32))
            for i, seed in enumerate(seeds)
        ]
        values = [v.value for v in own.trainable_variables]
        others = [v.value for v in own.non_trainable_variables]
        return forward(values, others, inputs, train, streams if train else ())[0]

    return Subject(
        inputs,
        make_model,
        call,
        start,
        step,
        evaluate,
        own,
        lambda own: [v.value for v in own.variables],
        keeps_streams=True,
    )


SUBJECTS = {
    "mlp": _subject("mlp", mlp),
    "cnn": _subject("cnn", cnn),
    "recurrent": _subject("recurrent", recurrent),
    "attention": _subject("attention", attention),
    "embedding": _subject("embedding", embedding),
    "parameterless": _subject("parameterless", parameterless),
    "shared": _subject("shared", shared),
    "rounding": _subject("rounding", rounding),
    "fp8": _subject("fp8", fp8),
}
