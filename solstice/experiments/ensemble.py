"""Ensemble: many runs of one experiment, in one compiled step.

An ensemble is an Experiment, so the trainer and the callbacks need no special case. The members may
be any experiments whose steps can be vmapped.
"""

from collections.abc import Callable
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from solstice import arguments
from solstice.arguments import describe
from solstice.data.datasets import check_dataset
from solstice.errors import InvalidTypeError, InvalidValueError, SolsticeError
from solstice.experiment import Experiment
from solstice.experiments.caught import caught_tracer
from solstice.experiments.member_stopping import MemberStopping, Standing, where_active
from solstice.experiments.runnable import Runnable
from solstice.loggers.rates import known_rates
from solstice.metrics.base import is_metrics
from solstice.metrics.directions import Direction, better, check_mode, known
from solstice.metrics.ensemble import EnsembleMetrics, is_of_member, member_name
from solstice.metrics.named import meant_name, reported_name
from solstice.signatures import overrides
from solstice.step import jit
from solstice.tree.fields import replace
from solstice.tree.flat import Flat
from solstice.tree.keys import as_key


class Ensemble(Runnable):
    """N runs that differ in seed, hyperparameters or data, trained by one compiled step.

    Member i trains as `make_experiment(keys[i], ...)` would alone. Steps return `EnsembleMetrics`
    if the members return metrics, otherwise the members' outs, stacked.

    Attributes:
        members: The members' experiment, with the member as the first axis of each array.
        num_members: How many there are.

    >>> import equinox as eqx, jax, jax.numpy as jnp, optax, solstice
    >>> x, y = jnp.eye(4), jnp.array([0, 1, 1, 0])
    >>> def make(key, learning_rate):
    ...     adam = optax.inject_hyperparams(optax.adam)(learning_rate)
    ...     return solstice.ClassificationExperiment(
    ...         eqx.nn.MLP(4, 2, 8, 1, key=key), adam, example_input=x
    ...     )
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> ensemble = solstice.Ensemble.init(make, keys, learning_rate=[0.0, 1e-3, 0.1])
    >>> ensemble = solstice.train(ensemble, 20, [(x, y)], progress=False)
    >>> best = ensemble.best("average_loss", [(x, y)])
    >>> best.predict(x).tolist(), round(float(best.optimizer.learning_rate()), 3)
    ([0, 1, 1, 0], 0.1)
    >>> ensemble.predict(x).shape
    (4,)
    """

    members: Any
    num_members: int = eqx.field(static=True)
    own_batches: bool = eqx.field(static=True)
    _standing: Standing | None

    @classmethod
    def init(
        cls,
        make_experiment: Callable[..., Experiment],
        keys: Any,
        /,
        *,
        own_batches: bool = False,
        stopping: MemberStopping | None = None,
        **stacked_hyperparameters: Any,
    ) -> Self:
        """Return an ensemble of as many members as there are keys.

        Args:
            make_experiment: Called once, under `jax.vmap`, as `make_experiment(key, **the member's
                hyperparameters)`. Pass an optimizer's hyperparameters to
                `optax.inject_hyperparams`, which keeps them in the state; an optimizer's closure
                cannot hold one value for each member.
            keys: PRNG keys, `jax.random.split(key, N)`, or a list of int seeds.
            own_batches: Whether each member gets its own batches: every array of a batch then has a
                first axis of members. Otherwise, all members get the same batch.
            stopping: When to stop a single member.
            **stacked_hyperparameters: Arrays or lists with a value for each member, by name.

        Raises:
            TypeError: `make_experiment` keeps a member's value in a static field or in a function
                stored there, or uses it for shapes, such as a width; the message names the value.
            ValueError: There is no key, or there are not as many values as members.
        """
        arguments.function(make_experiment, "make_experiment", "key", more=True)
        arguments.flag(own_batches, "own_batches")
        if stopping is not None:
            arguments.instance(stopping, "stopping", MemberStopping, "a MemberStopping or None")
        keys = _stack_of_keys(keys)
        count = keys.shape[0]
        values = {name: _numbers(name, each) for name, each in stacked_hyperparameters.items()}
        for name, each in values.items():
            if each.shape[:1] != (count,):
                raise InvalidValueError(
                    f"{name} is expected to have a value for each of the {count} members (there "
                    f"are {count} keys), on its first axis; it is {describe(each)}. Put what is "
                    f"the same for all into make_experiment itself."
                )

        def make(key: Any, hyperparameters: dict[str, Any]) -> Flat:
            exp = make_experiment(key, **hyperparameters)
            if not isinstance(exp, Experiment):
                raise InvalidTypeError(
                    f"make_experiment is expected to return an Experiment; it returned "
                    f"{describe(exp)}."
                )
            if where := caught_tracer(exp):
                raise _caught(f"{type(exp).__name__}: {where} holds one")
            return Flat.of(exp)

        try:
            members = jax.vmap(make)(keys, values).whole()
        except Exception as error:
            ours = isinstance(error, SolsticeError)
            told = ours and not isinstance(error.__cause__, jax.errors.JAXTypeError)
            if not told and (built := _built_with(make, keys, values)):
                raise _differently_built(built) from error
            raise
        standing = None if stopping is None else Standing.start(stopping, count)
        return cls(members, count, own_batches, standing)

    @jit
    def train_step(self, batch: Any) -> tuple[Self, Any]:
        """Take one step of each member that has not stopped."""
        before = Flat.of(self.members)
        members, outs = self._step("train_step", before, batch)
        standing = self._standing
        if standing is not None:
            standing = standing.judged()
            if members.structure != before.structure:
                raise InvalidValueError(
                    "Members that can stop are expected to keep their structure in a step; "
                    "train_step changes it. Make the arrays that it adds when the experiment is "
                    "made."
                )
            arrays = where_active(standing.active, members.arrays, before.arrays)
            members = Flat(arrays, members.structure)
        return replace(self, members=members.whole(), _standing=standing), outs

    @jit
    def eval_step(self, batch: Any) -> tuple[Self, Any]:
        """Evaluate each member."""
        before = Flat.of(self.members)
        members, outs = self._step("eval_step", before, batch)
        standing = self._standing
        if standing is not None:
            standing = standing.after(outs)
        return replace(self, members=members.whole(), _standing=standing), outs

    def __call__(self, x: Any) -> Any:
        """Return the average of the members' outputs `exp(x)` for a batch of inputs.

        The members' `average_outputs(outputs)` computes it: classifiers average the probabilities
        and return logits; the default is the mean.
        """
        outputs = _outputs(self.members, "__call__", x)
        return self.average_outputs(outputs)

    def predict(self, x: Any) -> Any:
        """Return the ensemble's prediction for a batch of inputs.

        The members' `decide(outputs)` makes it from the averaged outputs; without that method, it
        is the mean of the members' predictions.

        Raises:
            TypeError: The predictions are not real numbers, so they have no mean.
        """
        if overrides(self.innermost(), Experiment, "decide"):
            return self.decide(self(x))
        predictions = _outputs(self.members, "predict", x)
        for leaf in jax.tree.leaves(predictions):
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                raise InvalidTypeError(
                    f"The members' predictions are expected to be real numbers, which have "
                    f"a mean; they are {describe(leaf)}. Give {type(self.members).__name__} the "
                    f"methods __call__(x), whose outputs are averaged, and decide(outputs)."
                )
        return Experiment.average_outputs(self.members, predictions)

    def member(self, i: int) -> Any:
        """Return one member as a separate experiment.

        Raises:
            IndexError: There is no such member.
        """
        i = arguments.index(i, "i", self.num_members, "members")
        flat = Flat.of(self.members)
        return Flat([array[i] for array in flat.arrays], flat.structure).whole()

    def best(self, metric: str, ds: Any = None, *, mode: Direction | None = None) -> Any:
        """Return the member with the best value of a metric, as a separate experiment.

        A member whose value is NaN is never the best.

        Args:
            metric: The name in the members' `compute()`; `loss` finds `average_loss`.
            ds: The dataset to measure it on. None uses each member's best validation pass so far,
                for the metric that `stopping` watches.
            mode: "min" or "max". None asks the metric, which knows it for the standard names
                (`solstice.metrics.direction`).

        Raises:
            ValueError: There is no such metric, no dataset to measure it on, no member with a
                value, or no known direction of the metric.
        """
        arguments.text(metric, "metric")
        check_mode(mode)
        if ds is not None:
            check_dataset(ds, "ds")
            values = self._signed_values(metric, ds, mode)
        elif self._standing is not None and self._standing.rule.is_about(metric, mode):
            values = np.asarray(self._standing.judged().best)
        else:
            raise InvalidValueError(
                f"The members' {metric!r} is not known, and ds is None: pass a dataset to measure "
                f"it on, best({metric!r}, val_ds)."
            )
        ranked = np.where(np.isnan(values), -np.inf, values)
        if np.isnan(values).all() or (ds is None and np.isneginf(ranked).all()):
            raise InvalidValueError(
                f"No member has a finite value of {metric!r} yet. Train them with a "
                f"val_ds, or find out why they diverge."
            )
        return self.member(int(ranked.argmax()))

    def _signed_values(self, metric: str, ds: Any, mode: Direction | None) -> np.ndarray:
        """Return each member's value over a dataset, with a sign that makes larger ones better."""
        metrics = self._measured(ds, progress=False)
        each = metrics.per_member() if isinstance(metrics, EnsembleMetrics) else {}
        numbers = [name for name, values in each.items() if values.ndim == 1]
        name = reported_name(metric, numbers)
        if name is None:
            raise InvalidValueError(
                f"The metric {metric!r} is not one of the members' numbers, which are "
                f"{', '.join(numbers) or 'none'}.{meant_name(metric, numbers)}"
            )
        mode = mode or known(better(metrics, name), name, "mode='min' or mode='max'")
        return each[name] if mode == "max" else -each[name]

    @property
    def active(self) -> Bool[Array, " members"]:
        """Which members have not stopped."""
        if self._standing is None:
            return jnp.ones(self.num_members, bool)
        return self._standing.judged().active

    def with_mask(self, batch: Any, real: Any) -> Any:
        """Call the members' method; None with `own_batches`, which are not padded."""
        return None if self.own_batches else self.members.with_mask(batch, real)

    def learns_from_whole_batches(self, batch: Any) -> bool:
        """Describe what a member does."""
        return self.member(0).learns_from_whole_batches(batch)

    def check_batch(self, batch: Any) -> None:
        """Raise for a batch that a member refuses."""
        member = self.member(0)
        for one in self._own(batch) if self.own_batches else [batch]:
            member.check_batch(one)

    def batch_inputs(self, batch: Any) -> Any:
        """Return the inputs of a batch as the members do, for `solstice.predict`."""
        return self.members.batch_inputs(batch)

    def average_outputs(self, outputs: Any) -> Any:
        """Return the average of outputs along their first axis, by the members' method."""
        return self.members.average_outputs(outputs)

    def decide(self, outputs: Any) -> Any:
        """Return the prediction for averaged outputs, by the members' method; None without one."""
        return self.members.decide(outputs)

    def innermost(self) -> Experiment:
        return self.members.innermost()

    def learning_rates(self) -> dict[str, Any]:
        """Return the members' mean learning rate, and each member's, if known."""
        every = jax.vmap(lambda flat: known_rates(flat.whole()))(Flat.of(self.members))
        rates = {name: each.mean(0) for name, each in every.items() if not is_of_member(name)}
        for name, each in every.items():
            rates |= {member_name(name, i): each[i] for i in range(self.num_members)}
        return rates

    def _own(self, batch: Any) -> list[Any]:
        self._check_own(batch)
        return [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(self.num_members)]

    def _check_own(self, batch: Any) -> None:
        for leaf in jax.tree.leaves(batch):
            if np.shape(leaf)[:1] != (self.num_members,):
                raise InvalidValueError(
                    f"With own_batches, each array of a batch is expected to have a first axis of "
                    f"{self.num_members} members; one is {describe(leaf)}. Stack the members' "
                    f"batches: jax.tree.map(lambda *each: np.stack(each), *batches)."
                )

    def _step(self, name: str, members: Flat, batch: Any) -> tuple[Flat, Any]:
        """Take one step of each member; return the members and their outs."""
        if self.own_batches:
            self._check_own(batch)
        kinds: list[bool] = []

        def one(flat: Flat, batch: Any) -> tuple[Flat, Flat]:
            new, outs = getattr(flat.whole(), name)(batch)
            kinds.append(is_metrics(outs))
            return Flat.of(new, like=flat.structure), Flat.of(outs)

        try:
            axes = (0, 0 if self.own_batches else None)
            new, outs = jax.vmap(one, in_axes=axes)(members, batch)
        except jax.errors.UnexpectedTracerError as error:
            raise _caught(f"{type(self.members).__name__}.{name} met one") from error
        return new, EnsembleMetrics(outs.whole()) if kinds[0] else outs.whole()


