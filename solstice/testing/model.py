"""The laws of a `compat.Model`, and `check_model`, which runs them on your adapter."""

import copy
import functools
import tempfile
import unittest
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from solstice.compat.freeze import freeze
from solstice.compat.model import Model, boxed_weights
from solstice.compat.registry import as_model
from solstice.errors import MissingPackageError
from solstice.exporting.export import export
from solstice.exporting.exported import Exported, load_exported
from solstice.exporting.folder import check_packages
from solstice.exporting.programs import FixedSizeError
from solstice.testing.compare import (
    assert_close,
    assert_same_bits,
    assert_same_signature,
    values,
)
from solstice.testing.law import EXAMPLES, Law, LawBook, Report, run
from solstice.testing.model_subject import ModelSubject, Native
from solstice.testing.model_surgery import SURGERY_LAWS
from solstice.testing.model_weights import WEIGHT_LAWS
from solstice.testing.strategies import masks, permutations, seeds, splits
from solstice.tree.dependence import depends_on, used_leaves
from solstice.tree.fields import replace
from solstice.tree.names import few
from solstice.tree.naming import leaves_by_path
from solstice.tree.overwritten import trained
from solstice.tree.programs import equations
from solstice.tree.pytree import PyTree

# Operations that leave the device for a function of Python, which no file can hold.
_ON_THE_HOST = {"debug_callback", "debug_print", "io_callback", "pure_callback"}

_book = LawBook(
    ModelSubject,
    seed=lambda subject: seeds(),
    permutation=lambda subject: permutations(subject.batch_size),
    split=lambda subject: splits(subject.batch_size),
    mask=lambda subject: masks(len(jax.tree.leaves(trained(subject.model.params)))),
)


@_book.law()
def leaves_are_arrays(subject: ModelSubject) -> None:
    """Every leaf is a jax array; params are strongly typed and inexact."""
    for name, leaf in leaves_by_path(subject.model).items():
        assert isinstance(leaf, jax.Array), f"{name} is {type(leaf).__name__}, not a jax array"
        assert not getattr(leaf, "weak_type", False), (
            f"{name} is weakly typed; adapt it with an explicit dtype"
        )
    for name, leaf in leaves_by_path(subject.model.params).items():
        assert jnp.issubdtype(leaf.dtype, jnp.inexact), (
            f"params hold {name} of {leaf.dtype}, which has no gradient: it is frozen"
        )


@_book.law("seed")
def signature_is_stable(subject: ModelSubject, seed: int) -> None:
    """Training keeps tree, shapes, dtypes and weak types."""
    model = subject.model
    for i in range(2):
        _, model = subject.train(model, jax.random.key(seed + i), *subject.inputs)
        assert_same_signature(subject.model, model, f"after {i + 1} training steps")


@_book.law("seed")
def steps_trace_once(subject: ModelSubject, seed: int) -> None:
    """Any number of training steps compiles once."""
    traces = []

    @jax.jit
    def step(model: Model, key: Array, *inputs: Any) -> Model:
        traces.append(1)
        return model(*inputs, key=key, train=True)[1]

    model = subject.model
    for i in range(3):
        key = jax.random.key(seed + i)
        step.trace(model, key, *subject.inputs)  # one trace means one compilation
        _, model = subject.train(model, key, *subject.inputs)
    assert len(traces) == 1, f"3 steps were traced {len(traces)} times"


@_book.law("seed")
def eval_returns_itself(subject: ModelSubject, seed: int) -> None:
    """Evaluation returns the identical model, repeats bit for bit and ignores the key."""
    outputs, model = subject.model(*subject.inputs)
    assert model is subject.model, "evaluation returned another model: its state changed"
    again, _ = subject.model(*subject.inputs)
    assert_same_bits(outputs, again, "evaluated twice")
    keyed, _ = subject.model(*subject.inputs, key=jax.random.key(seed))
    assert_same_bits(outputs, keyed, "evaluated with a key")


