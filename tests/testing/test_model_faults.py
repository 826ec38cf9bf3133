"""For every law of a Model, an adapter that breaks it as people really do, and the law's word.

`FAULTS` maps each law to a broken way to make a model; a sound network passes them all.
"""

import importlib.util
import itertools
import re
import unittest

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solstice import compat
from solstice.testing import MODEL_LAWS, LawError, ModelSubject, check_model
from solstice.tree import replace

X = jax.random.normal(jax.random.key(7), (6, 4))


class Sound(compat.Model):
    """Normalise by running means, one dense layer, dropout: all that an adapter has to carry.

    The faults below are subclasses that change one thing.
    """

    params: dict
    frozen: dict
    state: dict
    tag: object = eqx.field(static=True)

    def __init__(self, key):
        self.params = {"w": jax.random.normal(key, (4, 3)), "b": jnp.zeros(3)}
        self.frozen = {"w": None, "b": None}
        self.state = {"mean": jnp.zeros(4)}
        self.tag = "sound"

    def weights(self):
        return eqx.combine(self.params, self.frozen)

    def normalised(self, x, train):
        mean = x.mean(0) if train else self.state["mean"]
        moved = {"mean": 0.9 * self.state["mean"] + 0.1 * mean}
        return x - mean, replace(self, state=moved) if train else self

    def dropped(self, y, key, train):
        if not train:
            return y
        if key is None:
            raise ValueError("pass key=")
        return jnp.where(jax.random.bernoulli(key, 0.7, y.shape), y / 0.7, 0)

    def check(self, train):
        compat.check_train(train, "Sound")

    def __call__(self, x, *, key=None, train=False):
        self.check(train)
        h, new = self.normalised(x, train)
        w = self.weights()
        return self.dropped(compat.tag("dense", h @ w["w"] + w["b"]), key, train), new

    def unwrap(self):
        return self.weights(), self.state


def native(values, x, *, key, train):
    weights, state = values
    mean = x.mean(0) if train else state["mean"]
    y = (x - mean) @ weights["w"] + weights["b"]
    return jnp.where(jax.random.bernoulli(key, 0.7, y.shape), y / 0.7, 0) if train else y


class WeakTypes(Sound):
    def __init__(self, key):
        super().__init__(key)
        self.params = self.params | {"scale": jnp.asarray(1.0)}
        self.frozen = self.frozen | {"scale": None}


class IntegerParams(Sound):
    def __init__(self, key):
        super().__init__(key)
        self.params = self.params | {"order": jnp.arange(3)}
        self.frozen = self.frozen | {"order": None}


class HostLeaf(Sound):
    def __init__(self, key):
        super().__init__(key)
        self.state = self.state | {"rate": 0.1}

    def normalised(self, x, train):
        h, new = super().normalised(x, train)
        return h, replace(new, state=new.state | {"rate": 0.1}) if train else new


class GrowingTree(Sound):
    """A sown collection that is carried along: one entry more with each call."""

    def __init__(self, key):
        super().__init__(key)
        self.state = self.state | {"sown": ()}

    def normalised(self, x, train):
        h, new = super().normalised(x, train)
        if train:
            new = replace(new, state=new.state | {"sown": (*self.state["sown"], x.mean())})
        return h, new


class StaticCounter(Sound):
    """Counts its steps in a static field, so each of them is another program."""

    def __init__(self, key):
        super().__init__(key)
        self.tag = 0

    def normalised(self, x, train):
        h, new = super().normalised(x, train)
        return h, replace(new, tag=self.tag + 1) if train else new


class EvalUpdatesState(Sound):
    def normalised(self, x, train):
        h, new = super().normalised(x, train)
        return h, new if train else replace(self, state={"mean": self.state["mean"] + x.mean(0)})


class EvalUsesKey(Sound):
    def dropped(self, y, key, train):
        return y if key is None else super().dropped(y, key, True)


