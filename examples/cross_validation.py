"""Cross-validation with a loop of one's own: steps without the trainer.

    python examples/cross_validation.py

Steps are pure functions of an experiment and a batch, so a loop that fits a question better than
`solstice.train` is a few lines. All folds start from one experiment, which no fold changes.
"""

import argparse

import equinox as eqx
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold
from tqdm import tqdm

import solstice


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args(arguments)

    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype("float32"), y.astype("int32")
    network = eqx.nn.MLP(64, 10, 64, 1, key=jax.random.key(0))
    start = solstice.ClassificationExperiment(network, optax.adam(3e-3), example_input=x[:1])

    scores, whole = [], []
    folds = StratifiedKFold(options.folds, shuffle=True, random_state=0)
    for train, test in tqdm(folds.split(x, y), total=options.folds, unit="folds"):
        exp = start
        rng = np.random.default_rng(0)
        for _ in range(options.epochs):
            order = rng.permutation(train)
            for part in np.split(order, range(64, len(order), 64))[:-1]:
                exp, _ = exp.train_step((x[part], y[part]))
        _, metrics = exp.eval_step((x[test], y[test]))
        whole.append(metrics)
        scores.append(float(metrics.compute()["accuracy"]))

    print(f"accuracy by fold: {', '.join(f'{score:.3f}' for score in scores)}")
    print(f"mean {np.mean(scores):.3f}, standard deviation {np.std(scores, ddof=1):.3f}")
    pooled = solstice.reduce(whole).compute()  # each example was tested once
    print(f"over all {len(x)} examples: macro F1 {pooled['f1_macro']:.3f}")
    return scores


if __name__ == "__main__":
    main()
