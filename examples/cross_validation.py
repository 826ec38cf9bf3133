"""Cross-validation with a hand-written loop: steps without the trainer.

    python examples/cross_validation.py
    python examples/cross_validation.py --dataset mnist     # which tfds downloads

Steps are pure functions of an experiment and a batch, so you can write your own loop in a few lines
if `solstice.train` does not fit. All folds start from one experiment, which no fold changes.
"""

import argparse

import equinox as eqx
import handwriting
import jax
import numpy as np
import optax
from sklearn.model_selection import StratifiedKFold
from tqdm import tqdm

import solstice


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    handwriting.add_flags(parser, epochs=10)
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args(arguments)

    (x, y), test = handwriting.load(options.dataset)
    x, y = np.concatenate([x, test[0]]), np.concatenate([y, test[1]])
    x = x.reshape(len(x), -1)
    network = eqx.nn.MLP(x.shape[1], 10, 64, 1, key=jax.random.key(0))
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
    pooled = solstice.reduce(whole)  # each example was tested once
    print(f"over all {len(x)} examples: macro F1 {pooled.compute()['f1_macro']:.3f}")
    if options.picture:
        solstice.plots.confusion_matrix(pooled).savefig(options.picture, dpi=200)
    return scores


if __name__ == "__main__":
    main()