class HiddenGenerator(Sound):
    """Draws its seed from numpy's global generator while it is traced."""

    def dropped(self, y, key, train):
        seed = np.random.randint(2**31)
        return super().dropped(y, jax.random.key(seed), train)


class WritesIntoItself(Sound):
    """Updates the dict it holds, and so the model it was called on."""

    def normalised(self, x, train):
        h, new = super().normalised(x, train)
        if train:
            self.state.update(new.state)
        return h, new


class PopsFromInputs(Sound):
    """Takes an optional entry out of the user's batch."""

    def __call__(self, x, *, key=None, train=False):
        x.pop("extra", None)
        return super().__call__(x["x"], key=key, train=train)


class ConstantMask(Sound):
    def dropped(self, y, key, train):
        return super().dropped(y, jax.random.key(0), train)


class ConstantRounding(Sound):
    """Rounds gradients at random, by a seed that it has lost on the way."""

    def dropped(self, y, key, train):
        if not train:
            return y
        if key is None:
            raise ValueError("pass key=")
        data = key if key.dtype == jnp.uint32 else jax.random.key_data(key)
        lost = jax.random.wrap_key_data(0 * data)

        @jax.custom_vjp
        def rounded(y):
            return y

        rounded.defvjp(
            lambda y: (y, None),
            lambda _, grad: (jnp.floor(grad + jax.random.uniform(lost, grad.shape)),),
        )
        return rounded(y)


class AsksInItsOwnWords(Sound):
    def dropped(self, y, key, train):
        if not train:
            return y
        return jnp.where(jax.random.bernoulli(key, 0.7, y.shape), y / 0.7, 0)


class SeedFromTypedKeysOnly(Sound):
    """Takes a raw key for a seed."""

    def dropped(self, y, key, train):
        if key is not None and key.dtype == jnp.uint32:
            key = jax.random.key(key[0])
        return super().dropped(y, key, train)


class DroppedStatistics(Sound):
    def normalised(self, x, train):
        return super().normalised(x, train)[0], self


class ForwardTrains(Sound):
    """Decays its weights in the forward pass."""

    def normalised(self, x, train):
        h, new = super().normalised(x, train)
        if train:
            new = replace(new, params=jax.tree.map(lambda w: 0.99 * w, self.params))
        return h, new


class BuffersAreParams(Sound):
    """Keeps the running mean among the parameters, where the optimizer would move it."""

    def __init__(self, key):
        super().__init__(key)
        self.params = self.params | {"mean": jnp.ones(4)}
        self.frozen = self.frozen | {"mean": None}
        self.state = {}

    def normalised(self, x, train):
        return x - (x.mean(0) if train else self.weights()["mean"]), self


class OrderMatters(Sound):
    """Adds the position in the batch, as a mixed-up axis does."""

    def normalised(self, x, train):
        h, new = super().normalised(x, train)
        return h + jnp.arange(len(x))[:, None], new


class BatchStatisticsInEvaluation(Sound):
    def normalised(self, x, train):
        _, new = super().normalised(x, train)
        return x - x.mean(0), new


class EagerIsAnother(Sound):
    def dropped(self, y, key, train):
        y = super().dropped(y, key, train)
        return y if isinstance(y, jax.core.Tracer) else 1.001 * y


class NeedsValues(Sound):
    """Looks at a value, which only works without jit."""

    def dropped(self, y, key, train):
        return super().dropped(y, key, train) * (2 if float(y.sum()) > 1e9 else 1)


@jax.custom_jvp
def _poison(y):
    return y


@_poison.defjvp
def _poison_jvp(primals, tangents):
    raise TypeError("no gradient here")


class NoGradient(Sound):
    def dropped(self, y, key, train):
        return super().dropped(_poison(y), key, train)


class ForgetsFrozen(Sound):
    """Uses zeros where a parameter is frozen."""

    def weights(self):
        zeros = {"w": jnp.zeros((4, 3)), "b": jnp.ones(3)}
        return {name: zeros[name] if leaf is None else leaf for name, leaf in self.params.items()}


