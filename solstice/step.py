"""jit: a compiled step, which the trainer runs fused.

Fused means that between steps the experiment stays a flat list of arrays, which goes through one
compiled call with its buffers donated; one call may take several steps. Called directly, a step is
an ordinary pure call.
"""

import functools
import inspect
import math
import types
from collections.abc import Callable
from typing import Any, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from solstice.arguments import describe
from solstice.data.gathered import Gathered, opened
from solstice.errors import InvalidTypeError
from solstice.experiment import check_result
from solstice.metrics.accumulator import merge_all
from solstice.metrics.base import is_metrics
from solstice.tree.flat import Flat

# From this many steps on, a call is always a loop of XLA, since the program would be too long; the
# outs are joined inside the loop, this many at a time.
_MANY = 64

# The number of floating-point operations of a step below which one thread is enough.
_LIGHT = 2e7


# A type checker sees the step itself: a method with its batch and outs.
_S = TypeVar("_S", bound=Callable[[Any, Any], tuple[Any, Any]])


def jit(step: _S) -> _S:
    """Return a compiled `train_step` or `eval_step`; use it as a decorator.

    Called directly, the step is a pure call that keeps its experiment and its batch alive. The
    trainer recognises it and runs it fused, with the experiment's buffers donated. As under
    `equinox.filter_jit`, an experiment's arrays are traced and everything else is static: a Python
    number that changes with each step triggers recompilation each time; make it an array.

    Args:
        step: A function of (self, batch) that returns (new experiment, outs).

    Raises:
        TypeError: It is not such a function.

    >>> import jax.numpy as jnp, solstice
    >>> class Count(solstice.Experiment):
    ...     steps: jnp.ndarray
    ...
    ...     @solstice.jit
    ...     def train_step(self, batch):
    ...         return solstice.replace(self, steps=self.steps + 1), None
    ...
    ...     def eval_step(self, batch):
    ...         return self, None
    >>> exp = Count(jnp.zeros((), int))
    >>> int(exp.train_step(None)[0].steps), int(exp.steps)
    (1, 0)
    >>> int(solstice.train(exp, 3, [1.0, 2.0], progress=False).steps)
    6
    """
    if not inspect.isfunction(step) or len(inspect.signature(step).parameters) != 2:
        raise InvalidTypeError(
            f"The step that solstice.jit decorates is expected to be a method of (self, batch); it "
            f"is {describe(step)}. For any other function, use jax.jit or equinox.filter_jit."
        )
    return cast(_S, Step(step))


