"""The use of a leaf, from a trace of a network (`roles`) or from the names in a file."""

import dataclasses
import math
from collections import Counter

import numpy as np

MATRIX, CONV, TRANSPOSED, TABLE = "matrix", "conv", "transposed", "table"
MATRICES = "matrices"  # of a product with an axis along which there is one matrix for each
BIAS, SCALE, MEAN, VARIANCE = "bias", "scale", "mean", "variance"
LAYERS = MATRIX, CONV, TRANSPOSED, TABLE  # roles with which a layer begins


@dataclasses.dataclass(frozen=True)
class Flat:
    """Flattened features.

    Attributes:
        sizes: Of the axes they had, such as (height, width, channels).
        channels: How many channels the convolution has that gave them, or takes them; 0 if none.
    """

    sizes: tuple[int, ...]
    channels: int

    @property
    def size(self) -> int:
        """The number of features."""
        return math.prod(self.sizes)


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """One use of a leaf, or of a part of it.

    Attributes:
        leaf: The leaf's path or name.
        role: `matrix` (in, out); `conv` (spatial..., in, out); `transposed`, the same of a
            transposed convolution, as it slides over the spread inputs; `table` (rows, features);
            `bias`, `scale`, `mean`, `variance` (elements,); or the name of an operation not known
            here.
        index: Positions in the flattened leaf, with axes in the order of the role.
        loop: Which loop over time the use is in, counted from 0; None outside of loops.
        of: In a loop, what a matrix multiplies: "input" or "carry"; otherwise "".
        factor: The value that is used is `factor * leaf + shift`.
        shift: As above. Of a variance it is the epsilon.
        step: The number of the operation in its network's trace; -1 without a trace.
        rows: Of a matrix that takes flattened features, what lies along its rows: what is first
            there and last elsewhere orders them. Otherwise empty.
        columns: The same of what gives such features, or runs along them: a matrix or a vector.
        spread: How many spatial axes the kernel has, if the code calls its convolution a transposed
            one and its stride is 1, where it is the same operation as a plain one. Otherwise 0.
    """

    leaf: str
    role: str
    index: np.ndarray
    loop: int | None = None
    of: str = ""
    factor: float = 1.0
    shift: float = 0.0
    step: int = -1
    rows: tuple[Flat, ...] = ()
    columns: tuple[Flat, ...] = ()
    spread: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the order of the role."""
        return self.index.shape

    def __str__(self) -> str:
        return f"{self.leaf} ({self.role} {'x'.join(map(str, self.shape))})"


@dataclasses.dataclass(frozen=True)
class Trace:
    """The result of tracing a model's call, for its leaves.

    Attributes:
        uses: In the order of use; a leaf that is used twice is in it twice.
        unused: Float leaves that the outputs do not depend on.
        epsilons: The constants added before a square root, in their order.
        operations: How often each operation occurs.
        padded_in_full: Whether a kernel slides over every overlap with its input, as transposed
            convolutions of stride 1 do.
    """

    uses: tuple[Use, ...]
    unused: tuple[str, ...]
    epsilons: tuple[float, ...]
    operations: Counter[str]
    padded_in_full: bool = False


def conv_index(index: np.ndarray) -> tuple[str, np.ndarray]:
    """Return role and index of a convolution's kernel (spatial..., in, out).

    One that looks at one position is a matrix, so that it fits a dense layer's.
    """
    pointwise = all(size == 1 for size in index.shape[:-2])
    return (MATRIX, index.reshape(index.shape[-2:])) if pointwise else (CONV, index)