class FrozenStillLearns(Sound):
    """Stops the gradient of everything as soon as something is frozen."""

    def weights(self):
        w = super().weights()
        if any(leaf is None for leaf in self.params.values()):
            w = jax.tree.map(lambda leaf: 2 * leaf - jax.lax.stop_gradient(leaf), w)
        return w


class KeepsItsOwnValues(Sound):
    """Computes with the values it was made with, whatever it holds now."""

    def __init__(self, key):
        super().__init__(key)
        self.tag = compat.Static(float(self.params["w"][0, 0]))

    def weights(self):
        w = super().weights()
        return w | {"w": w["w"] + self.tag.value}


class Identity:
    """A static part that is equal to nothing but itself."""


SHARED = Identity()


class CopiesAreOthers(Sound):
    def __init__(self, key):
        super().__init__(key)
        self.tag = SHARED


class FreshStatic(Sound):
    def __init__(self, key):
        super().__init__(key)
        self.tag = lambda x: x


class IgnoredSeed(Sound):
    def __init__(self, key):
        super().__init__(jax.random.key(0))


class KnowsItsShape(Sound):
    """Mixes the stacked models of a vmap: it pads by the rank that it expects."""

    def dropped(self, y, key, train):
        y = super().dropped(y, key, train)
        return jax.pure_callback(
            lambda y: np.asarray(y) * (1 + (np.ndim(y) > 2)),
            jax.ShapeDtypeStruct(y.shape, y.dtype),
            y,
            vmap_method="expand_dims",
        )


class KnowsItsShapeInTraining(KnowsItsShape):
    def dropped(self, y, key, train):
        return super().dropped(y, key, train) if train else y


class CountsOutside(Sound):
    """Counts calls in a Python list, which a scan runs through once."""

    def dropped(self, y, key, train):
        CALLS.append(1)
        return super().dropped(y, key, train) + 0.1 * len(CALLS)


CALLS = []


class TracedTrain(Sound):
    def check(self, train):
        pass

    def __call__(self, x, *, key=None, train=False):
        w = self.weights()
        y = (x - self.state["mean"]) @ w["w"] + w["b"]
        return jnp.where(train, 2 * y, y), self


class OnlyJaxNotices(Sound):
    def check(self, train):
        pass


USERS = {"w": jnp.ones((4, 3)), "b": jnp.zeros(3)}


class SharesTheUsersArrays(Sound):
    def __init__(self, key):
        super().__init__(key)
        self.params = dict(USERS)


class SharesOneBuffer(Sound):
    def __init__(self, key):
        super().__init__(key)
        zeros = jnp.zeros(4)
        self.state = {"mean": zeros, "twin": zeros}

    def normalised(self, x, train):
        h, new = super().normalised(x, train)
        return h, replace(new, state=new.state | {"twin": self.state["twin"]})


class NotAModel:
    """A wrapper around a model that is none itself."""

    def __init__(self, key):
        self.model = Sound(key)

    def __call__(self, *inputs, **options):
        return self.model(*inputs, **options)


class OffByRounding(Sound):
    def dropped(self, y, key, train):
        return super().dropped(y * jnp.float32(1 + 1e-6), key, train)


class TagsInEvaluationOnly(Sound):
    """Takes another way with tags, and forgets the mode on it."""

    def tagged(self, *inputs, key=None, train=False, **kwargs):
        return self(*inputs, key=key, **kwargs)


class NamesAnew(Sound):
    """Counts its calls over all passes, and not in each."""

    def normalised(self, x, train):
        h, new = super().normalised(x, train)
        return compat.tag(f"norm_{next(COUNTER)}", h), new


