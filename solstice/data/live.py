"""live: batches that are each generated from the current experiment.

For data that depends on the experiment, such as the episodes of a policy, which prefetching would
take from an older one.
"""

from collections.abc import Callable, Iterator

from solstice import arguments
from solstice.arguments import describe
from solstice.data.memory import own_arrays
from solstice.errors import InvalidTypeError
from solstice.signatures import required
from solstice.tree.flat import snapshot
from solstice.tree.pytree import PyTree


def live(make: Callable[..., PyTree], length: int | None = None) -> "Live":
    """Return a dataset that calls `make` for each batch right before its step.

    No batch is made from an older experiment: a run does not prefetch this dataset and takes one
    step per call, regardless of `prefetch` and `steps_per_call`. A resumed run is the same bit for
    bit if `make` depends only on its arguments: draw random numbers from a key of the experiment,
    or from one folded with the step.

    If it is enough to make batches once per pass, use a function of two arguments as the dataset:
    it is called with the epoch and the experiment at the start of each pass.

    Args:
        make: Called as `make(exp)`, or as `make(exp, step)` if it requires two arguments; returns a
            batch. The experiment is a `solstice.snapshot`, so it may be kept. The step is its
            index, counted in its mode since the start of the run.
        length: How many batches a pass has; None for an endless pass, in training that `num_steps`
            ends.

    Raises:
        TypeError, ValueError: An argument is wrong.

    >>> import jax, jax.numpy as jnp, solstice
    >>> class Walk(solstice.Experiment):
    ...     place: jax.Array
    ...
    ...     @solstice.jit
    ...     def train_step(self, batch):
    ...         return solstice.replace(self, place=self.place + batch), batch
    ...
    ...     def eval_step(self, batch):
    ...         return self, batch
    >>> half_way = solstice.data.live(lambda exp: (8 - exp.place) / 2, length=3)
    >>> float(solstice.train(Walk(jnp.zeros(())), 1, half_way, prefetch=2, progress=False).place)
    7.0
    """
    arguments.function(make, "make")
    number = required(make, "make")
    if number not in (1, 2):
        raise InvalidTypeError(
            f"make is expected to be a function of (exp) or of (exp, step); it is "
            f"{describe(make)}, which requires {number} arguments."
        )
    if length is not None:
        length = arguments.count(length, "length")
    return Live(make if number == 2 else lambda exp, step: make(exp), length)


class Live:
    """What `live` returns.

    Attributes:
        make: Makes a batch from an experiment and the index of a step.
        length: How many batches a pass has; None for an endless pass.
    """

    def __init__(self, make: Callable[[PyTree, int], PyTree], length: int | None) -> None:
        self.make = make
        self.length = length

    def batches(
        self, experiment: Callable[[], PyTree], step: int, made: int = 0
    ) -> Iterator[PyTree]:
        """Yield a pass's batches, without those already `made`.

        Args:
            experiment: Returns the current experiment.
            step: The index of the next step.
            made: How many batches of the pass a resumed run has consumed.
        """
        while self.length is None or made < self.length:
            yield own_arrays(self.make(snapshot(experiment()), step))
            step, made = step + 1, made + 1
