"""Batch statistics that a file of Equinox numbers and does not name: `state/3/0`, `state/3/1`.

Before each pair of mean and variance it has what the norm counts: its steps, or whether a first one
is still to come. As long as steps are few, Equinox corrects the averages by its momentum, which is
not in the file; such averages are not used.
"""

import re
from collections.abc import Mapping

import numpy as np

_MEAN = re.compile(r"state/(\d+)/0$")
# From here on, the correction is below the precision of float32, for Equinox's own momentum 0.99.
_SETTLED = 1400


def numbered_averages(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, str], list[str]]:
    """Return what some arrays are, "mean" or "var", and why others are not used: those are "".

    >>> vector, counter = np.ones(4), np.array(0)
    >>> numbered_averages({"state/0": counter, "state/1/0": vector, "state/1/1": vector})
    ({'state/1/0': 'mean', 'state/1/1': 'var'}, [])
    """
    words, reasons = dict[str, str](), list[str]()
    for mean, array in arrays.items():
        found = _MEAN.match(mean)
        variance = f"{mean[:-1]}1"
        counter = arrays.get(f"state/{int(found[1]) - 1}") if found else None
        if counter is None or counter.ndim or counter.dtype.kind not in "iub":
            continue
        if variance not in arrays or array.ndim != 1 or arrays[variance].shape != array.shape:
            continue
        early = counter.dtype.kind != "b" and 0 < counter < _SETTLED
        words |= dict.fromkeys((mean, variance), "") if early else {mean: "mean", variance: "var"}
        if early:
            reasons.append(
                f"{mean!r}: these averages are of {counter} steps, and Equinox corrects those by "
                f"a momentum that the file does not have. Save model.settle_averages()."
            )
    return words, reasons
