"""Stepper: a run's current experiment, and how it takes steps."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax

from solstice.data.columns import check_columns
from solstice.data.gathered import opened
from solstice.experiment import Experiment, check_result
from solstice.sharding.arrays import local_tree
from solstice.sharding.placements import Sharding
from solstice.sharding.processes import check_same
from solstice.step import Step, join_outs, joined
from solstice.training.calls import Trials
from solstice.training.recompile import RecompileGuard
from solstice.tree.digests import digest
from solstice.tree.flat import Flat

# On a CPU, jax queues 32 calls; after that each new call waits for the oldest, and the calling
# thread wakes up in the middle of every step, with cold caches. Calling in bursts halves that cost,
# which saves 4 to 6% of a step of a millisecond.
_BURST = 12

# The wrappers of jax and Equinox around a step, other than solstice.jit.
_COMPILED: Any = (type(jax.jit(abs)), type(eqx.filter_jit(abs)))


def trials_of(exp: Any) -> Trials:
    """Return the dict of the trials of "auto" for experiments of this form."""
    step = type(exp).train_step
    return step.trials.setdefault(Flat.of(exp).structure, {}) if isinstance(step, Step) else {}


class Stepper:
    """The experiment of a run: whole, flattened, or both while they agree.

    Args:
        exp: The experiment that the run starts with.
        fuses: Returns whether this many steps are taken in one call of a compiled step.
        recompile: What a step that is traced again does.
        donate: Whether the experiment's own buffers may be taken.
        sharding: Where it is placed.

    >>> import jax.numpy as jnp, solstice
    >>> class Count(solstice.Experiment):
    ...     steps: jnp.ndarray
    ...
    ...     @solstice.jit
    ...     def train_step(self, batch):
    ...         return solstice.replace(self, steps=self.steps + 1), batch
    ...
    ...     def eval_step(self, batch):
    ...         return self, batch
    >>> stepper = Stepper(Count(jnp.zeros((), int)))
    >>> float(stepper.take("train", [7.0])), int(stepper.exp.steps)
    (7.0, 1)
    """

    def __init__(
        self,
        exp: Experiment,
        *,
        fuses: Callable[[int], bool] = lambda steps: steps == 1,
        recompile: Literal["warn", "error"] = "warn",
        donate: bool = False,
        sharding: Sharding | None = None,
    ) -> None:
        self._exp: Any = exp
        self._flat: Flat | None = None
        self._type = type(exp)
        # Whether nothing else holds its buffers.
        self._owned = donate
        self._fuses = fuses
        self._recompile: Literal["warn", "error"] = recompile
        self._guards: dict[tuple[str, int], tuple[RecompileGuard, Callable[[], int]]] = {}
        self._sharding = sharding
        self._alone = jax.process_count() == 1
        self._in_bursts = jax.default_backend() == "cpu"
        self._calls, self._awaited = 0, None
        if sharding is not None:
            if not self._alone:
                check_same("The experiment", digest(local_tree(exp)))
            self._flat, self._owned = sharding.placed(Flat.of(exp), donate=donate), True
            self._exp = None

    @property
    def exp(self) -> Any:
        """The current experiment, rebuilt only when something reads it."""
        if self._exp is None:
            assert self._flat is not None
            self._exp = self._flat.whole()
        return self._exp

    @property
    def flat(self) -> Flat:
        """The current experiment, flattened."""
        if self._flat is None:
            self._flat = Flat.of(self._exp)
        return self._flat

    def take(self, mode: str, group: list[Any]) -> Any:
        """Take one step per batch, in one call if possible, and return their joined outs."""
        name = "train_step" if mode == "train" else "eval_step"
        step = getattr(self._type, name)
        if isinstance(step, Step) and self._fuses(len(group)):
            outs = self._fused(step, name, mode, group)
        else:
            # A call with another number of steps would have to be compiled for this one use.
            every = [self._one(step, name, mode, batch) for batch in group]
            outs = every[0] if len(every) == 1 else joined(join_outs(every))
        self._calls += 1
        if self._in_bursts and self._calls % _BURST == 0:
            self._wait(outs)
        return outs if self._alone else local_tree(outs)

    def revise(self, exp: Any) -> None:
        """Continue with another experiment of the same form, whose arrays may be shared."""
        like = self.flat.structure
        self._exp, self._flat, self._owned = exp, Flat.of(exp, like=like), False
        if self._sharding is not None:
            self._flat, self._owned = self._sharding.placed(self._flat), True
            self._exp = None

    def check_columns(self, mode: str, batch: Any) -> None:
        """Raise if the mode's step is compiled and cannot take something in a batch.

        Raises:
            TypeError: The column is named.
        """
        step = getattr(self._type, "train_step" if mode == "train" else "eval_step")
        if isinstance(step, Step | _COMPILED[0]):
            check_columns(batch, f"{mode}_ds")
        elif isinstance(step, _COMPILED[1]):
            check_columns(batch, f"{mode}_ds", static=True)

    def compiles(self, mode: str) -> bool:
        """Return whether jax compiles the mode's step as a whole."""
        step = getattr(self._type, "train_step" if mode == "train" else "eval_step")
        return isinstance(step, (Step, *_COMPILED))

    def trace_evaluation(self, batch: Any) -> Any:
        """Trace a compiled evaluation step, so that its first call need not.

        Return the shapes of its outs; None if it is not compiled.
        """
        step = self._type.eval_step
        if isinstance(step, Step):
            return step.trace(self.flat, batch)
        elif isinstance(step, _COMPILED):
            batch = opened(batch, self.exp.with_mask)
            shapes = eqx.filter_eval_shape(step, self.exp, batch)
            return check_result(self.exp, "eval_step", shapes)[1]
        return None

    def _wait(self, outs: Any) -> None:
        """Wait for the calls before this burst, that is, for what the last one returned."""
        if self._awaited is not None and not self._awaited.is_deleted():
            self._awaited.block_until_ready()
        arrays = (leaf for leaf in jax.tree.leaves(outs) if isinstance(leaf, jax.Array))
        self._awaited = next(arrays, None)

    def _one(self, step: Any, name: str, mode: str, batch: Any) -> Any:
        if isinstance(step, Step):
            return self._fused(step, name, mode, [batch])
        batch = opened(batch, self.exp.with_mask)
        exp, outs = check_result(self.exp, name, getattr(self.exp, name)(batch))
        if exp is not self._exp:
            self._exp, self._type, self._flat, self._owned = exp, type(exp), None, False
            self._place()
        return outs

    def _fused(self, step: Step, name: str, mode: str, group: list[Any]) -> Any:
        before = self.flat
        key = mode, len(group)
        if known := key in self._guards:
            guard, forms = self._guards[key]
        else:
            guard = RecompileGuard(name, self._recompile)
            guard.first(before, group)
            forms = step.forms(fused=mode == "train", steps=len(group))
            self._guards[key] = guard, forms
        traces, met = step.traces, forms()
        if mode == "train":
            if not self._owned:
                before, self._owned = before.copy(), True
            flat, outs = step.fused(before, group)
        else:
            flat, outs = step.pure(before, group)
        if flat is not self._flat:
            self._flat, self._exp = flat, None
            if flat.structure is not before.structure:
                self._type = type(self.exp)
                self._place()
        if known and (traces != step.traces or met != forms()):
            guard.met(before, group, traced=traces != step.traces)
        return outs

    def _place(self) -> None:
        """Place an experiment of another form."""
        if self._sharding is not None:
            self._flat, self._exp = self._sharding.placed(self.flat, donate=True), None