class TagsACopy(Sound):
    """Goes on with the value that it tags, and not with what the tag returns."""

    def __call__(self, x, *, key=None, train=False):
        self.check(train)
        h, new = self.normalised(x, train)
        w = self.weights()
        y = h @ w["w"] + w["b"]
        compat.tag("dense", y)
        return self.dropped(y, key, train), new


class CountsItsTraces(Sound):
    def dropped(self, y, key, train):
        return super().dropped(y + next(COUNTER), key, train)


class ComputesWithOthers(Sound):
    """Computes with the weights it was made with alone."""

    def __init__(self, key):
        super().__init__(key)
        self.tag = compat.Static(jax.tree.map(np.asarray, self.params))

    def weights(self):
        return self.tag.value


class SettlesToNothing(Sound):
    def settle_averages(self):
        return replace(self, state=jax.tree.map(jnp.zeros_like, self.state))


class CorrectsItsFirstSteps(Sound):
    """Keeps a sum and a count beside its average, and says nothing of them when settled."""

    def __init__(self, key):
        super().__init__(key)
        self.state = self.state | {"sum": jnp.zeros(4), "steps": jnp.zeros(())}

    def normalised(self, x, train):
        old = self.state
        moved = {"sum": old["sum"] + x.mean(0), "steps": old["steps"] + 1}
        moved["mean"] = moved["sum"] / moved["steps"]
        return x - (x.mean(0) if train else old["mean"]), (
            replace(self, state=moved) if train else self
        )


class TreatsFiveOtherwise(Sound):
    def normalised(self, x, train):
        h, new = super().normalised(x, train)
        return h * (2 if x.shape[0] == len(X) - 1 else 1), new


class IdleParameter(Sound):
    """Has a parameter that no output depends on, whose value no example can prove."""

    def __init__(self, key):
        super().__init__(key)
        self.params = self.params | {"idle": jnp.zeros(3)}
        self.frozen = self.frozen | {"idle": None}


class AsksTheHost(Sound):
    def dropped(self, y, key, train):
        y = super().dropped(y, key, train)
        shape = jax.ShapeDtypeStruct(y.shape, y.dtype)
        return jax.pure_callback(np.asarray, shape, y, vmap_method="sequential")


class AsksForLen(Sound):
    """Asks for the number of examples, which an export for any number cannot tell."""

    def normalised(self, x, train):
        h, new = super().normalised(x, train)
        return h + jnp.zeros((len(x), 1)), new


class NamesAlike(Sound):
    def library_name(self, name):
        return "weights"


class WritesWhatItIsGiven(Sound):
    """Settles its averages in the model that it was asked of, and not in a new one."""

    def settle_averages(self):
        self.state["mean"] = self.state["mean"] + 1
        return replace(self, state={"mean": self.state["mean"] - 1})


COUNTER = itertools.count()
TRAINED = Sound(jax.random.key(3))