def _outputs(members: Any, name: str, x: Any) -> Any:
    """Return what a method of each member returns for the same inputs."""
    method = getattr(type(members), name, None)
    if method is None:
        raise InvalidTypeError(
            f"An ensemble averages what its members' {name} returns; {type(members).__name__} has "
            f"no such method."
        )
    return jax.vmap(lambda flat: method(flat.whole(), x))(Flat.of(members))


def _stack_of_keys(keys: Any) -> Array:
    if isinstance(keys, list | tuple):
        try:
            keys = jnp.stack([as_key(key) for key in keys]) if keys else jnp.zeros(0)
        except InvalidTypeError as error:
            raise InvalidTypeError(
                f"keys are expected to be a PRNG key or a seed for each member; they are "
                f"{describe(keys)}: {error}"
            ) from error
    is_stack = isinstance(keys, jax.Array) and (
        keys.ndim == 1 if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) else keys.ndim == 2
    )
    if not is_stack or not keys.shape[0]:
        raise InvalidValueError(
            f"keys are expected to be a PRNG key for each member, such as "
            f"jax.random.split(jax.random.key(0), 8), or a list of seeds; they are "
            f"{describe(keys)}."
        )
    return keys


def _numbers(name: str, each: Any) -> Array:
    try:
        return jnp.asarray(each)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidTypeError(
            f"{name} is expected to be an array or a list of numbers, one for each member; it is "
            f"{describe(each)}. Anything but a number (a name, a function) is the same for all: "
            f"make an ensemble for each, and give it to make_experiment with functools.partial."
        ) from error