@_book.law("seed")
def training_is_a_function(subject: ModelSubject, seed: int) -> None:
    """Training depends only on model, inputs and key: the same ones give the same bits."""
    key = jax.random.key(seed)
    one = subject.train_anew(subject.model, key, *subject.inputs)
    two = subject.train(subject.model, key, *subject.inputs)
    assert_same_bits(one, two, "the same training step twice")


@_book.law("seed")
def calls_change_nothing(subject: ModelSubject, seed: int) -> None:
    """No call changes its model or its inputs."""
    model = subject.model
    inputs = jax.tree.map(lambda leaf: leaf, subject.inputs)  # containers that may be changed
    before, structure = values((model, inputs)), jax.tree.structure(model)
    model(*inputs)
    model(*inputs, key=jax.random.key(seed), train=True)
    assert jax.tree.structure(model) == structure, "the model's structure changed"
    assert_same_bits(before, values((model, inputs)), "before and after calls")


@_book.law("seed")
def keys_decide_randomness(subject: ModelSubject, seed: int) -> None:
    """A network that draws random numbers in training draws different ones with another key.

    It may draw them only in the backward pass, as stochastic rounding of gradients does.
    """
    model, key = subject.model, jax.random.key(seed)
    outputs, _ = subject.train(model, key, *subject.repeated())
    rows_differ = any(bool((row[:1] != row).any()) for row in jax.tree.leaves(outputs))

    def step(key: Array) -> PyTree:
        gradients = subject.gradients(model.params, model, key, *subject.inputs)
        return subject.train(model, key, *subject.inputs)[0], gradients

    if not (rows_differ or depends_on(step, key)):
        return  # it draws none
    steps = step(key), step(jax.random.key(seed + 1))
    same = [bool((a == b).all()) for a, b in zip(*map(jax.tree.leaves, steps), strict=True)]
    assert not all(same), (
        "training draws random numbers, but two keys give the same outputs and gradients: the key "
        "is not used (a constant mask, a dropped seed)"
    )


@_book.law()
def a_missing_key_is_told(subject: ModelSubject) -> None:
    """Without a key, training raises a ValueError that says so, or needs none."""
    try:
        jax.eval_shape(lambda: subject.model(*subject.inputs, train=True)[0])
    except Exception as error:
        if not isinstance(error, ValueError) or "key" not in str(error):
            raise AssertionError(
                f"it raises {type(error).__name__}: {error}; raise compat.missing_key(...)"
            ) from error


@_book.law("seed")
def raw_and_typed_keys_agree(subject: ModelSubject, seed: int) -> None:
    """A raw key and the typed key of the same seed give the same bits."""
    typed = subject.train(subject.model, jax.random.key(seed), *subject.inputs)
    raw = subject.train(subject.model, jax.random.PRNGKey(seed), *subject.inputs)
    assert_same_bits(typed, raw, "a typed and a raw key")


@_book.law()
def training_updates_state(subject: ModelSubject) -> None:
    """If outputs depend on state, a training step changes some of it."""

    def outputs(state: PyTree, train: bool) -> Any:
        model = replace(subject.model, state=state)
        return model(*subject.inputs, key=jax.random.key(0), train=train)[0]

    if not any(
        depends_on(functools.partial(outputs, train=train), subject.model.state)
        for train in (True, False)
    ):
        return
    before = values(subject.model.state)
    _, model = subject.model(*subject.inputs, key=jax.random.key(0), train=True)
    if _differ(before, values(model.state)):
        return
    try:  # it may have its own random streams, which only a call without a key advances
        _, model = subject.model(*subject.inputs, train=True)
    except ValueError:  # it has none, and needs a key
        pass
    else:
        if _differ(before, values(model.state)):
            return
    raise AssertionError(
        "a training step returned all state unchanged: batch statistics are dropped, or constants "
        "are kept in `state` (put them into `frozen`)"
    )


