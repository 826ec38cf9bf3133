"""Every optimizer of every library, by name: how it is made, and its library's own loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import optax
from jax.example_libraries import optimizers
from optax import contrib

from solstice.compat import OptaxOptimizer
from solstice.compat.jax_optimizers import JaxOptimizer
from solstice.compat.keras_optimizer import KerasOptimizer
from solstice.tree import owned

RATE = 0.05
PARAMS = {
    "w": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3),
    "b": jnp.arange(3.0),
    "hole": None,
    "s": jnp.ones(()),
}
# For optimizers that fail natively with a scalar, or with a hole.
NO_SCALAR = {"w": PARAMS["w"], "b": PARAMS["b"], "hole": None}
NO_HOLE = {"w": PARAMS["w"], "b": PARAMS["b"]}
MATRIX = {"w": PARAMS["w"], "hole": None}


def value_fn(params):
    return sum(jnp.sum(jnp.abs(leaf - 3.0) ** 2) for leaf in jax.tree.leaves(params))


def is_matrix(params):
    return jax.tree.map(lambda leaf: leaf.ndim == 2, params)


def label(params):
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim == 2 else "other", params)


def all_matrices(params):
    return jax.tree.map(lambda _: contrib.MuonDimensionNumbers(), params)


SEARCH = ("value", "grad", "value_fn")


class Row(NamedTuple):
    # Makes the library's own optimizer.
    make: Callable[[], Any]
    # The extras that an Optax update takes, by Optax's names.
    takes: tuple[str, ...] = ()
    params: Any = PARAMS
    # What the native loop trains instead of plain parameters.
    pair: Callable[[Any], Any] = staticmethod(lambda params: params)


def scaled(name: str, *args: Any, module: Any = optax, takes: tuple = (), params: Any = PARAMS):
    """A transformation that is no optimizer by itself, with a rate behind it."""
    return Row(lambda: optax.chain(getattr(module, name)(*args), optax.scale(-RATE)), takes, params)


# Those called with a learning rate alone.
ALIASES = (
    "adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars "
    "lion nadam nadamw novograd optimistic_adam optimistic_adam_v2 optimistic_gradient_descent "
    "radam rmsprop rprop sgd sign_sgd yogi"
)
CONTRIB_ALIASES = (
    "acprop ademamix adopt cocob dadapt_adamw dog dowg muon prodigy schedule_free_adamw "
    "schedule_free_sgd simplified_ademamix"
)
# Those called with nothing, which are no optimizers by themselves.
PARTS = (
    "centralize identity normalize_by_update_norm scale_by_adadelta scale_by_adam scale_by_adamax "
    "scale_by_adan scale_by_amsgrad scale_by_belief scale_by_factored_rms scale_by_lion "
    "scale_by_novograd scale_by_optimistic_gradient scale_by_param_block_norm "
    "scale_by_param_block_rms scale_by_radam scale_by_rms scale_by_rss scale_by_sign "
    "scale_by_stddev scale_by_trust_ratio scale_by_yogi set_to_zero zero_nans"
)
CONTRIB_PARTS = (
    "normalize scale_by_acprop scale_by_ademamix scale_by_adopt scale_by_cocob "
    "scale_by_simplified_ademamix"
)
OPTAX = {name: Row(lambda name=name: getattr(optax, name)(RATE)) for name in ALIASES.split()}
OPTAX |= {
    name: Row(lambda name=name: getattr(contrib, name)(RATE)) for name in CONTRIB_ALIASES.split()
}
OPTAX |= {name: scaled(name) for name in PARTS.split()}
OPTAX |= {name: scaled(name, module=contrib) for name in CONTRIB_PARTS.split()}
OPTAX |= {
    "noisy_sgd": Row(lambda: optax.noisy_sgd(RATE, key=jax.random.key(0))),
    "sm3": Row(lambda: optax.sm3(RATE), params=NO_SCALAR),
    "scale_by_sm3": scaled("scale_by_sm3", params=NO_SCALAR),
    "scale_by_distance_over_gradients": scaled(
        "scale_by_distance_over_gradients", params=NO_SCALAR
    ),
    "scale_by_muon": Row(
        lambda: optax.chain(
            contrib.scale_by_muon(weight_dimension_numbers=all_matrices),
            optax.scale(-RATE),
        ),
        params=MATRIX,
    ),
    "scale_by_lbfgs": scaled("scale_by_lbfgs", 2),
    "scale": Row(lambda: optax.scale(-RATE)),
    "scale_by_learning_rate": Row(lambda: optax.scale_by_learning_rate(RATE)),
    "scale_by_rprop": scaled("scale_by_rprop", RATE),
    "scale_by_schedule": Row(
        lambda: optax.scale_by_schedule(optax.linear_schedule(-RATE, -2 * RATE, 4))
    ),
    "scale_by_polyak": scaled("scale_by_polyak", takes=("value",)),
    "keep_params_nonnegative": Row(
        lambda: optax.chain(optax.sgd(RATE), optax.keep_params_nonnegative())
    ),
    "adaptive_grad_clip": scaled("adaptive_grad_clip", 0.1),
    "clip": scaled("clip", 0.5),
    "clip_by_block_rms": scaled("clip_by_block_rms", 0.5),
    "clip_by_global_norm": scaled("clip_by_global_norm", 1.0),
    "add_decayed_weights": scaled("add_decayed_weights", 0.1),
    "add_noise": Row(
        lambda: optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(RATE))
    ),
    "trace": scaled("trace", 0.9),
    "ema": scaled("ema", 0.9),
    "apply_every": Row(lambda: optax.chain(optax.sgd(RATE), optax.apply_every(2))),
    "snapshot": scaled("snapshot", "norm", optax.tree.norm),
    "freeze": Row(
        lambda: optax.chain(
            optax.sgd(RATE), optax.freeze({"w": True, "b": False, "hole": None, "s": False})
        )
    ),
    "selective_transform": Row(
        lambda: optax.selective_transform(
            optax.adam(RATE), freeze_mask={"w": True, "b": False, "hole": None, "s": False}
        )
    ),
    # What takes extras.
    "lbfgs": Row(lambda: optax.lbfgs(memory_size=2), SEARCH),
    "scale_by_zoom_linesearch": Row(
        lambda: optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(5)), SEARCH
    ),
    "scale_by_backtracking_linesearch": Row(
        lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)), SEARCH
    ),
    "polyak_sgd": Row(lambda: optax.polyak_sgd(), ("value",)),
    "momo": Row(lambda: contrib.momo(RATE), ("value",)),
    "momo_adam": Row(lambda: contrib.momo_adam(RATE), ("value",)),
    "reduce_on_plateau": Row(
        lambda: optax.chain(optax.adam(RATE), contrib.reduce_on_plateau(patience=1)), ("value",)
    ),
    "sophia": Row(lambda: contrib.sophia(RATE, update_interval=2), ("obj_fn",)),
    "sophia and plateau": Row(
        lambda: optax.chain(contrib.sophia(RATE), contrib.reduce_on_plateau()), ("value", "obj_fn")
    ),
    "sam": Row(
        lambda: contrib.sam(optax.sgd(RATE), optax.chain(contrib.normalize(), optax.sgd(0.1)))
    ),
    "opaque sam": Row(
        lambda: contrib.sam(
            optax.adam(RATE), optax.chain(contrib.normalize(), optax.sgd(0.1)), opaque_mode=True
        ),
        ("grad_fn",),
    ),
    # Wrappers.
    "chain": Row(lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE))),
    "named_chain": Row(
        lambda: optax.named_chain(("z", optax.scale_by_adam()), ("a", optax.scale(-RATE)))
    ),
    "scheduled": Row(lambda: optax.adam(optax.cosine_decay_schedule(RATE, 10))),
    "masked decay": Row(lambda: optax.adamw(RATE, mask=is_matrix)),
    "inject_hyperparams": Row(lambda: optax.inject_hyperparams(optax.adam)(RATE)),
    "injected schedule": Row(
        lambda: optax.inject_hyperparams(optax.adamw)(optax.linear_schedule(RATE, 0.0, 10))
    ),
    "masked": Row(lambda: optax.masked(optax.adam(RATE), is_matrix)),
    "partition": Row(
        lambda: optax.partition({"matrix": contrib.muon(RATE), "other": optax.adam(RATE)}, label)
    ),
    "multi_transform": Row(
        lambda: optax.multi_transform({"matrix": optax.lion(RATE), "other": optax.sgd(RATE)}, label)
    ),
    "conditionally_mask": Row(
        lambda: optax.conditionally_mask(optax.adam(RATE), lambda step: step % 2 == 0)
    ),
    "conditionally_transform": Row(
        lambda: optax.conditionally_transform(optax.sgd(RATE), lambda step: step > 0)
    ),
    "apply_if_finite": Row(lambda: optax.apply_if_finite(optax.adam(RATE), 2)),
    "flatten": Row(lambda: optax.flatten(optax.adam(RATE))),
    "mechanize": Row(lambda: contrib.mechanize(optax.adam(RATE))),
    "schedule_free": Row(
        lambda: optax.chain(
            optax.clip(1.0), contrib.schedule_free(optax.rmsprop(RATE), learning_rate=RATE)
        )
    ),
    "split_real_and_imaginary": Row(
        lambda: contrib.split_real_and_imaginary(optax.adam(RATE)),
        params=PARAMS | {"b": jnp.arange(3.0) + 1j},
    ),
    "lookahead": Row(
        lambda: optax.lookahead(optax.adam(RATE), 2, 0.5, reset_state=True),
        pair=optax.LookaheadParams.init_synced,
    ),
    "clipped lookahead": Row(
        lambda: optax.chain(optax.clip(1.0), optax.lookahead(optax.sgd(RATE), 2, 0.5)),
        pair=optax.LookaheadParams.init_synced,
    ),
    "MultiSteps": Row(lambda: optax.MultiSteps(optax.adam(RATE), 2)),
    "MultiSteps, skipping": Row(
        lambda: optax.MultiSteps(
            optax.polyak_sgd(), 2, should_skip_update_fn=optax.skip_not_finite
        ),
        ("value",),
    ),
    "MultiSteps as transformation": Row(
        lambda: optax.MultiSteps(optax.adam(RATE), 2).gradient_transformation()
    ),
}

# Of Optax 0.2.7 and later.
OPTAX |= {
    name: row
    for name, row in {
        "signum": Row(lambda: optax.signum(RATE)),
        "madgrad": Row(lambda: contrib.madgrad(RATE)),
        "scale_by_madgrad": Row(lambda: contrib.scale_by_madgrad(RATE)),
        "galore": Row(lambda: contrib.galore(RATE, rank=2), params=NO_HOLE),
        "scale_by_galore": scaled("scale_by_galore", 2, module=contrib, params=NO_HOLE),
        "monitor": scaled("monitor", {"norm": optax.tree.norm}),
        "measure_with_ema": Row(
            lambda: optax.chain(
                optax.monitor({"norm": optax.measure_with_ema(optax.tree.norm, 0.9)}),
                optax.sgd(RATE),
            )
        ),
    }.items()
    if hasattr(optax, name) or hasattr(contrib, name)
}

JAX = {
    name: Row(lambda name=name: getattr(optimizers, name)(RATE))
    for name in ("sgd", "adagrad", "rmsprop", "rmsprop_momentum", "adam", "adamax")
}
JAX |= {
    "momentum": Row(lambda: optimizers.momentum(RATE, 0.9)),
    "nesterov": Row(lambda: optimizers.nesterov(optimizers.inverse_time_decay(RATE, 2, 0.5), 0.9)),
    "piecewise": Row(lambda: optimizers.adam(optimizers.piecewise_constant([2], [RATE, 0.01]))),
}


def without_decay(optimizer):
    optimizer.exclude_from_weight_decay(var_names=["b"])
    return optimizer


KERAS_NAMES = "Adadelta Adafactor Adagrad Adam AdamW Adamax Ftrl Lamb Lion Muon Nadam RMSprop SGD"
KERAS = {
    name: Row(lambda name=name: getattr(keras.optimizers, name)(RATE))
    for name in KERAS_NAMES.split()
}
KERAS |= {
    "Nesterov": Row(lambda: keras.optimizers.SGD(RATE, momentum=0.9, nesterov=True, clipnorm=1.0)),
    "scheduled": Row(
        lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(RATE, 10))
    ),
    "decaying weights": Row(lambda: without_decay(keras.optimizers.AdamW(RATE, weight_decay=0.5))),
    "accumulating": Row(lambda: keras.optimizers.Adam(RATE, gradient_accumulation_steps=2)),
}
if hasattr(keras.optimizers, "ScheduleFreeAdamW"):  # Keras 3.14
    KERAS["ScheduleFreeAdamW"] = Row(lambda: keras.optimizers.ScheduleFreeAdamW(RATE))

# Want a gradient for each example, which has another shape than the parameters.
PER_EXAMPLE = ("dpsgd", "differentially_private_aggregate")
TABLES = {"optax": OPTAX, "jax": JAX, "keras": KERAS}
ADAPTERS = {"optax": OptaxOptimizer, "jax": JaxOptimizer, "keras": KerasOptimizer}


# A library's own loop: (row, params, the function to minimise) to (carry, step, carry's params).
def optax_loop(row, params, value_fn):
    tx = row.make()

    def step(carry):
        params, state = carry
        value, grad = jax.value_and_grad(value_fn)(getattr(params, "fast", params))
        extras = {
            "value": value,
            "grad": grad,
            "value_fn": value_fn,
            "obj_fn": value_fn,
            "grad_fn": lambda params, _: jax.grad(value_fn)(params),
        }
        updates, state = tx.update(
            grad, state, params, **{name: extras[name] for name in row.takes}
        )
        return optax.apply_updates(params, updates), state

    params = row.pair(params)
    return (params, owned(tx.init(params))), step, lambda carry: getattr(carry[0], "fast", carry[0])


def jax_loop(row, params, value_fn):
    init, update, get_params = row.make()

    def step(carry):
        count, state = carry
        return count + 1, update(count, jax.grad(value_fn)(get_params(state)), state)

    return (0, init(params)), step, lambda carry: get_params(carry[1])


def keras_loop(row, params, value_fn):
    optimizer = row.make()
    leaves, structure = jax.tree.flatten(params)
    names = [name for name, leaf in sorted(params.items()) if leaf is not None]
    optimizer.build([keras.Variable(leaf, name=n) for n, leaf in zip(names, leaves, strict=True)])

    def step(carry):
        leaves, state = carry
        grads = jax.tree.leaves(jax.grad(value_fn)(jax.tree.unflatten(structure, leaves)))
        return optimizer.stateless_apply(state, grads, leaves)

    state = [variable.value for variable in optimizer.variables]
    return (leaves, state), step, lambda carry: jax.tree.unflatten(structure, carry[0])


LOOPS = {"optax": optax_loop, "jax": jax_loop, "keras": keras_loop}
LOOPS = {"optax": optax_loop, "jax": jax_loop, "keras": keras_loop}
