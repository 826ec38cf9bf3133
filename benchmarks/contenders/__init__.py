"""The contenders, one trainer a file, each with `contenders(problem)`: functions by name.

Such a function trains its network for one pass over the problem's batches, from where it was, with
adam, the loss and a 10x10 confusion matrix of every step, and returns the mean loss once all is
computed. What is compiled or built is compiled and built before, by a first call.
"""

import importlib

FILES = (
    "hand",
    "ours",
    "equinox_eager",
    "flax_clu",
    "flax_nnx",
    "keras_fit",
    "kauldron_trainer",
)
# PyTorch's threads and objects slow down whatever runs in the same process after them, the
# hand-written loop by a quarter: it is measured last, beside that loop alone.
LAST = ("lightning_trainer",)


def contenders(problem, files=FILES):
    """Return the functions of all files that can be imported, and why others cannot."""
    found, missing = {}, {}
    for name in files:
        try:
            module = importlib.import_module(f"contenders.{name}")
            found |= module.contenders(problem)
        except Exception as error:  # noqa: BLE001 - the table says so
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return found, missing