FAULTS = {
    "leaves_are_arrays": [
        (WeakTypes, r"params/scale is weakly typed"),
        (IntegerParams, r"params hold order of int32, which has no gradient"),
        (HostLeaf, r"state/rate is float, not a jax array"),
    ],
    "signature_is_stable": [(GrowingTree, "after 1 training steps: the tree changed")],
    "steps_trace_once": [(StaticCounter, "3 steps were traced 3 times")],
    "eval_returns_itself": [
        (EvalUpdatesState, "evaluation returned another model"),
        (EvalUsesKey, "evaluated with a key: the array differs"),
    ],
    "training_is_a_function": [(HiddenGenerator, "the same training step twice")],
    "calls_change_nothing": [
        (WritesIntoItself, "before and after calls: 0/state/mean differs"),
        (PopsFromInputs, "before and after calls: the leaves are"),
    ],
    "keys_decide_randomness": [
        (ConstantMask, "a constant mask, a dropped seed"),
        (ConstantRounding, "but two keys give the same outputs"),
    ],
    "a_missing_key_is_told": [(AsksInItsOwnWords, r"TypeError: .*raise compat\.missing_key")],
    "raw_and_typed_keys_agree": [(SeedFromTypedKeysOnly, "a typed and a raw key")],
    "training_updates_state": [(DroppedStatistics, "batch statistics are dropped")],
    "forward_keeps_weights": [(ForwardTrains, "params after a forward pass: b differs|w differs")],
    "params_are_no_buffers": [(BuffersAreParams, "params hold mean, which only evaluation uses")],
    "eval_is_equivariant": [(OrderMatters, "permuted outputs, and inputs")],
    "eval_is_per_example": [(BatchStatisticsInEvaluation, "one batch, and two joined")],
    "jit_equals_eager": [
        (EagerIsAnother, "with and without jit"),
        (NeedsValues, "ConcretizationTypeError"),
    ],
    "gradients_match_params": [(NoGradient, "no gradient here")],
    "freezing_keeps_outputs": [(ForgetsFrozen, "before and after freezing")],
    "a_subset_trains_as_in_the_whole": [
        (FrozenStillLearns, "gradients in the whole and in a part")
    ],
    "values_decide_outputs": [(KeepsItsOwnValues, "a model with another's arrays, and the other")],
    "copies_are_equal": [(CopiesAreOthers, "a model and itself deep copied: the tree changed")],
    "one_key_makes_one_model": [(FreshStatic, "two models of one key: the tree changed")],
    "keys_decide_parameters": [(IgnoredSeed, "the seed is ignored")],
    "vmap_evaluates_each": [(KnowsItsShape, "model 0 of a stack")],
    "vmap_trains_each": [(KnowsItsShapeInTraining, "model 0 of a stack")],
    "scan_equals_loop": [(CountsOutside, "after a loop and a scan|the last outputs of both")],
    "traced_train_is_refused": [
        (TracedTrain, "a traced `train` was accepted"),
        (OnlyJaxNotices, "only jax noticed"),
    ],
    "donating_is_safe": [
        (SharesTheUsersArrays, "deleted|donat"),
        (SharesOneBuffer, "two leaves share a buffer"),
    ],
    "capturing_nothing_is_the_call": [(TagsInEvaluationOnly, "training without and with tags")],
    "putting_back_changes_nothing": [(NamesAnew, "paths of a pass, .* are not those of")],
    "changes_reach_the_outputs": [(TagsACopy, r"outputs stay the same .*\['dense'\]")],
    "fresh_factors_change_nothing": [(CountsItsTraces, "without and with factors")],
    "merging_equals_the_wrapped_network": [
        (ComputesWithOthers, "other factors are expected to change the outputs"),
    ],
    "settling_averages_keeps_evaluation": [(SettlesToNothing, "before and after settling")],
    "saved_weights_come_back": [(NamesAlike, "weights")],
    "a_converted_network_goes_on": [
        (SettlesToNothing, "evaluation of a network and of what it is converted into"),
        (CorrectsItsFirstSteps, "need `Model.settle_averages`"),
        (WritesWhatItIsGiven, "both networks before and after convert"),
    ],
    "exports_give_the_same_bits": [
        (CountsItsTraces, "6 examples, by the model and by its export"),
        (TreatsFiveOtherwise, "5 examples, by the model and by its export"),
    ],
    "equals_the_native_call": [(OffByRounding, "through the adapter and by the library")],
}

CASES = [
    pytest.param(law, fault, message, id=f"{law}-{fault.__name__}")
    for law, faults in FAULTS.items()
    for fault, message in faults
]
LAWS = {law.name: law for law in MODEL_LAWS}


def test_every_law_has_a_fault():
    assert {*FAULTS, "adapting_twice_is_once"} == set(LAWS)  # that one has its test below


def test_what_is_no_model_is_refused_before_any_law():
    with pytest.raises(TypeError, match=r"make_model is expected to return a compat\.Model"):
        ModelSubject(NotAModel, X)