class Step:
    """A compiled step: the result of `solstice.jit` on a method.

    Attributes:
        traces: How many times jax has traced it; a run checks whether its call was traced. Each
            trace is compiled for each placement of its input (`forms`).
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._pure: Any = jax.jit(self._changes)
        self._fused: Any = jax.jit(self._flat_steps, donate_argnums=0)
        self._rolled: Any = jax.jit(self._loop, donate_argnums=0)
        self._is_rolled: dict[Any, bool] = {}
        # For experiments of one structure, the trials of `steps_per_call="auto"`.
        self.trials: dict[Any, dict[Any, Any]] = {}
        self.traces = 0

    @functools.cached_property
    def _unrolled(self) -> Any:
        # By default, XLA on the CPU reorders a long program for concurrency: ten steps of a small
        # CNN then take eight times the memory and 1.4 times as long.
        order = {"xla_cpu_scheduler_type": 1} if jax.default_backend() == "cpu" else None
        return jax.jit(self._flat_steps, donate_argnums=0, compiler_options=order)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, exp: Any, batch: Any) -> tuple[Any, Any]:
        """Take the step; inputs stay alive, and an unchanged experiment is returned itself."""
        flat = Flat.of(exp)
        new, outs = self.pure(flat, [batch])
        return exp if new is flat else new.whole(), outs

    def pure(self, flat: Flat, batches: list[Any]) -> tuple[Flat, Any]:
        """Take one step per batch; the same experiment is returned if nothing changed."""
        changes, outs = self._pure(flat, batches)
        if isinstance(changes, Flat):
            new = changes
        elif changes:
            arrays = list(flat.arrays)
            for i, array in changes.items():
                arrays[i] = array
            new = Flat(arrays, flat.structure)
        else:
            new = flat
        return new, joined(outs.whole())

    def trace(self, flat: Flat, batch: Any) -> Any:
        """Trace a step without taking it, to find errors. Return the shapes of its outs."""
        _, outs = self._pure.eval_shape(flat, [batch])
        return outs.whole()

    def fused(self, flat: Flat, batches: list[Any]) -> tuple[Flat, Any]:
        """Take one step per batch, in one call, on a flat experiment whose buffers are donated."""
        many = len(batches) > _MANY
        if len(batches) == 1:
            new, outs = self._fused(flat, batches)
        elif self._rolls(flat, batches[0], many=many):
            new, outs = self._rolled(flat, _stacked(batches))
        elif many:
            every = []
            for batch in batches:
                flat, outs = self.fused(flat, [batch])
                every.append(outs)
            return flat, joined(join_outs(every))
        else:
            gathered = type(batches[0]) is Gathered
            new, outs = self._unrolled(flat, _stacked(batches) if gathered else batches)
        return new, joined(outs.whole())

    def forms(self, *, fused: bool, steps: int) -> Callable[[], int]:
        """Return how many forms of input, with placements, such calls have had.

        Each compilation adds one; sometimes a numpy array after a jax array does too.
        """
        if not fused:
            return self._pure._cache_size
        if steps == 1:
            return self._fused._cache_size
        return lambda: self._rolled._cache_size() + self._unrolled._cache_size()

    def _rolls(self, flat: Flat, batch: Any, *, many: bool = False) -> bool:
        """Return whether several steps are faster as a loop of XLA than unrolled."""
        leaves, structure = jax.tree.flatten(batch)
        key = (flat.structure, structure, tuple(map(np.shape, leaves)), many)
        if key not in self._is_rolled:
            step = jax.jit(self._flat_step)
            new, _ = jax.eval_shape(step, flat, batch)
            same = new.structure == flat.structure and all(
                (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, jax.typeof(b).weak_type)
                for a, b in zip(new.arrays, flat.arrays, strict=True)
            )
            # In a loop, XLA runs a convolution or a large product on one CPU thread.
            light = many or (
                jax.default_backend() != "cpu"
                or (step.lower(flat, batch).cost_analysis() or {}).get("flops", 0) < _LIGHT
            )
            alone = flat.structure.placement is None  # a stack would be placed again
            self._is_rolled[key] = alone and same and light and all(map(eqx.is_array, leaves))
        return self._is_rolled[key]

    def _loop(self, flat: Flat, stack: Any) -> tuple[Flat, Flat]:
        self.traces += 1
        # The arrays of gathered batches stay outside the loop.
        whole = stack if type(stack) is Gathered else None
        parts = stack if whole is None else (whole.rows, whole.numbers)

        def one(flat: Flat, part: Any) -> tuple[Flat, Flat]:
            return self._flat_step(flat, part if whole is None else whole.at(part))

        def several(flat: Flat, part: Any) -> tuple[Flat, Flat]:
            flat, outs = jax.lax.scan(one, flat, part)
            return flat, Flat.of(_joined_stack(outs))

        count = len(jax.tree.leaves(parts)[0])
        size = count if count <= _MANY else math.isqrt(count)
        if size == count:
            return several(flat, parts)
        even = count - count % size
        first = jax.tree.map(lambda leaf: leaf[:even].reshape(-1, size, *leaf.shape[1:]), parts)
        flat, outs = jax.lax.scan(several, flat, first)
        joints = _each(outs)
        if even < count:
            flat, rest = several(flat, jax.tree.map(lambda leaf: leaf[even:], parts))
            joints.append(rest.whole())
        return flat, Flat.of(_joined_parts(joints))

    def _flat_steps(self, flat: Flat, batches: list[Any] | Gathered) -> tuple[Flat, Flat]:
        self.traces += 1
        if isinstance(batches, Gathered):
            batches = [batches.at(pair) for pair in zip(batches.rows, batches.numbers, strict=True)]
        if len(batches) == 1:
            return self._flat_step(flat, batches[0])
        every = []
        for batch in batches:
            flat, outs = self.pure(flat, [batch])
            every.append(outs)
        return flat, Flat.of(join_outs(every))

    def _flat_step(self, flat: Flat, batch: Any) -> tuple[Flat, Flat]:
        exp = flat.whole()
        batch = opened(batch, exp.with_mask)
        new, outs = check_result(exp, self._function.__name__, self._function(exp, batch))
        after, outs = Flat.of(new, like=flat.structure), Flat.of(outs)
        if flat.structure.placement is not None:
            _keep_placed(after, flat, outs)
        return after, outs

    def _changes(self, flat: Flat, batches: list[Any]) -> tuple[Any, Flat]:
        """Return the arrays that the step changes, by position; others would only be copied."""
        new, outs = self._flat_steps(flat, batches)
        if new.structure is not flat.structure:
            return new, outs
        pairs = enumerate(zip(new.arrays, flat.arrays, strict=True))
        return {i: array for i, (array, before) in pairs if array is not before}, outs


def _stacked(batches: list[Any]) -> Any:
    """Return batches stacked on a new first axis; numpy arrays on the host, where it is cheap."""
    if type(batches[0]) is Gathered:
        return Gathered.stacked(batches)

    def stack(*leaves: Any) -> Any:
        return (jnp if isinstance(leaves[0], jax.Array) else np).stack(leaves)

    return jax.tree.map(stack, *batches)


def _keep_placed(after: Flat, before: Flat, outs: Flat) -> None:
    """Keep arrays where they were, so that the next step is the same program; replicate outs."""
    placement = before.structure.placement
    assert placement is not None
    constrain = jax.lax.with_sharding_constraint
    if after.structure is before.structure:
        places = zip(after.arrays, before.arrays, placement.arrays, strict=True)
        after.arrays = [new if new is old else constrain(new, at) for new, old, at in places]
    outs.arrays = [constrain(array, placement.outs) for array in outs.arrays]


def join_outs(outs: list[Any]) -> Any:
    """Return the joined outs of several steps: merged if metrics, otherwise stacked.

    >>> join_outs([jnp.zeros(2), jnp.ones(2)]).shape
    (2, 2)
    """
    if len(outs) == 1:
        return outs[0]
    if all(map(is_metrics, outs)):
        try:
            return merge_all(outs)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
            return _Unmerged(outs)  # their merge reads values, which a compiled call cannot
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)


def _each(outs: Flat) -> list[Any]:
    """Return the outs of each of several steps that are stacked on a first axis."""
    count = len(outs.arrays[0]) if outs.arrays else 1
    return [Flat([array[i] for array in outs.arrays], outs.structure).whole() for i in range(count)]


def _joined_stack(outs: Flat) -> Any:
    """Return the outs of several steps, stacked on a first axis; merged if they are metrics."""
    every = _each(outs)
    return join_outs(every) if all(map(is_metrics, every)) else outs.whole()


def _joined_parts(parts: list[Any]) -> Any:
    """Join the results of `_joined_stack` for several stacks."""
    if any(type(part) is _Unmerged for part in parts):
        listed = (part if type(part) is _Unmerged else [part] for part in parts)
        return _Unmerged(one for part in listed for one in part)
    if all(map(is_metrics, parts)):
        return join_outs(parts)
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


class _Unmerged(list):
    """The metrics of several steps that can only be merged outside of a compiled call."""


jax.tree_util.register_pytree_node(
    _Unmerged, lambda outs: (tuple(outs), None), lambda _, outs: _Unmerged(outs)
)


def joined(outs: Any) -> Any:
    """Merge outs that a compiled call could not merge."""
    # Not isinstance, which is slow for an equinox.Module.
    return merge_all(list(outs)) if type(outs) is _Unmerged else outs
