"""A network, an optimizer and data become an experiment, which is trained, tested and asked."""

from collections.abc import Iterator
from typing import Any, assert_type

import equinox as eqx
import jax
import numpy as np

import solstice
from solstice.callbacks import CheckpointingCallback, HistoryCallback, LoggingCallback
from solstice.loggers import CSV
from solstice.metrics import ClassificationMetrics
from solstice.triggers import At, Every, Trigger

Batch = tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.int32]]]
rng = np.random.default_rng(0)
x = rng.normal(size=(64, 4)).astype(np.float32)
y = (x[:, 0] > 0).astype(np.int32)


def batches(epoch: int) -> Iterator[Batch]:
    order = np.random.default_rng(epoch).permutation(64)
    yield x[order], y[order]


def optimizer() -> Any:  # optax has no types
    return None


network = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
exp = solstice.ClassificationExperiment(
    network,
    optimizer(),
    num_classes=2,
    key=0,
    example_input=x,
    label_smoothing=0.1,
    class_weights=[1.0, 2.0],
    top_k=1,
    track="totals",
    batch_keys=("image", "label", "mask", "weight"),
    ema_decay=0.9,
    compute_dtype="bfloat16",
    accumulate_steps=2,
)
assert_type(exp, solstice.ClassificationExperiment)
history = HistoryCallback()
callbacks = [
    history,
    LoggingCallback(10, CSV("log.csv")),
    CheckpointingCallback("checkpoints", every=Every(epochs=1), best="accuracy"),
    solstice.EarlyStoppingCallback.no_improvement("loss", patience=3),
]
trained = exp.train(
    num_epochs=2, train_ds=batches, val_ds=[(x, y)], callbacks=callbacks, progress=["loss"]
)
assert_type(trained, solstice.ClassificationExperiment)
assert_type(solstice.train(exp, 2, batches), solstice.ClassificationExperiment)
assert_type(exp.train(train_ds=batches, num_steps=9), solstice.ClassificationExperiment)
assert_type(trained.test([(x, y)], progress=False), dict[str, Any])
assert_type(solstice.test(trained, [(x, y)], callbacks), None)
assert_type(solstice.test(trained, [(x, y)], return_outs=True), list[Any])
assert_type(trained(x), jax.Array)
assert_type(trained.predict(x), jax.Array)
labels: np.ndarray[Any, np.dtype[np.int32]] = solstice.predict(trained, batches)
assert_type(trained.model, solstice.compat.Model)
assert_type(trained.optimizer, solstice.compat.Optimizer)
assert_type(solstice.replace(trained, key=jax.random.key(1)), solstice.ClassificationExperiment)
assert_type(solstice.snapshot(trained), solstice.ClassificationExperiment)
assert_type(solstice.restore("checkpoints", exp), solstice.ClassificationExperiment)
assert_type(solstice.summary(trained).parameters, int)
assert_type(Every(steps=5) | At([1]), Trigger)
metrics = ClassificationMetrics([0, 1], [0, 1], 0.5, num_classes=2)
assert_type(metrics.merge(metrics), ClassificationMetrics)
assert_type(solstice.reduce([metrics, metrics]), ClassificationMetrics)
assert_type(metrics.compute(), dict[str, Any])
assert_type(history.records, list[dict[str, Any]])
after, outs = trained.train_step((x, y))
assert_type(after, solstice.ClassificationExperiment)
assert_type(outs.merge(outs), solstice.Metrics)
outputs, model = trained.model(x)
parameters = [model.params, model.state, after.ema, outputs]
