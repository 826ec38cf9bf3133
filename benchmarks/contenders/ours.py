"""Solstice as a user has it: ClassificationExperiment, the progress bar and LoggingCallback."""

import jax
import optax
from problems import LEARNING_RATE

import solstice

from .hand import Network


def contenders(problem):
    exp = experiment(problem)
    return {
        "solstice": run_with(exp, problem.batches),
        "solstice, steps_per_call=10": run_with(exp, problem.batches, steps_per_call=10),
    }


def experiment(problem):
    return solstice.ClassificationExperiment(
        Network(problem.widths, problem.channels),
        optax.adam(LEARNING_RATE),
        example_input=problem.batches[0][0],
        key=0,
    )


def run_with(exp, ds, num_epochs=1, **options):
    logged = []
    logging = solstice.LoggingCallback(logging_fn=lambda metrics, *_: logged.append(metrics))

    def run():
        trained = solstice.train(exp, num_epochs, ds, callbacks=[logging], **options)
        jax.block_until_ready(jax.tree.leaves(trained))
        return logged[-1]["average_loss"]

    return run
