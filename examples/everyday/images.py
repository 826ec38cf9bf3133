"""Images: augmentation is a compiled function of the batch and a key that is new in each epoch.

The network is trained on digits, shifted or not, and tested on shifted ones.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import solstice


def shifted(batch, key):
    """Return the batch with each image shifted by up to a pixel along both axes."""
    x, y = batch
    by = jax.random.randint(key, (len(x), 2), -1, 2)
    return jax.vmap(lambda image, by: jnp.roll(image, by, (0, 1)))(x, by), y


def pooled(x):
    return nn.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)


x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32").reshape(-1, 8, 8, 1)
data = solstice.data.Arrays(x, y, batch_size=64, shuffle=0)
train_ds, test_ds = data.split(0.8, stratify=y)

net = nn.Sequential([nn.Conv(32, (3, 3)), nn.relu, pooled, nn.Dense(64), nn.relu, nn.Dense(10)])
results = {}
for name, ds in {"plain": train_ds, "shifted": train_ds.map(shifted)}.items():
    exp = solstice.ClassificationExperiment(net, optax.adam(3e-3), example_input=x[:1], key=0)
    exp = exp.train(10, ds)
    results[name] = exp.test(test_ds.map(shifted))["accuracy"]
    print(f"trained on {name} images: accuracy {results[name]:.3f} on shifted ones")
