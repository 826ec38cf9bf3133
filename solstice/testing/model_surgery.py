"""The laws of looking into a network and changing it: `compat.capture` and `compat.intervene`."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from solstice.compat.model import Model
from solstice.compat.surgery.capture import capture, intervene
from solstice.testing.compare import assert_same_bits, differ
from solstice.testing.law import Law, LawBook
from solstice.testing.model_subject import ModelSubject
from solstice.tree.pytree import PyTree

_book = LawBook(ModelSubject)

# At the compiler's other levels, what is multiplied in front of a sub-module's end and added behind
# it may be rounded once instead of twice, where the whole is compiled as one.
_EXACTLY = {"xla_backend_optimization_level": 0}


@_book.law()
def capturing_nothing_is_the_call(subject: ModelSubject) -> None:
    """With tags, and with none of them selected, a pass gives the same bits, in both modes."""
    key = jax.random.key(0)
    for train in (False, True):
        mode: dict[str, Any] = {"key": key, "train": train}

        @jax.jit
        def passes(model: Model, *inputs: Any, mode: dict[str, Any] = mode) -> tuple[Any, Any]:
            return model.tagged(*inputs, **mode), intervene(model, *inputs, edits={}, **mode)

        call = subject.train if train else subject.evaluate
        expected = call(subject.model, *([key] if train else []), *subject.inputs)
        (outputs, after), unchanged = passes(subject.model, *subject.inputs)
        name = "training" if train else "evaluation"
        tagged = (outputs, after) if train else outputs
        assert_same_bits(expected, tagged, f"{name} without and with tags")
        assert_same_bits(outputs, unchanged, f"{name}, and with nothing captured")


_LACKS = "nothing is tagged in the network's call (`compat.tag`, `Model.tagged`)"


@_book.law(needs="sub_modules", lacks=_LACKS)
def putting_back_changes_nothing(subject: ModelSubject) -> None:
    """A pass with the captured values put back has the same outputs, bit for bit."""
    chosen = set(subject.sub_modules or ())

    def captured(model: Model, *inputs: Any) -> Mapping[str, PyTree]:
        return capture(model, *inputs, where=lambda path: path in chosen)

    def changed(model: Model, edits: Mapping[str, PyTree], *inputs: Any) -> PyTree:
        return intervene(model, *inputs, edits=edits)

    model, inputs = subject.model, subject.inputs
    call, captured, changed = (
        jax.jit(one, compiler_options=_EXACTLY)
        for one in (lambda model, *inputs: model(*inputs)[0], captured, changed)
    )
    found = captured(model, *inputs)
    assert set(found) == chosen, (
        f"the paths of a pass, {sorted(chosen)}, are not those of another, {sorted(found)}"
    )
    back = changed(model, found, *inputs)
    assert_same_bits(call(model, *inputs), back, "the call, and the pass with all put back")


@_book.law(needs="sub_modules", lacks=_LACKS)
def changes_reach_the_outputs(subject: ModelSubject) -> None:
    """The network continues with the changed value of a sub-module."""

    @jax.jit
    def spoilt(model: Model, *inputs: Any) -> PyTree:
        edits = dict.fromkeys(subject.sub_modules or (), _spoilt)
        return intervene(model, *inputs, edits=edits)

    outputs = subject.evaluate(subject.model, *subject.inputs)
    others = spoilt(subject.model, *subject.inputs)
    assert differ(outputs, others), (
        f"outputs stay the same when all outputs of sub-modules ({subject.sub_modules}) become "
        f"NaN or change sign: a tag is expected on the very value that the network uses "
        f"next"
    )


SURGERY_LAWS: tuple[Law, ...] = tuple(_book.laws)


def _spoilt(value: PyTree) -> PyTree:
    def one(leaf: Any) -> Any:
        if eqx.is_inexact_array(leaf):
            return jnp.full_like(leaf, jnp.nan)
        return ~leaf if eqx.is_array(leaf) and leaf.dtype != jax.dtypes.prng_key else leaf

    return jax.tree.map(one, value)