def _built_with(make: Callable[..., Any], keys: Array, values: dict[str, Array]) -> list[str]:
    """Return the hyperparameters that make_experiment needs as plain Python numbers.

    Each is traced while the others have the first member's values, with more calls of
    `make_experiment`. If the first member's values fail by themselves, none is returned.
    """
    first = {name: np.asarray(each)[0] for name, each in values.items()}
    first = {name: one if one.ndim else one.item() for name, one in first.items()}

    def fails(traced: dict[str, Array]) -> bool:
        try:
            jax.eval_shape(lambda key, some: make(key, first | some), keys[0], traced)
        except Exception:  # noqa: BLE001 - whatever it is, the first error is raised
            return True
        return False

    if fails({}):
        return []
    return [name for name, each in values.items() if fails({name: each[0]})]


def _differently_built(names: list[str]) -> TypeError:
    listed = " and ".join(map(repr, names))
    return InvalidTypeError(
        f"A hyperparameter of an ensemble is expected to be a number that the members' arrays hold "
        f"(a rate, a scale): all members are one program. make_experiment builds them with "
        f"{listed}, on which shapes or the program depend. Make one ensemble for each value, and "
        f"give it to make_experiment as a Python number: "
        f"[Ensemble.init(functools.partial(make_experiment, {names[0]}=value), keys) for value in "
        f"values]."
    )


def _caught(where: str) -> TypeError:
    return InvalidTypeError(
        f"A value that differs between the members of an ensemble (its tracer) is expected in an "
        f"array of the experiment; {where}, which is static, one for all members. Give an "
        f"optimizer's hyperparameters to optax.inject_hyperparams, as in "
        f"optax.inject_hyperparams(optax.adam)(learning_rate), keep others in array fields, and "
        f"leave what the network is built of (sizes, functions) the same for all."
    )
