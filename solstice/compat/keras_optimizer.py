"""Keras 3 optimizers on the JAX backend (`keras.optimizers`)."""

import contextlib
import copy
import re
from collections import Counter
from typing import Any, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import keras
from jaxtyping import Array

from solstice.arguments import describe
from solstice.compat.leaves import check_own_leaves
from solstice.compat.optimizer import (
    Optimizer,
    Signature,
    carried,
    check_params,
    check_trees,
    keep_types,
    new_rate,
    no_rate,
    signature,
)
from solstice.errors import InvalidTypeError, InvalidValueError
from solstice.static import Static
from solstice.tree.fields import replace
from solstice.tree.naming import leaf_names, leaves_by_path
from solstice.tree.overwritten import set_apart, trained
from solstice.tree.ownership import owned
from solstice.tree.pytree import PyTree

_NAME = "KerasOptimizer"


class _Recipe(NamedTuple):
    """What is needed to make another optimizer like the user's."""

    cls: type
    config: dict[str, Any]
    # Names of parameters without weight decay; Keras does not keep them in the config.
    no_decay: Any


class KerasOptimizer(Optimizer):
    """A Keras optimizer's rule and configuration, with its own state.

    The user's object is read once and never changed; its state is not copied. Keras sees the
    parameters' paths as the variables' names, as in
    `exclude_from_weight_decay(var_names=["bias"])`.

    Attributes:
        state: The values of Keras's optimizer variables, a dict by position and name.

    >>> import jax.numpy as jnp, keras
    >>> from solstice.compat import KerasOptimizer
    >>> opt = KerasOptimizer(keras.optimizers.SGD(0.5, momentum=0.9)).init({"w": jnp.ones(2)})
    >>> params, opt = opt({"w": jnp.ones(2)}, {"w": jnp.ones(2)})
    >>> params["w"].tolist(), float(opt.learning_rate()), list(opt.state)
    ([0.5, 0.5], 0.5, ['00_iteration', '01_learning_rate', '02_w_momentum'])
    """

    state: PyTree
    wants: tuple[str, ...] = eqx.field(static=True)
    _recipe: Static[_Recipe] = eqx.field(static=True)
    _signature: Static[Signature] | None = eqx.field(static=True)

    def __init__(self, optimizer: Any) -> None:
        """Read the configuration of a Keras optimizer; `init` makes the state.

        Raises:
            TypeError: It is not an instance of a Keras optimizer, or Keras cannot clone it.
            ValueError: The backend is not JAX, or the optimizer needs Keras's training loop.
        """
        if keras.backend.backend() != "jax":
            raise InvalidValueError(
                f"{_NAME}: Keras runs on the backend {keras.backend.backend()!r} here, and JAX is "
                f"needed: set the environment variable KERAS_BACKEND=jax before importing keras."
            )
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise InvalidTypeError(
                f"{_NAME} is expected to get a Keras optimizer such as keras.optimizers.Adam(1e-3)"
                f"; it got {describe(optimizer)}."
            )
        _refuse(optimizer)
        self.state = None
        self.wants = ()
        self._recipe = Static(_read(optimizer))
        self._signature = None

    def _shown(self) -> list[tuple[str, object]]:
        if "_recipe" not in vars(self):
            return []
        recipe = self._recipe.value
        rate = recipe.config.get("learning_rate")
        if isinstance(rate, float):
            rate = float(f"{rate:.6g}")  # Keras rounds it to a float32
        return [("optimizer", recipe.cls), ("learning_rate", rate), ("state", self.state)]

    def init(self, params: PyTree) -> Self:
        check_params(params)
        variables = self._build(trained(params)).variables
        width = max(2, len(str(len(variables))))  # so that they sort by position
        # Keras numbers unnamed variables; without the names, equal optimizers are equal.
        names = (re.sub(r"^variable_\d+$", "variable", v.name) for v in variables)
        pairs = enumerate(zip(names, variables, strict=True))
        state = {f"{i:0{width}}_{name}": v.value for i, (name, v) in pairs}
        return replace(self, state=owned(state), _signature=signature(params))

    def __call__(self, grads: PyTree, params: PyTree, **extras: PyTree) -> tuple[PyTree, Self]:
        check_trees(_NAME, self._signature, gradients=grads, parameters=params)
        check_own_leaves(_NAME, state=self.state)
        grads, params, _, finish = set_apart(grads, params, {})
        leaves, values = self._build(params).stateless_apply(
            self._values(), jax.tree.leaves(grads), jax.tree.leaves(params)
        )
        after = jax.tree.unflatten(jax.tree.structure(params), leaves)
        state = keep_types(dict(zip(sorted(self.state), values, strict=True)), self.state)
        return finish(keep_types(after, params)), replace(self, state=state)

    def retarget(self, params: PyTree) -> Self:
        new = self.init(params)
        if self.state is None:
            return new
        signatures = (one._signature for one in (self, new) if one._signature is not None)
        _check_own_names({path for one in signatures for path in leaf_names(one.value.structure)})
        kept = carried(_by_own_name(new.state), _by_own_name(self.state))
        names = dict(zip(sorted(new.state), _by_own_name(new.state), strict=True))
        return replace(new, state={name: kept[names[name]] for name in new.state})

    def eval_params(self, params: PyTree) -> PyTree:
        return params

    def learning_rate(self) -> Array | None:
        if self.state is None:
            return None
        optimizer = _clone(self._recipe.value)
        # If not built, it has only the first variables: the count, and a rate that is a number.
        variables = optimizer.variables
        count, *rest = self._values()[: len(variables)]
        last = jnp.maximum(count - 1, 0)  # Keras has already counted the last step
        with keras.StatelessScope([*zip(variables, [last, *rest], strict=True)]):
            return jnp.asarray(keras.ops.convert_to_tensor(optimizer.learning_rate))

    def with_learning_rate(self, rate: object) -> Self:
        check_trees(_NAME, self._signature)
        state = self.state
        name = next((one for one in state if one.partition("_")[2] == "learning_rate"), None)
        if name is None:
            raise no_rate(_NAME, "It is a schedule's")
        return replace(self, state={**state, name: new_rate(rate, state[name])})

    def _values(self) -> list[Array]:
        return [value for _, value in sorted(self.state.items())]

    def _build(self, params: PyTree) -> PyTree:
        """Return a Keras optimizer for these parameters, for use within one trace.

        Kept longer, it would hold tracers or a second copy of all its variables.
        """
        optimizer = _clone(self._recipe.value)
        leaves = leaves_by_path(params).items()
        optimizer.build([_variable(name, leaf) for name, leaf in leaves])
        return optimizer


