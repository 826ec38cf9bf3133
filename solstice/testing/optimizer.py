"""The laws of a `compat.Optimizer`, and `check_optimizer`, which runs them on yours."""

from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from solstice import arguments
from solstice.compat.optimizer import Optimizer
from solstice.errors import InvalidTypeError
from solstice.testing.compare import assert_close, assert_same_bits, assert_same_signature, values
from solstice.testing.law import EXAMPLES, Law, LawBook, Report, check_returned, maker, run
from solstice.testing.strategies import seeds
from solstice.tree.overwritten import Overwritten
from solstice.tree.pytree import PyTree

_STEPS = 3


class OptimizerSubject:
    """An optimizer under the laws, for `law.check(subject)`; its arguments are `check_optimizer`'s.

    It minimises the squared distance to a target that depends on a seed.

    Args:
        make_optimizer: Makes the optimizer, not initialised yet.
        params: A pytree of float arrays for it to move.
        native: The library's loop, or None.
    """

    def __init__(
        self,
        make_optimizer: Callable[[], Optimizer],
        params: PyTree,
        native: Callable[..., Any] | None = None,
    ) -> None:
        self.make_optimizer = maker(
            make_optimizer, "make_optimizer", "", Optimizer, "a compat.Optimizer"
        )
        leaves = jax.tree.leaves(params)
        if not leaves or not all(map(eqx.is_inexact_array_like, leaves)):
            raise InvalidTypeError(
                f"params are expected to be a tree of arrays of floats; they are "
                f"{arguments.describe(params)}."
            )
        self.params = jax.tree.map(jnp.asarray, params)
        self.native: Any = native
        if native is not None:
            arguments.function(native, "native", "params, value_fn, steps")
        self.optimizer = make_optimizer()
        check_returned(self.optimizer, "make_optimizer", Optimizer, "a compat.Optimizer")
        self.initial = self.optimizer.init(self.params)
        self.step = jax.jit(descend)
        self.scan = jax.jit(_scan)

    def __str__(self) -> str:
        return type(self.optimizer).__name__


def objective(params: PyTree, seed: Any) -> Array:
    """Return the squared distance of params to a target; every leaf has a different scale."""
    total = jnp.zeros(())
    for i, leaf in enumerate(jax.tree.leaves(params)):
        # No random numbers, which would take longer to compile than most optimizers.
        target = jnp.sin(seed % 997 + i + jnp.arange(leaf.size).reshape(leaf.shape))
        total += (i + 1) * jnp.sum(jnp.abs(leaf - target) ** 2)
    return total


def descend(params: PyTree, optimizer: Optimizer, seed: Any) -> tuple[PyTree, Optimizer]:
    """Take one step on the objective."""
    value, grad = jax.value_and_grad(objective)(params, seed)
    return optimizer(
        grad, params, value=value, grad=grad, value_fn=lambda params: objective(params, seed)
    )


def _scan(params: PyTree, optimizer: Optimizer, seed: Any) -> tuple[PyTree, Optimizer]:
    def body(carry: tuple[PyTree, Optimizer], _: None) -> tuple[tuple[PyTree, Optimizer], None]:
        return descend(*carry, seed), None

    return jax.lax.scan(body, (params, optimizer), length=_STEPS)[0]


_book = LawBook(OptimizerSubject, seed=lambda subject: seeds())


@_book.law("seed")
def signature_is_stable(subject: OptimizerSubject, seed: int) -> None:
    """Steps keep tree, shapes, dtypes and weak types of params and state."""
    params, optimizer = subject.params, subject.initial
    for i in range(2):
        params, optimizer = subject.step(params, optimizer, seed)
        assert_same_signature(subject.params, params, f"params after {i + 1} steps")
        assert_same_signature(subject.initial, optimizer, f"the optimizer after {i + 1} steps")


@_book.law()
def steps_trace_once(subject: OptimizerSubject) -> None:
    """Any number of steps compiles once."""
    traces = []

    @jax.jit
    def step(params: PyTree, optimizer: Optimizer) -> tuple[PyTree, Optimizer]:
        traces.append(1)
        return descend(params, optimizer, 0)

    params, optimizer = subject.params, subject.initial
    for _ in range(_STEPS):
        step.trace(params, optimizer)  # one trace means one compilation
        params, optimizer = subject.step(params, optimizer, 0)
    assert len(traces) == 1, f"{_STEPS} steps were traced {len(traces)} times"


@_book.law()
def steps_are_pure(subject: OptimizerSubject) -> None:
    """A step changes neither parameters nor optimizer, and repeats bit for bit."""
    seed = 0  # only one, since without jit a line search is compiled for each
    before = values((subject.params, subject.initial))
    one, two = (subject.step(subject.params, subject.initial, seed) for _ in range(2))
    descend(subject.params, subject.initial, seed)
    assert_same_bits(before, values((subject.params, subject.initial)), "before and after a step")
    assert_same_bits(one, two, "the same step twice")


@_book.law("seed")
def init_starts_anew(subject: OptimizerSubject, seed: int) -> None:
    """Initialising again, also after steps, gives the same fresh optimizer."""
    _, stepped = subject.step(subject.params, subject.initial, seed)
    for optimizer in (subject.optimizer, subject.initial, stepped):
        assert_same_bits(subject.initial, optimizer.init(subject.params), "initialised twice")


