"""Several metrics as outs that are no MetricsDict: whoever meets them says how to join them."""

import jax.numpy as jnp
import pytest

import solstice
from solstice.metrics import Accumulator, Max, Mean, MetricsDict


class Several(solstice.experiments.Runnable):
    """Returns as outs what it holds."""

    outs: object

    def train_step(self, batch):
        return self, self.outs

    def eval_step(self, batch):
        return self, self.outs


MEAN, PEAK = Mean(jnp.ones(2)), Max(jnp.ones(2))
OUTS = {
    "dict": ({"loss": MEAN, "peak": PEAK}, r"MetricsDict\(loss=\.\.\., peak=\.\.\.\)"),
    "nested": ({"loss": {"mean": MEAN}, "peak": PEAK}, r"MetricsDict\(loss=\.\.\., peak="),
    "odd names": ({"train/loss": MEAN, "peak": PEAK}, r"MetricsDict\(\*\*metrics\)"),
    "tuple": ((MEAN, PEAK), r"MetricsDict\(\*metrics\)"),
}
EVALUATION = solstice.EvaluationCallback
USERS = {
    "logging": lambda outs, _: train(outs, [solstice.LoggingCallback()]),
    "history": lambda outs, _: train(outs, [solstice.callbacks.HistoryCallback()]),
    "stopping": lambda outs, _: train(
        outs, [solstice.EarlyStoppingCallback.no_improvement("loss", patience=1)]
    ),
    "best": lambda outs, path: train(
        outs, [solstice.CheckpointingCallback(path, best=("loss", "min"))]
    ),
    "evaluation": lambda outs, _: train(
        outs,
        [
            EVALUATION(
                lambda exp, batch, key: exp.outs,
                {"all": [1.0]},
                when=solstice.triggers.Every(epochs=1),
            )
        ],
    ),
    "test": lambda outs, _: Several(outs).test([1.0], progress=False),
    "reduce": lambda outs, _: solstice.reduce([outs, outs]),
    "accumulator": lambda outs, _: Accumulator().add(outs),
    "itself": lambda outs, _: MetricsDict(outs),
}


def train(outs, callbacks):
    Several(outs).train(1, [1.0], [1.0], callbacks, progress=False)


@pytest.mark.parametrize("form", OUTS)
@pytest.mark.parametrize("user", USERS)
def test_several_metrics_are_told_to_be_joined(user, form, tmp_path):
    outs, named = OUTS[form]
    with pytest.raises((solstice.UsageError, TypeError), match=rf"To join several, .*{named}"):
        USERS[user](outs, tmp_path)


@pytest.mark.parametrize("outs", [{"loss": 0.5}, {}, (), None, {"loss": MEAN, "step": 3}])
def test_what_is_no_metric_cannot_be_joined(outs):
    with pytest.raises(solstice.UsageError) as told:
        Several(outs).test([1.0], progress=False)
    assert "MetricsDict" not in str(told.value)
