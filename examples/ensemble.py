"""An ensemble under one vmap: seeds times learning rates, trained as one experiment.

    python examples/ensemble.py
    python examples/ensemble.py --dataset mnist        # which tfds downloads

Twelve runs share one compiled step. Afterwards each is a separate experiment again. The best one is
chosen on held-out data, and the ensemble predicts with averaged probabilities.
"""

import argparse

import handwriting
import jax
import numpy as np
import optax
from jax.example_libraries import stax

import solstice

RATES = (1e-4, 1e-3, 1e-2, 1e-1)


def network():
    return stax.serial(stax.Flatten, stax.Dense(64), stax.Relu, stax.Dense(10))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    handwriting.add_flags(parser, epochs=10)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)

    (x, y), test = handwriting.load(options.dataset)
    held = len(x) // 5
    train_ds = handwriting.batched(x[held:], y[held:])
    val_ds, test_ds = [(x[:held], y[:held])], [test]

    # Called once, under vmap: `key` and `rate` are those of each member.
    def make(key, rate):
        # The rate in the optimizer's state, where each member has its own.
        adam = optax.inject_hyperparams(optax.adam)(rate)
        return solstice.ClassificationExperiment(network(), adam, example_input=x[:1], key=key)

    rates = np.repeat(RATES, options.seeds)
    keys = jax.random.split(jax.random.key(0), len(rates))
    ensemble = solstice.Ensemble.init(make, keys, rate=rates)
    ensemble = ensemble.train(options.epochs, train_ds, val_ds)

    results = ensemble.test(test_ds)
    accuracies = np.array([results[f"accuracy_member_{i}"] for i in range(len(rates))])
    for rate in RATES:
        mine = accuracies[rates == rate]
        print(f"learning rate {rate:<7g} accuracy {mine.mean():.3f} from {np.round(mine, 3)}")
    best = ensemble.best("average_loss", val_ds)
    of_best = best.test(test_ds)["accuracy"]
    together = float((solstice.predict(ensemble, test_ds) == test[1]).mean())
    print(f"best on held-back data: learning rate {float(best.optimizer.learning_rate()):g}")
    print(f"accuracy of the best {of_best:.3f}, of all together {together:.3f}")
    if options.picture:
        draw(rates, accuracies, of_best, together, options.picture)
    return accuracies, of_best, together


def draw(rates, accuracies, of_best, together, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, 100 * (1 - accuracies), "o", color="#0072B2", label="each member")
    axes.axhline(100 * (1 - of_best), color="#009E73", label="the best on held-back data")
    axes.axhline(100 * (1 - together), color="#D55E00", linestyle="--", label="all together")
    axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="test error (%)")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=200)


if __name__ == "__main__":
    main()
