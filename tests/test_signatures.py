"""A wrong name of an argument is answered with the right one, however a run is started."""

import inspect
import re

import numpy as np
import pytest

import solstice
from solstice.experiments import Runnable
from solstice.training.train import OTHER_NAMES


class Still(Runnable):
    def train_step(self, batch):
        return self, None

    def eval_step(self, batch):
        return self, solstice.metrics.Mean(batch)

    def predict(self, inputs):
        return inputs


DS = [np.ones(2)]


@pytest.mark.parametrize("start", [lambda **o: solstice.train(Still(), **o), Still().train])
@pytest.mark.parametrize(
    ("wrong", "right"),
    [*OTHER_NAMES.items(), ("num_epoch", "num_epochs"), ("prefetched", "prefetch")],
)
def test_train_knows_what_was_meant(start, wrong, right):
    meant = rf"did you mean '{re.escape(right)}'\?"
    message = rf"train\(\) has no argument '{wrong}'; {meant} It takes (exp, )?num"
    with pytest.raises(TypeError, match=message) as raised:
        start(**{"train_ds": DS, wrong: 3})
    assert isinstance(raised.value, solstice.SolsticeError)


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        (Still().test, {"test_ds": DS, "verbose": 0}, r"test\(\) has no .* you mean 'progress'\?"),
        (
            solstice.test,
            {"exp": Still(), "dataset": DS},
            r"test\(\) has .* did you mean 'test_ds'\?",
        ),
        (solstice.test, {"exp": Still(), "test_ds": DS, "return_out": True}, "mean 'return_outs'"),
        (
            solstice.predict,
            {"exp": Still(), "dataset": DS},
            r"predict\(\) has no .* you mean 'ds'\?",
        ),
        (
            solstice.predict,
            {"exp": Still(), "ds": DS, "batch_size": 2},
            "'batch_size'. It takes exp,",
        ),
    ],
)
def test_so_do_test_and_predict(start, options, message):
    with pytest.raises(TypeError, match=message):
        start(**options)


@pytest.mark.parametrize(
    ("method", "function", "without"),
    [
        (Runnable.train, solstice.train, {"exp"}),
        (Runnable.test, solstice.test, {"exp", "return_outs"}),
    ],
)
def test_a_method_takes_what_its_function_takes(method, function, without):
    ours, theirs = inspect.signature(method).parameters, inspect.signature(function).parameters
    assert [n for n in theirs if n not in without] == list(ours)[1:]
    for name in list(ours)[1:]:
        assert ours[name].kind is theirs[name].kind
        assert ours[name].annotation == theirs[name].annotation
        assert theirs[name].default in (ours[name].default, inspect.Parameter.empty)


def test_every_argument_is_meant_by_its_name():
    known = inspect.signature(solstice.train).parameters
    meant = {re.match(r"\w+", right)[0] for right in OTHER_NAMES.values()}
    assert meant <= set(known) and not set(OTHER_NAMES) & set(known)
    assert list(known)[:4] == ["exp", "num_epochs", "train_ds", "val_ds"]
    solstice.train(exp=Still(), num_epochs=1, train_ds=DS, progress=False)
