"""Fine-tuning: a new head on a frozen backbone, then the whole network with a smaller rate.

The backbone has learned the digits 0 to 4; the head learns from a tenth of the others.
"""

import equinox as eqx
import jax
import optax
from sklearn.datasets import load_digits

import solstice
from solstice import compat

x, y = load_digits(return_X_y=True)
x, low = (x / 16).astype("float32"), y < 5
old = solstice.data.Arrays(x[low], y[low], batch_size=32, shuffle=0)
new = solstice.data.Arrays(x[~low], y[~low] - 5, batch_size=32, shuffle=0)
train_ds, test_ds = new.split(0.1, stratify=True)

net = eqx.nn.MLP(64, 5, 64, 2, key=jax.random.key(0))
net = solstice.ClassificationExperiment(net, optax.adam(3e-3)).train(10, old).model.unwrap()
head = eqx.nn.Linear(64, 5, key=jax.random.key(1))
model = compat.as_model(eqx.tree_at(lambda net: net.layers[-1], net, head))

model = compat.freeze(model, lambda path, leaf: not path.startswith("layers/2"))
adam = optax.inject_hyperparams(optax.adam)(1e-2)  # keeps its rate where it can be set
frozen = solstice.ClassificationExperiment(model, adam).train(20, train_ds)
whole = frozen.with_model(compat.unfreeze(frozen.model))
whole = solstice.set_learning_rate(whole, 1e-3).train(20, train_ds)
results = [exp.test(test_ds)["accuracy"] for exp in (frozen, whole)]
print("accuracy of the head alone {:.3f}, of all {:.3f}".format(*results))