@_book.law("seed")
def forward_keeps_weights(subject: ModelSubject, seed: int) -> None:
    """A forward pass never changes params or frozen."""
    model = subject.model
    _, trained = subject.train(model, jax.random.key(seed), *subject.inputs)
    assert_same_bits(model.params, trained.params, "params after a forward pass")
    assert_same_bits(model.frozen, trained.frozen, "frozen after a forward pass")


@_book.law()
def params_are_no_buffers(subject: ModelSubject) -> None:
    """No parameter is used only in evaluation: that is a buffer, such as a running average."""
    model = subject.model

    def outputs(params: PyTree, train: bool) -> Any:
        return replace(model, params=params)(*subject.inputs, key=jax.random.key(0), train=train)[0]

    in_training, in_evaluation = (
        used_leaves(functools.partial(outputs, train=train), model.params)
        for train in (True, False)
    )
    for path, training, evaluated in zip(
        values(model.params), in_training, in_evaluation, strict=True
    ):
        assert training or not evaluated, (
            f"params hold {path}, which only evaluation uses: put it into `state`"
        )


@_book.law("permutation")
def eval_is_equivariant(subject: ModelSubject, permutation: list[int]) -> None:
    """Evaluating permuted examples permutes the outputs."""
    order = np.array(permutation)
    outputs = subject.evaluate(subject.model, *subject.inputs)
    permuted = subject.evaluate(subject.model, *jax.tree.map(lambda x: x[order], subject.inputs))
    assert_close(
        jax.tree.map(lambda y: y[order], outputs), permuted, "permuted outputs, and inputs"
    )


@_book.law("split")
def eval_is_per_example(subject: ModelSubject, split: int) -> None:
    """Evaluating two batches gives the same as evaluating them as one."""
    outputs = subject.evaluate(subject.model, *subject.inputs)
    parts = [
        subject.evaluate(subject.model, *jax.tree.map(lambda x, s=s: x[s], subject.inputs))
        for s in (slice(None, split), slice(split, None))
    ]
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    assert_close(outputs, joined, "one batch, and two joined")


@_book.law("seed")
def jit_equals_eager(subject: ModelSubject, seed: int) -> None:
    """A jitted call gives the same as an eager one, in both modes."""
    key = jax.random.key(seed)
    assert_close(
        subject.evaluate(subject.model, *subject.inputs),
        subject.model(*subject.inputs)[0],
        "evaluation with and without jit",
    )
    assert_close(
        subject.train(subject.model, key, *subject.inputs),
        subject.model(*subject.inputs, key=key, train=True),
        "training with and without jit",
    )


@_book.law("seed")
def gradients_match_params(subject: ModelSubject, seed: int) -> None:
    """Gradients have the tree, shapes and dtypes of params."""
    model = subject.model
    grads = subject.gradients(model.params, model, jax.random.key(seed), *subject.inputs)
    assert_same_signature(model.params, grads, "params and their gradients")


@_book.law("mask")
def freezing_keeps_outputs(subject: ModelSubject, mask: list[bool]) -> None:
    """Freezing parameters changes no output."""
    frozen = _frozen(subject.model, mask)
    assert_close(
        subject.evaluate(subject.model, *subject.inputs),
        subject.evaluate(frozen, *subject.inputs),
        "before and after freezing",
    )


@_book.law("mask", "seed")
def a_subset_trains_as_in_the_whole(subject: ModelSubject, mask: list[bool], seed: int) -> None:
    """The gradients of some parameters are the same whether or not the others are frozen."""
    model, key = subject.model, jax.random.key(seed)
    frozen = _frozen(model, mask)
    whole = subject.gradients(model.params, model, key, *subject.inputs)
    part = subject.gradients(frozen.params, frozen, key, *subject.inputs)
    whole, part = values(trained(whole)), values(trained(part))
    kept = [path for path, off in zip(whole, mask, strict=True) if not off]
    assert list(part) == kept, f"the gradients are those of {list(part)}, and not of {kept}"
    assert_close({path: whole[path] for path in kept}, part, "gradients in the whole and in a part")


