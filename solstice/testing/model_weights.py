"""The laws of changed weights: `compat.lora`, `merge`, `quantize`, `save`, `load`, `convert`."""

import tempfile
import unittest
from pathlib import Path

import jax

from solstice.compat.model import Model
from solstice.compat.surgery.lora import lora
from solstice.compat.surgery.quantize import quantize
from solstice.compat.surgery.where import Where
from solstice.compat.surgery.wrapped import WrappedModel, merge
from solstice.compat.weights.convert import convert
from solstice.compat.weights.leaves import model_leaves
from solstice.compat.weights.load import load
from solstice.compat.weights.proof import UnprovenError
from solstice.compat.weights.save import save
from solstice.testing.compare import assert_close, assert_same_bits, differ, values
from solstice.testing.law import Law, LawBook
from solstice.testing.model_subject import ModelSubject
from solstice.tree.fields import replace
from solstice.tree.naming import leaves_by_path
from solstice.tree.overwritten import trained

_book = LawBook(ModelSubject)

_NO_MATRIX = "the network has no float weight with two axes longer than 1"


@_book.law(needs="matrices", lacks=_NO_MATRIX)
def fresh_factors_change_nothing(subject: ModelSubject) -> None:
    """A network with new factors (`compat.lora`) has the same outputs, and trains only these."""
    model = subject.model
    wrapped = _with_factors(subject)
    before = subject.evaluate(model, *subject.inputs)
    assert_same_bits(before, subject.evaluate(wrapped, *subject.inputs), "without and with factors")
    names = leaves_by_path(trained(wrapped.params))
    others = [path for path in names if path.rpartition("/")[2] not in ("a", "b")]
    assert not others, f"only factors are expected in the params; {others} are there too"


@_book.law(needs="matrices", lacks=_NO_MATRIX)
def merging_equals_the_wrapped_network(subject: ModelSubject) -> None:
    """A merged network (`compat.merge`) computes the same as the wrapped one."""
    before = subject.evaluate(subject.model, *subject.inputs)
    tuned = _with_factors(subject)
    tuned = replace(tuned, params=jax.tree.map(lambda leaf: leaf + 0.3, tuned.params))
    changed: dict[str, Model] = {"factors": tuned}
    if not isinstance(subject.model, WrappedModel):  # whose weights may have codes already
        changed["8 bits"] = quantize(subject.model, bits=8, where=_within(subject))
    for name, wrapped in changed.items():
        found = subject.evaluate(wrapped, *subject.inputs)
        merged = merge(wrapped)
        assert type(merged) is type(merge(subject.model)), (
            f"merging is expected to give a {type(merge(subject.model)).__name__}; it gave "
            f"{type(merged).__name__}"
        )
        assert_close(found, subject.evaluate(merged, *subject.inputs), f"with {name}, and merged")
        assert name != "factors" or differ(found, before), (
            "other factors are expected to change the outputs, and do not: the call is expected to "
            "take its weights from `params` and `frozen`"
        )


@_book.law()
def settling_averages_keeps_evaluation(subject: ModelSubject) -> None:
    """Averages past their correction (`Model.settle_averages`) evaluate as before."""
    _, model = subject.train(subject.model, jax.random.key(0), *subject.inputs)
    found = subject.evaluate(model.settle_averages(), *subject.inputs)
    assert_close(subject.evaluate(model, *subject.inputs), found, "before and after settling")


@_book.law(needs="files", lacks="the network has no arrays, or safetensors is not installed")
def saved_weights_come_back(subject: ModelSubject) -> None:
    """`compat.load` restores a file of `compat.save` in a network from another key, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save(subject.model, path)
        loaded, _ = load(subject.made(1), path)
    assert_same_bits(model_leaves(subject.model), model_leaves(loaded), "saved and loaded")


@_book.law()
def a_converted_network_goes_on(subject: ModelSubject) -> None:
    """Converted into itself from another key, a network evaluates and trains as before."""
    key = jax.random.key(0)
    _, model = subject.train(subject.model, key, *subject.inputs)
    like = merge(subject.made(1))
    before = values((model, like))
    try:
        converted = convert(model, like=like, example=subject.inputs)
    except UnprovenError as why:
        raise unittest.SkipTest(str(why)) from None
    assert_same_bits(before, values((model, like)), "both networks before and after convert()")
    ours, its = (subject.evaluate(one, *subject.inputs) for one in (model, converted))
    assert_close(ours, its, "evaluation of a network and of what it is converted into")
    source = merge(model).settle_averages()
    # Other inputs, for averages that forget would be the same after a second step with these.
    stepped = [subject.train(one, key, *subject.repeated()) for one in (source, converted)]
    (ours, source), (its, converted) = stepped
    assert_close(ours, its, "a training step of a network and of what it is converted into")
    ours, its = (subject.evaluate(one, *subject.inputs) for one in (source, converted))
    assert_close(
        ours,
        its,
        "evaluation after a training step of a network and of what it is converted into (averages "
        "that correct themselves in the first steps need `Model.settle_averages`)",
    )


WEIGHT_LAWS: tuple[Law, ...] = tuple(_book.laws)


def _with_factors(subject: ModelSubject) -> Model:
    return lora(subject.model, rank=1, where=_within(subject), key=jax.random.key(1))


def _within(subject: ModelSubject) -> Where:
    chosen = set(subject.matrices or ())
    return lambda path: path in chosen
