"""Optax's gradient transformations.

Every transformation works with the same call: the extra arguments of an update are found once by
tracing, and made from what a training step gives.
"""

import contextlib
import functools
import logging
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import optax.transforms
import optax.tree_utils
from jaxtyping import Array

from solstice import arguments
from solstice.arguments import describe
from solstice.compat.leaves import check_own_leaves
from solstice.compat.optimizer import (
    Optimizer,
    Signature,
    carried,
    check_extras,
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
from solstice.tree.overwritten import overwrite, set_apart, trained
from solstice.tree.ownership import owned
from solstice.tree.pytree import PyTree

_NAME = "OptaxOptimizer"

# The extra arguments that an update may take; the first set that works is used. They are tried in
# this order, but first those with the name in the first failure, since tracing a large model takes
# a while. Never more than needed, since line searches pass unknown ones on to `value_fn`.
_OFFERS = (
    (),
    ("value",),
    ("value", "grad"),
    ("value", "grad", "value_fn"),
    ("grad_fn",),
    ("obj_fn",),
    ("value_fn",),
    ("value", "value_fn"),
    ("value", "grad_fn"),
    ("value", "obj_fn"),
    ("value", "grad", "value_fn", "grad_fn", "obj_fn"),
)

_NAMES = frozenset(_OFFERS[-1])

# Optax's other names for `value_fn`, and how they are called.
_FROM_VALUE_FN: dict[str, Callable[..., PyTree]] = {
    "obj_fn": lambda value_fn: value_fn,
    # The second argument numbers the inner steps of optax.contrib.sam.
    "grad_fn": lambda value_fn: lambda params, step=0: jax.grad(value_fn)(params),
}


class OptaxOptimizer(Optimizer):
    """An Optax gradient transformation, or `optax.MultiSteps`, with its state.

    A learning rate is known if it is in Optax's state: with `optax.inject_hyperparams` (whose rate
    `solstice.set_learning_rate` can also set) and in line searches. A schedule inside
    `optax.chain(clip, optax.adamw(schedule))` is not known: give it as `learning_rate=` too, and it
    is called with the count in Optax's state. `optax.contrib.reduce_on_plateau` scales the known
    rate. If parts have different rates, `learning_rate()` is None; look in `state`. The factors
    that some optimizers estimate (Prodigy, D-Adaptation, Mechanic) are not included.

    Attributes:
        state: Optax's state.
        slow: The slow parameters of `optax.lookahead`; otherwise None.

    >>> import jax.numpy as jnp, optax
    >>> from solstice.compat import OptaxOptimizer
    >>> opt = OptaxOptimizer(optax.inject_hyperparams(optax.adam)(3e-4)).init(jnp.ones(2))
    >>> round(float(opt.learning_rate()), 6), opt.wants
    (0.0003, ())
    >>> schedule = optax.linear_schedule(1.0, 0.0, 10)
    >>> opt = OptaxOptimizer(optax.sgd(schedule), learning_rate=schedule).init(jnp.ones(2))
    >>> _, opt = opt(jnp.ones(2), jnp.ones(2))
    >>> _, opt = opt(jnp.ones(2), jnp.ones(2))
    >>> round(float(opt.learning_rate()), 6)
    0.9
    >>> OptaxOptimizer(optax.lbfgs()).init(jnp.ones(2)).wants
    ('value', 'grad', 'value_fn')
    """

    state: PyTree
    slow: PyTree
    wants: tuple[str, ...] = eqx.field(static=True)
    # The extra arguments of its update, by Optax's names; None until they are found.
    _takes: tuple[str, ...] | None = eqx.field(static=True)
    _transformation: Static[Any] = eqx.field(static=True)
    # The user's rate, as a number or a schedule.
    _rate: Static[Any] = eqx.field(static=True)
    _signature: Static[Signature] | None = eqx.field(static=True)

    def __init__(
        self,
        transformation: optax.GradientTransformation | optax.MultiSteps,
        *,
        wants: tuple[str, ...] | None = None,
        learning_rate: float | optax.Schedule | None = None,
    ) -> None:
        """Adapt a transformation; `init` initialises it.

        Args:
            transformation: The transformation.
            wants: The keywords to call its `update` with, if tracing does not find them: it stops
                at the fewest that work. A training step gives `value`, `grad` and `value_fn`;
                `grad_fn` and `obj_fn` are made from `value_fn`; any other is passed on from the
                step.
            learning_rate: The rate or the schedule that the transformation was made with, for
                `learning_rate()` and logs if its state has none. It does not change updates.

        Raises:
            TypeError: It is not a transformation.
            ValueError: In `init`: `learning_rate` is a schedule, and the state counts no steps.
        """
        parts = [getattr(transformation, name, None) for name in ("init", "update")]
        if isinstance(transformation, type) or not all(map(callable, parts)):
            raise InvalidTypeError(
                f"{_NAME} is expected to get an Optax transformation such as optax.adam(1e-3); it "
                f"got {describe(transformation)}. Call a function of optax first."
            )
        self.state = None
        self.slow = None
        self._takes = None if wants is None else tuple(arguments.texts(wants, "wants"))
        self.wants = _solstice_names(self._takes or ())
        self._transformation = Static(transformation)
        if learning_rate is not None and not callable(learning_rate):
            learning_rate = arguments.number(learning_rate, "learning_rate", least=0)
        elif learning_rate is not None:
            arguments.function(learning_rate, "learning_rate", "count")
        self._rate = Static(learning_rate)
        self._signature = None

    def init(self, params: PyTree) -> Self:
        check_params(params)
        transformation, whole = self._transformation.value, params
        params = trained(params)
        with _no_lookahead_warning():
            state = transformation.init(params)
        slow = None
        if _nodes(state, optax.LookaheadState):
            slow = owned(params)
            state = transformation.init(optax.LookaheadParams(params, slow))
        state = owned(jax.tree.map(jnp.asarray, state))
        takes = self._takes
        if takes is None:
            takes, after = _trace_step(transformation, params, _with_slow(params, slow), state)
            state = _settled(state, after)
        if callable(self._rate.value) and _count(state) is None:
            raise InvalidValueError(
                f"{_NAME}: learning_rate is a schedule, which needs the step count that "
                f"the transformation keeps; this one has none. Give the schedule to the "
                f"transformation itself, such as optax.sgd(schedule), or pass a number."
            )
        return replace(
            self,
            state=state,
            slow=slow,
            wants=_solstice_names(takes),
            _takes=takes,
            _signature=signature(whole),
        )

    def __call__(self, grads: PyTree, params: PyTree, **extras: PyTree) -> tuple[PyTree, Self]:
        check_trees(_NAME, self._signature, gradients=grads, parameters=params)
        check_own_leaves(_NAME, state=self.state)
        extras = check_extras(_NAME, self.wants, extras)
        grads, params, extras, finish = set_apart(grads, params, extras)
        extras = _optax_extras(self._takes or (), extras)
        before = _with_slow(params, self.slow)
        after, state = _step(self._transformation.value, grads, before, self.state, extras)
        state = keep_types(state, self.state)
        if self.slow is None:
            return finish(after), replace(self, state=state)
        return finish(after.fast), replace(self, state=state, slow=after.slow)

    def retarget(self, params: PyTree) -> Self:
        """Return the optimizer for other parameters; see `Optimizer.retarget`.

        Raises:
            ValueError: The transformation holds the state of all parameters in one array, as
                `optax.flatten` does, so it cannot be divided.
        """
        new = self.init(params)
        if self.state is not None and new._signature != self._signature:
            for one in (self, new):
                _check_not_flat(one)
        return carried(new, self)

    def eval_params(self, params: PyTree) -> PyTree:
        if self.slow is not None:
            return overwrite(self.slow, params)
        for node in _nodes(self.state, optax.contrib.ScheduleFreeState):
            params = overwrite(_schedule_free_params(node, trained(params)), params)
        return params

    def learning_rate(self) -> Array | None:
        if self.state is None:
            return None
        found = _named(self.state, "learning_rate")
        if (rate := self._rate.value) is not None:
            if callable(rate) and (count := _count(self.state)) is not None:
                rate = rate(jnp.maximum(count - 1, 0))  # it has already counted the last step
            found = [jnp.asarray(rate, jnp.float32)]
        plateaus = _nodes(self.state, optax.contrib.ReduceLROnPlateauState)
        if len(found) != 1 or (plateaus and _nodes(self.state, optax.transforms.PartitionState)):
            return None  # one of several, or it is not known which parameters a plateau scales
        (rate,) = found
        for plateau in plateaus:
            rate = rate * plateau.scale
        return rate

    def with_learning_rate(self, rate: object) -> Self:
        check_trees(_NAME, self._signature)
        changed = []

        def changing(node: PyTree) -> PyTree:
            if not isinstance(node, _INJECTED):
                return node
            own: dict[str, Any] = dict(node.hyperparams)
            if "learning_rate" in own and "learning_rate" not in node.hyperparams_states:
                changed.append(node)
                own = {**own, "learning_rate": new_rate(rate, own["learning_rate"])}
            return node._replace(hyperparams=own, inner_state=everywhere(node.inner_state))

        def everywhere(state: PyTree) -> PyTree:
            return jax.tree.map(changing, state, is_leaf=lambda node: isinstance(node, _INJECTED))

        state = everywhere(self.state)
        if not changed or self._rate.value is not None:
            if _nodes(self.state, _INJECTED) or self._rate.value is not None:
                why = "It is given by its learning_rate, a constant or a schedule's"
            else:
                why = "It is inside the functions of this transformation"
            raise no_rate(_NAME, why)
        return replace(self, state=state)


# The state classes of optax.inject_hyperparams.
_INJECTED = optax.InjectStatefulHyperparamsState


def _check_not_flat(optimizer: OptaxOptimizer) -> None:
    """Raise if an array of the state has as many numbers as several parameters together."""
    if optimizer._signature is None:
        return
    shapes = [leaf.shape for leaf in optimizer._signature.value.leaves]
    row = (sum(map(math.prod, shapes)),)
    flat = any(leaf.shape == row for leaf in jax.tree.leaves(optimizer.state))
    if flat and row not in shapes:
        raise InvalidValueError(
            f"{_NAME}: the state is expected to have an array for each parameter when other "
            f"parameters are trained; one has the shape {row}, for all parameters together, as "
            f"optax.flatten has it. Use a transformation without it, or start with a new state: "
            f"opt.init(params)."
        )


def _named(state: PyTree, name: str) -> list[PyTree]:
    """Return the arrays with a name in Optax's state."""
    found = optax.tree_utils.tree_get_all_with_path(
        state,
        name,
        filtering=lambda path, value: eqx.is_array(value),  # not a schedule of that name
    )
    return [value for _, value in found]


def _count(state: PyTree) -> Array | None:
    """Return how many updates a state has counted, by its schedule if it has one, or None."""
    schedules = _nodes(state, optax.ScaleByScheduleState)
    counts = [node.count for node in schedules] or _named(state, "count")
    return counts[0] if counts else None


def _nodes(state: PyTree, kind: type) -> list[PyTree]:
    """Return the parts of a state that are of one kind."""
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def _with_slow(params: PyTree, slow: PyTree) -> PyTree:
    return params if slow is None else optax.LookaheadParams(params, slow)


@contextlib.contextmanager
def _no_lookahead_warning() -> Iterator[None]:
    """Silence what `optax.lookahead` logs when it is initialised with plain parameters.

    The state shows whether there is a lookahead inside; it is then initialised again with the pair.
    """
    logger = logging.getLogger("absl")

    def unrelated(record: logging.LogRecord) -> bool:
        return "lookahead init" not in record.getMessage()

    logger.addFilter(unrelated)
    try:
        yield
    finally:
        logger.removeFilter(unrelated)


def _schedule_free_params(node: PyTree, params: PyTree) -> PyTree:
    """Return the averaged parameters; those that this part does not train are unchanged."""

    def is_masked(leaf: object) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    masked = jax.tree.map(lambda z, p: z if is_masked(z) else p, node.z, params, is_leaf=is_masked)
    averaged = optax.contrib.schedule_free_eval_params(node, masked)
    return jax.tree.map(lambda x, p: p if is_masked(x) else x, averaged, params, is_leaf=is_masked)


def _solstice_names(takes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys("value_fn" if name in _FROM_VALUE_FN else name for name in takes))


def _optax_extras(takes: tuple[str, ...], extras: dict[str, PyTree]) -> dict[str, PyTree]:
    return {
        name: _FROM_VALUE_FN[name](extras["value_fn"]) if name in _FROM_VALUE_FN else extras[name]
        for name in takes
    }


def _step(
    transformation: Any, grads: PyTree, params: PyTree, state: PyTree, extras: dict[str, PyTree]
) -> tuple[PyTree, PyTree]:
    updates, state = transformation.update(grads, state, params, **extras)
    return optax.apply_updates(params, updates), state


def _trace_step(
    transformation: Any, grads: PyTree, params: PyTree, state: PyTree
) -> tuple[tuple[str, ...], PyTree]:
    """Find by tracing, without running, what an update takes and the state that it returns."""
    # Of no array itself: its real part would be a program to compile for each shape.
    kinds = (np.zeros((), leaf.dtype).real.dtype for leaf in jax.tree.leaves(grads))
    dtype = jnp.result_type(jnp.float32, *kinds)

    def value_fn(params: PyTree) -> Array:
        sums = [jnp.sum(leaf.real).astype(dtype) for leaf in jax.tree.leaves(params)]
        return sum(sums, jnp.zeros((), dtype))

    extras = {"value": jnp.zeros((), dtype), "grad": grads, "value_fn": value_fn}
    failure: Exception | None = None
    offers = list(_OFFERS)
    while offers:
        takes = offers.pop(0)
        step = functools.partial(_step, transformation, extras=_optax_extras(takes, extras))
        try:
            new_params, new_state = jax.eval_shape(step, grads, params, state)
        except (TypeError, ValueError, KeyError) as error:  # raised for a missing extra
            if failure is None:
                failure, named = error, set(re.findall(r"\w+", str(error)))
                offers.sort(key=lambda offer: not named & _NAMES <= set(offer))
        else:
            _check_same("the parameters", params, new_params)
            return takes, new_state
    raise InvalidTypeError(
        f"{_NAME}: this transformation's update is expected to run for these parameters with "
        f"extras that a training step can give ({', '.join(extras)}) or none; with none it raised "
        f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]} If it takes other extras, "
        f"name them: OptaxOptimizer(transformation, wants=(...))."
    ) from failure


def _settled(state: PyTree, after: PyTree) -> PyTree:
    """Return a state that already has the types that updates return.

    Some start in the parameters' low precision and continue in float32; a monitor starts without
    measurements.
    """
    monitor = getattr(optax.transforms, "MonitorState", ())  # Optax 0.2.7
    if monitor and (monitored := iter(_nodes(after, monitor))):
        state = jax.tree.map(
            lambda node: (
                node._replace(measurements=optax.tree.zeros_like(next(monitored).measurements))
                if isinstance(node, monitor)
                else node
            ),
            state,
            is_leaf=lambda node: isinstance(node, monitor),
        )
    _check_same("its state", state, after)
    return keep_types(state, after)


def _check_same(what: str, before: PyTree, after: PyTree) -> None:
    found = [
        (jax.tree.structure(tree), [leaf.shape for leaf in jax.tree.leaves(tree)])
        for tree in (before, after)
    ]
    if found[0] != found[1]:
        raise InvalidTypeError(
            f"{_NAME}: an update of this transformation is expected to keep the tree and the "
            f"shapes of {what}, or the next step would be another program; it changes them from "
            f"{found[0]} to {found[1]}. Use one that does, or fix the transformation."
        )
