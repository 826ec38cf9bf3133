"""predict: an experiment's predictions for a whole dataset, on the host."""

from typing import Any

import jax
import numpy as np

from solstice.arguments import describe
from solstice.data.arrays import Arrays
from solstice.data.datasets import batches, check_dataset, length
from solstice.errors import InvalidValueError
from solstice.experiment import Experiment, check_defines, check_experiment
from solstice.sharding.batches import predict_placed
from solstice.sharding.in_step import in_step
from solstice.sharding.placements import Sharding, check_sharding
from solstice.sharding.processes import is_first_process
from solstice.signatures import explained
from solstice.training.progress.bars import Progress, ProgressChoice, check_progress
from solstice.tree.flat import Flat
from solstice.tree.pytree import PyTree


@explained(dataset="ds", data="ds", test_ds="ds", x="ds", verbose="progress")
def predict(
    exp: Experiment, ds: Any, *, sharding: Sharding | None = None, progress: ProgressChoice = True
) -> PyTree:
    """Return `exp.predict` of each batch's inputs, joined along the first axis, on the host.

    The inputs are what `exp.batch_inputs(batch)` returns: by default the first element of a tuple
    or list; any other batch, also a named tuple, is itself the inputs.

    Args:
        exp: An experiment with a `predict` method.
        ds: As `train_ds` in `train`; labels are not needed. `data.Arrays` are read in order, each
            row once, even if they shuffle.
        sharding: As in `train`. Each process gets the predictions of its own batches.
        progress: Whether to show a progress bar.

    Raises:
        TypeError: The experiment has no `predict` method.

    >>> import jax.numpy as jnp, optax, solstice
    >>> from jax.example_libraries import stax
    >>> exp = solstice.ClassificationExperiment(
    ...     stax.serial(stax.Dense(2)), optax.adam(0.1), example_input=jnp.eye(4), key=0
    ... )
    >>> solstice.predict(exp, [jnp.eye(4), jnp.zeros((3, 4))], progress=False).shape
    (7,)
    """
    check_experiment(exp)
    check_sharding(sharding)
    check_progress(progress)
    check_defines(exp, "predict", "predict() is called")
    check_dataset(ds, "ds")
    ds = ds.in_order() if isinstance(ds, Arrays) else ds
    if sharding is not None:
        exp = sharding.placed(Flat.of(exp), donate=True).whole()
    one_batch, inputs_of = exp.predict, exp.batch_inputs
    joined = []
    shown = Progress(progress if is_first_process() else False)
    with shown.one_pass("predict", total=length(ds)) as bar:
        source = batches(ds, 0, "ds", experiment=lambda: exp)
        if sharding is not None:
            source = in_step(source, strict=True)
        for batch in source:
            inputs = inputs_of(batch if sharding is None else batch[0])
            if sharding is None:
                joined.append(_on_host(one_batch(inputs)))
            else:
                joined.append(predict_placed(sharding, one_batch, inputs, batch[1]))
            bar.update(1)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *joined)


def _on_host(predictions: Any) -> Any:
    host = jax.tree.map(np.asarray, predictions)
    if not all(array.ndim for array in jax.tree.leaves(host)):
        raise InvalidValueError(
            f"predict is expected to return arrays with examples along their first axis, for each "
            f"batch of ds; it returned {describe(predictions)}."
        )
    return host