def test_adapting_an_adapted_model_anew_is_caught(monkeypatch):
    monkeypatch.setattr("solstice.testing.model.as_model", lambda model: replace(model))
    with pytest.raises(LawError, match="Sound breaks the law adapting_twice_is_once"):
        LAWS["adapting_twice_is_once"].check(ModelSubject(Sound, X, native), examples=2)


@pytest.fixture(scope="module")
def sound():
    return ModelSubject(Sound, X, native)


@pytest.mark.parametrize("law", MODEL_LAWS, ids=str)
def test_a_sound_model_keeps(law, sound):
    law.check(sound, examples=2)


@pytest.mark.parametrize(
    ("law", "model", "reason"),
    [
        ("a_converted_network_goes_on", IdleParameter, "its outputs do not depend on params/idle"),
        ("exports_give_the_same_bits", AsksTheHost, r"functions on the host \(pure_callback\)"),
    ],
)
def test_a_law_that_says_nothing_of_a_network_tells_why(law, model, reason):
    with pytest.raises(unittest.SkipTest, match=rf"^{law}: .*{reason}"):
        LAWS[law].check(ModelSubject(model, X))
    others = [name for name in LAWS if name != law]
    report = check_model(model, X, exclude=others, on_failure="report")
    (said,) = (one.skipped for one in report.outcomes if one.law.name == law)
    assert re.search(f"^(convert|the network).*{reason}", said)


def test_a_network_with_a_program_for_each_size_is_exported_for_each():
    LAWS["exports_give_the_same_bits"].check(ModelSubject(AsksForLen, X))


def test_without_its_packages_exporting_is_left_out(monkeypatch):
    found = importlib.util.find_spec
    without = lambda name, *rest: None if name == "flatbuffers" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(unittest.SkipTest, match=r"exports_give_the_same_bits: .*'flatbuffers'"):
        LAWS["exports_give_the_same_bits"].check(ModelSubject(Sound, X))


@pytest.mark.parametrize(
    "factors",
    [
        lambda key: compat.lora(Sound(key), rank=1, key=0),
        lambda key: compat.lora(TRAINED, rank=1, key=key),
    ],
)
def test_a_key_may_decide_the_network_alone_or_the_factors(factors):
    LAWS["keys_decide_parameters"].check(ModelSubject(factors, X))


class ATable(Sound):
    """All that its key could decide is a table of whole numbers."""

    def __init__(self, key):
        super().__init__(key)
        self.params = {"w": None, "b": jnp.zeros(3)}
        self.frozen = {"w": jnp.arange(12).reshape(4, 3), "b": None}


def test_a_table_of_whole_numbers_that_no_key_decides_is_left_out():
    with pytest.raises(unittest.SkipTest, match=r"whole numbers \(w\), the same for two keys"):
        LAWS["keys_decide_parameters"].check(ModelSubject(ATable, X))


def test_factors_of_one_key_in_one_network_are_told_how_to_be_made():
    subject = ModelSubject(lambda key: compat.lora(TRAINED, rank=1, key=0), X)
    with pytest.raises(LawError, match=r"lambda key: compat\.lora\(model, rank=4, key=key\)"):
        LAWS["keys_decide_parameters"].check(subject)


@pytest.mark.parametrize(("law", "fault", "message"), CASES)
def test_a_law_catches_its_fault(law, fault, message):
    global USERS
    USERS = {"w": jnp.ones((4, 3)), "b": jnp.zeros(3)}  # a donation may have taken them
    inputs = {"x": X, "extra": X} if fault is PopsFromInputs else X
    subject = ModelSubject(fault, inputs, native)
    with pytest.raises(LawError, match=message) as caught:
        LAWS[law].check(subject, examples=2)
    text = str(caught.value)
    assert f"{fault.__name__} breaks the law {law}: {LAWS[law].statement}" in text
    assert ("smallest input: " in text) == bool(LAWS[law].draw(subject))