@_book.law()
def values_decide_outputs(subject: ModelSubject) -> None:
    """A model with another's arrays gives the other's outputs."""
    one, other = subject.made(0), subject.made(1)
    swapped = replace(one, params=other.params, frozen=other.frozen, state=other.state)
    assert_same_bits(
        subject.evaluate(swapped, *subject.inputs),
        subject.evaluate(other, *subject.inputs),
        "a model with another's arrays, and the other",
    )


@_book.law()
def copies_are_equal(subject: ModelSubject) -> None:
    """Flattening, deep copying, and saving and loading the leaves are identities."""
    model = subject.model
    leaves, structure = jax.tree.flatten(model)
    written = [
        jax.random.wrap_key_data(jax.random.key_data(leaf))
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.asarray(np.frombuffer(np.asarray(leaf).tobytes(), leaf.dtype).reshape(leaf.shape))
        for leaf in leaves
    ]
    copies = {
        "flattened": jax.tree.unflatten(structure, leaves),
        "deep copied": copy.deepcopy(model),
        "written and read": jax.tree.unflatten(structure, written),
    }
    outputs = subject.evaluate(model, *subject.inputs)
    for name, other in copies.items():
        assert_same_signature(model, other, f"a model and itself {name}")
        assert_same_bits(model, other, f"a model and itself {name}")
        again = subject.evaluate(other, *subject.inputs)
        assert_same_bits(outputs, again, f"outputs of a model and of itself {name}")


@_book.law("seed")
def one_key_makes_one_model(subject: ModelSubject, seed: int) -> None:
    """The same network and key give bit-equal models that share one compilation."""
    one, two = (subject.make_model(jax.random.key(seed)) for _ in range(2))
    assert_same_bits(one, two, "two models of one key")
    assert_same_signature(one, two, "two models of one key")
    traces = []

    @jax.jit
    def evaluate(model: Model, *inputs: Any) -> Any:
        traces.append(1)
        return model(*inputs)[0]

    evaluate.trace(one, *subject.inputs)  # one trace means one compilation
    evaluate.trace(two, *subject.inputs)
    assert len(traces) == 1, "the second one recompiled: something static differs each time"


@_book.law()
def keys_decide_parameters(subject: ModelSubject) -> None:
    """Another key initialises other weights, unless all of them start as constants."""
    # Frozen ones too: the key may decide the network alone, or the factors that adapt it.
    one, two = (values(boxed_weights(subject.made(seed))) for seed in (0, 1))
    random = [path for path, leaf in one.items() if leaf.size > 1 and np.ptp(leaf) > 0]
    differ = any(one[path].tobytes() != two[path].tobytes() for path in random)
    if not differ and not any(jnp.issubdtype(one[path].dtype, jnp.inexact) for path in random):
        if random:
            raise unittest.SkipTest(
                f"the weights whose elements differ are whole numbers ({few(random)}), the same "
                f"for two keys, as constant tables are"
            )
        return
    assert differ, (
        "two keys give the same weights: the seed is ignored. make_model is expected to use its "
        "key, as lambda key: as_model(network, example, key=key), or for factors in a trained "
        "network, lambda key: compat.lora(model, rank=4, key=key)"
    )


