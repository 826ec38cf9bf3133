"""Tabular data: a dropout MLP, and early stopping that restores the best epoch.

The rows are tumours, malignant or benign. The first layer standardises the columns, with statistics
of the training rows only.
"""

import optax
from flax import nnx
from sklearn.datasets import load_breast_cancer

import solstice

x, y = load_breast_cancer(return_X_y=True)
rest, test_ds = solstice.data.Arrays(x, y, batch_size=32, shuffle=0).split(0.8, stratify=y)
train_ds, val_ds = rest.split(0.8, stratify=True)

rngs = nnx.Rngs(0)
first = nnx.BatchNorm(30, momentum=0.9, rngs=rngs), nnx.Linear(30, 64, rngs=rngs), nnx.relu
net = nnx.Sequential(*first, nnx.Dropout(0.2, rngs=rngs), nnx.Linear(64, 1, rngs=rngs))

exp = solstice.BinaryClassificationExperiment(net, optax.adam(1e-3), key=0)
stop = solstice.EarlyStoppingCallback.no_improvement("loss", patience=5, restore_best=True)
exp = exp.train(100, train_ds, val_ds, [stop])
results = exp.test(test_ds)
print(f"accuracy {results['accuracy']:.3f}, AUROC {results['roc_auc']:.3f}")