def _by_own_name(state: dict[str, Array]) -> dict[str, Array]:
    """Return a state by Keras's names and their occurrence, in any order."""
    seen: Counter[str] = Counter()
    named = {}
    for name, value in sorted(state.items()):
        own = name.partition("_")[2]
        named[f"{own}:{seen[own]}"] = value
        seen[own] += 1
    return named


def _check_own_names(paths: set[str]) -> None:
    """Raise if Keras gives the variables of two parameters the same name."""
    if len({path.replace("/", "_") for path in paths}) != len(paths):
        raise InvalidValueError(
            f"{_NAME}: parameters are expected to have paths that differ in more than slashes and "
            f"underscores, since Keras names its variables so; they are "
            f"{', '.join(map(repr, sorted(paths)))}. Rename one, or initialise the optimizer "
            f"again: opt.init(params)."
        )


def _refuse(optimizer: Any) -> None:
    """Raise for features that would be silently wrong outside Keras's training loop."""
    cannot = None
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        cannot = "LossScaleOptimizer", "scaled losses", "its inner optimizer"
    elif isinstance(optimizer, getattr(keras.optimizers, "MultiOptimizer", ())):
        cannot = "MultiOptimizer", "the variables' own paths", "optax.partition"
    elif optimizer.loss_scale_factor is not None:
        cannot = "loss_scale_factor", "scaled losses", "an optimizer without it"
    elif optimizer.use_ema:
        cannot = "use_ema", "fit() to put the averages in place", "an experiment's ema_decay"
    elif getattr(optimizer, "_exclude_from_weight_decay", ()):
        cannot = (
            "exclude_from_weight_decay(var_list)",
            "the variables themselves",
            "exclude_from_weight_decay(var_names=...)",
        )
    if cannot is not None:
        feature, needed, remedy = cannot
        raise InvalidValueError(
            f"{_NAME} takes Keras optimizers that need only gradients and parameters; {feature} "
            f"of this {type(optimizer).__name__} needs {needed}. Use {remedy}."
        )


def _read(optimizer: Any) -> _Recipe:
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    try:
        config = copy.deepcopy(optimizer.get_config())
        if "name" in config:  # numbered by Keras; without, equal optimizers share a compilation
            config["name"] = type(optimizer).__name__
        recipe = _Recipe(type(optimizer), config, pattern)
        _clone(recipe)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InvalidTypeError(
            f"{_NAME} is expected to get an optimizer that Keras can clone by get_config and "
            f"from_config; with this {type(optimizer).__name__} that raised "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]} Make it outside of "
            f"jax.jit, and its learning rate a number or a keras.optimizers.schedules schedule."
        ) from error
    return recipe


def _clone(recipe: _Recipe) -> Any:
    optimizer = recipe.cls.from_config(dict(recipe.config))  # it changes the given dict
    if recipe.no_decay is not None:
        optimizer.exclude_from_weight_decay(var_names=[recipe.no_decay.pattern])
    return optimizer


def _variable(path: str, leaf: PyTree) -> PyTree:
    """Return a Keras variable named by a parameter's path, which some optimizers read."""
    *scopes, name = path.split("/")
    with contextlib.ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(leaf, dtype=leaf.dtype, name=name or "params")