@_book.law()
def vmap_evaluates_each(subject: ModelSubject) -> None:
    """Evaluating stacked models under vmap gives the same as each alone."""
    models = [subject.made(seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    together = subject.evaluate_stack(stacked, *subject.inputs)
    for i, model in enumerate(models):
        alone = subject.evaluate(model, *subject.inputs)
        assert_close(alone, jax.tree.map(lambda y, i=i: y[i], together), f"model {i} of a stack")


@_book.law("seed")
def vmap_trains_each(subject: ModelSubject, seed: int) -> None:
    """Training stacked models under vmap gives the same as each alone."""
    models = [subject.made(seed) for seed in range(2)]
    keys = jax.random.split(jax.random.key(seed), 2)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    together = subject.train_stack(stacked, keys, *subject.inputs)
    for i, model in enumerate(models):
        alone = subject.train(model, keys[i], *subject.inputs)
        one = jax.tree.map(lambda y, i=i: y[i], together)
        assert_close(alone, one, f"model {i} of a stack", rtol=1e-4)


@_book.law("seed")
def scan_equals_loop(subject: ModelSubject, seed: int) -> None:
    """Training steps in a scan give the same as in a loop."""
    keys = jax.random.split(jax.random.key(seed), 3)
    model, outputs = subject.model, None
    for key in keys:
        outputs, model = subject.train(model, key, *subject.inputs)
    scanned, stacked = subject.train_scan(subject.model, keys, *subject.inputs)
    assert_close(model, scanned, "the model after a loop and a scan")
    assert_close(outputs, jax.tree.map(lambda y: y[-1], stacked), "the last outputs of both")


@_book.law()
def traced_train_is_refused(subject: ModelSubject) -> None:
    """A traced `train` is a TypeError, since it chooses between two programs."""

    def call(train: Any) -> Any:
        return subject.model(*subject.inputs, key=jax.random.key(0), train=train)[0]

    try:
        jax.eval_shape(call, True)
    except jax.errors.JAXTypeError as error:
        # jax's error about a tracer is a TypeError too, but does not mention `train`.
        raise AssertionError(f"only jax noticed: {error}") from error
    except TypeError:
        return
    raise AssertionError("a traced `train` was accepted")


@_book.law()
def donating_is_safe(subject: ModelSubject) -> None:
    """Donating a model does not invalidate the user's object or another model."""
    before = values(subject.make_model(jax.random.key(0)))
    donor = subject.make_model(jax.random.key(0))
    owned = [leaf.unsafe_buffer_pointer() for leaf in _plain(donor)]
    assert len(set(owned)) == len(owned), "two leaves share a buffer, which cannot be donated twice"
    doubled = jax.jit(lambda model: jax.tree.map(_changed, model), donate_argnums=0)
    jax.block_until_ready(jax.tree.leaves(doubled(donor)))
    assert_same_bits(
        before,
        values(subject.make_model(jax.random.key(0))),
        "the user's values before and after a donation",
    )


@_book.law()
def adapting_twice_is_once(subject: ModelSubject) -> None:
    """Adapting an adapted model returns the same model."""
    assert as_model(subject.model) is subject.model


@_book.law("seed", needs="native")
def equals_the_native_call(subject: ModelSubject, seed: int) -> None:
    """Outputs equal those of the library's call, bit for bit under jit, in both modes."""
    key = jax.random.key(seed)
    for train, (ours, theirs) in subject.natively.items():
        assert_same_bits(
            ours(subject.model, key, *subject.inputs),
            theirs(subject.model, key, *subject.inputs),
            f"{'training' if train else 'evaluation'} through the adapter and by the library",
        )


@_book.law()
def exports_give_the_same_bits(subject: ModelSubject) -> None:
    """A trained network's export (`solstice.export`) evaluates as its call, for two batch sizes."""
    _check_exportable(subject)
    model = _as_trained(subject)
    batches = subject.inputs, jax.tree.map(lambda x: x[1:], subject.inputs)
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = [_exported(model, folder, batches[0], "any")] * 2
        except FixedSizeError:  # then each size has its program
            found = [_exported(model, folder, inputs, "example") for inputs in batches]
        for exported, inputs in zip(found, batches, strict=True):
            size = jax.tree.leaves(inputs)[0].shape[0]
            # Named tuples come back as dicts, with their fields in another order.
            ours, its = (
                dict(sorted(values(outputs).items()))
                for outputs in (subject.evaluate(model, *inputs), exported(*inputs))
            )
            assert_same_bits(ours, its, f"{size} examples, by the model and by its export")


MODEL_LAWS: tuple[Law, ...] = (*_book.laws, *SURGERY_LAWS, *WEIGHT_LAWS)


def check_model(
    make_model: Callable[[Array], Model],
    batch: Any,
    *,
    exclude: Iterable[str] = (),
    native: Native | None = None,
    examples: int = EXAMPLES,
    on_failure: str = "raise",
    progress: bool = False,
) -> Report:
    """Check every law of a `Model` on an adapter, and return the report.

    Args:
        make_model: Makes the model from a key; the network it adapts is made once, outside. For a
            network with factors, `lambda key: compat.lora(make(key), rank=4, key=key)`.
        batch: A batch's inputs (no labels), of two examples or more; a tuple is several inputs.
        exclude: Names of laws to leave out, or a mapping from them to reasons.
        native: The library's call, `native(model.unwrap(), *inputs, key=..., train=...)`, returning
            outputs; without it, the law that compares with it is skipped.
        examples: How many inputs Hypothesis draws for each law.
        on_failure: "raise" raises a `LawError` with the whole report if a law is violated; "report"
            only returns it.
        progress: Whether to show a progress bar.

    Raises:
        LawError: A law is violated; the message says which, how, and for which smallest input.
        ImportError: Hypothesis is not installed.

    >>> import jax, jax.numpy as jnp
    >>> from solstice.compat import FunctionModel
    >>> from solstice.testing import check_model
    >>> def init(key, x):
    ...     return {"w": jax.random.normal(key, (x.shape[-1], 2))}
    >>> def apply(params, x):
    ...     return x @ params["w"]
    >>> x = jnp.arange(12.0).reshape(4, 3)
    >>> report = check_model(lambda key: FunctionModel(init, apply, x, key=key), x)
    >>> len(report.failures)
    0
    """
    subject = ModelSubject(make_model, batch, native)
    return run(
        MODEL_LAWS,
        subject,
        exclude=exclude,
        examples=examples,
        on_failure=on_failure,
        progress=progress,
    )


def _check_exportable(subject: ModelSubject) -> None:
    try:
        check_packages()
    except MissingPackageError as why:
        raise unittest.SkipTest(str(why)) from None
    program = subject.evaluate.trace(subject.model, *subject.inputs).jaxpr
    names = {eqn.primitive.name for eqn in equations(program.jaxpr)}
    if outside := ", ".join(sorted(names & _ON_THE_HOST)):
        raise unittest.SkipTest(
            f"the network calls functions on the host ({outside}), which no export can hold"
        )


def _as_trained(subject: ModelSubject) -> Model:
    """Return the model with state and parameters that are no longer the initial ones."""
    model = subject.model
    for i in range(3):
        _, model = subject.train(model, jax.random.key(i), *subject.inputs)

    def moved(leaf: Any) -> Any:
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        return (1.01 * leaf.astype(wide) + 0.01).astype(leaf.dtype)

    return replace(model, params=jax.tree.map(moved, model.params))


def _exported(model: Model, folder: str, example: Any, batch: Any) -> Exported:
    path = f"{folder}/{jax.tree.leaves(example)[0].shape[0]}"
    platform = jax.export.default_export_platform()
    export(model, path, example=example, batch=batch, platforms=platform)
    return load_exported(path)


def _frozen(model: Model, mask: list[bool]) -> Model:
    """Freeze the leaves of params that the mask selects, if any."""
    if not any(mask):
        return model
    paths = leaves_by_path(trained(model.params))
    chosen = {path for path, off in zip(paths, mask, strict=True) if off}
    return freeze(model, lambda path, leaf: path in chosen)


def _differ(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return any(left[path].tobytes() != right[path].tobytes() for path in left)


def _plain(tree: PyTree) -> list[Array]:
    return [
        leaf
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    ]


def _changed(leaf: Array) -> Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return leaf + jnp.ones((), leaf.dtype) if leaf.dtype != bool else ~leaf