@_book.law("seed")
def it_moves_the_parameters(subject: OptimizerSubject, seed: int) -> None:
    """Steps on a gradient change the parameters."""
    params, optimizer = subject.params, subject.initial
    for _ in range(_STEPS):
        params, optimizer = subject.step(params, optimizer, seed)
    before, after = values(subject.params), values(params)
    assert not before or any(before[path].tobytes() != after[path].tobytes() for path in before), (
        f"{_STEPS} steps left every parameter as it was"
    )


@_book.law("seed")
def scan_equals_loop(subject: OptimizerSubject, seed: int) -> None:
    """Steps in a scan give the same as in a loop."""
    params, optimizer = subject.params, subject.initial
    for _ in range(_STEPS):
        params, optimizer = subject.step(params, optimizer, seed)
    scanned = subject.scan(subject.params, subject.initial, seed)
    assert_close((params, optimizer), scanned, "after a loop and a scan", rtol=1e-4)


@_book.law("seed")
def names_do_not_matter(subject: OptimizerSubject, seed: int) -> None:
    """The same parameters in another tree move the same way."""
    # The same order of leaves, so that rounding is the same too.
    leaves = jax.tree.leaves(subject.params)
    relabelled = {f"{i:03d}": leaf for i, leaf in enumerate(leaves)}
    params, _ = subject.step(subject.params, subject.initial, seed)
    moved, _ = subject.step(relabelled, subject.optimizer.init(relabelled), seed)
    assert_close(jax.tree.leaves(params), jax.tree.leaves(moved), "in two trees")


@_book.law("seed")
def none_leaves_pass(subject: OptimizerSubject, seed: int) -> None:
    """None in the tree, where parameters are frozen, stays None and changes nothing."""
    holed = {"real": subject.params, "hole": None, "more": [None, None]}
    params, _ = subject.step(subject.params, subject.initial, seed)
    moved, _ = subject.step(holed, subject.optimizer.init(holed), seed)
    assert moved["hole"] is None and moved["more"] == [None, None], "a hole was filled"
    assert_close(params, moved["real"], "with and without holes")


@_book.law()
def overwritten_leaves_take_their_gradient(subject: OptimizerSubject) -> None:
    """An overwritten leaf (`compat.Overwritten`) becomes its gradient, and changes nothing else."""
    mixed = {"real": subject.params, "scale": Overwritten(jnp.full(2, 3.0))}
    params, _ = subject.step(subject.params, subject.initial, 0)

    @jax.jit
    def step(mixed: PyTree, optimizer: Optimizer) -> PyTree:
        value, grad = jax.value_and_grad(objective)(mixed["real"], 0)
        grads = {"real": grad, "scale": Overwritten(jnp.full(2, 7.0))}
        return optimizer(
            grads,
            mixed,
            value=value,
            grad=grads,
            value_fn=lambda mixed: objective(mixed["real"], 0) + 0 * mixed["scale"].value.sum(),
        )

    optimizer = subject.optimizer.init(mixed)
    moved, optimizer = step(mixed, optimizer)
    assert isinstance(moved["scale"], Overwritten), "the box is gone"
    assert moved["scale"].value.tolist() == [7, 7], (
        f"its gradient was 7, and it became {moved['scale'].value.tolist()}"
    )
    assert_close(params, moved["real"], "with and without an overwritten parameter")
    averaged = optimizer.eval_params(moved)
    assert averaged["scale"].value.tolist() == [7, 7], "eval_params() gives another value"


@_book.law(needs="native")
def equals_the_native_loop(subject: OptimizerSubject) -> None:
    """Steps equal those of the library's loop, bit for bit under jit."""
    params, optimizer = subject.params, subject.initial
    # The seed is a constant in both, or the compiler would see two programs.
    seed = 1
    step = jax.jit(lambda params, optimizer: descend(params, optimizer, seed))
    for _ in range(_STEPS):
        params, optimizer = step(params, optimizer)
    theirs = subject.native(subject.params, lambda params: objective(params, seed), _STEPS)
    assert_same_bits(params, theirs, "through the adapter and by the library")


OPTIMIZER_LAWS: tuple[Law, ...] = tuple(_book.laws)


def check_optimizer(
    make_optimizer: Callable[[], Optimizer],
    params: PyTree,
    *,
    exclude: Iterable[str] = (),
    native: Callable[..., Any] | None = None,
    examples: int = EXAMPLES,
    on_failure: str = "raise",
    progress: bool = False,
) -> Report:
    """Check every law of an `Optimizer` on an adapter, and return the report.

    Args:
        make_optimizer: Makes the optimizer, not initialised yet.
        params: Parameters to initialise it with: a pytree of float arrays.
        exclude: Names of laws to leave out, or a mapping from them to reasons.
        native: The library's loop, `native(params, value_fn, steps)`, returning the parameters
            after this many jitted steps on `value_fn`; without it, the law that compares with it is
            skipped.
        examples: How many inputs Hypothesis draws for each law.
        on_failure: "raise" or "report", as in `check_model`.
        progress: Whether to show a progress bar.

    Raises:
        LawError: A law is violated.

    >>> import jax.numpy as jnp, optax, solstice
    >>> tx = optax.adam(1e-2)
    >>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    >>> report = solstice.testing.check_optimizer(
    ...     lambda: solstice.compat.OptaxOptimizer(tx), params, examples=2
    ... )
    >>> len(report.failures)
    0
    """
    subject = OptimizerSubject(make_optimizer, params, native)
    return run(
        OPTIMIZER_LAWS,
        subject,
        exclude=exclude,
        examples=examples,
        on_failure=on_failure,
        progress=progress,
    )
