"""live: batches that are each made from the experiment as it is at that step.

For data that the experiment itself makes, such as the episodes of a policy: reading ahead would
train on those of an older one.
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
    """Return a dataset whose batches `make` makes, each right before its step.

    No batch is ever made from an older experiment: whatever `prefetch` and `steps_per_call` a run
    has, it reads nothing of this dataset ahead and takes one step a call. A resumed run goes on to
    the same bits if `make` is a function of what it is given: draw random numbers from a key of
    the experiment, or from one folded with the step.

    For batches that only have to be fresh once a pass, a function of two arguments is a dataset
    too: it is called with the epoch and the experiment at the start of each pass.

    Args:
        make: Called as `make(exp)`, or as `make(exp, step)` if it requires two arguments; returns
            a batch. The experiment is a `solstice.snapshot`, so it may be kept. The step is the
            index among the steps of its mode since the start of the run.
        length: How many batches a pass has; None for no end, in training that `num_steps` ends.

    Raises:
        TypeError, ValueError: An argument is not what it must be.

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
        make: Makes a batch of an experiment and the index of a step.
        length: How many batches a pass has; None for no end.
    """

    def __init__(self, make: Callable[[PyTree, int], PyTree], length: int | None) -> None:
        self.make = make
        self.length = length

    def batches(
        self, experiment: Callable[[], PyTree], step: int, made: int = 0
    ) -> Iterator[PyTree]:
        """Yield a pass's batches, those already `made` left out.

        Args:
            experiment: Returns the experiment as it is.
            step: The index of the next step.
            made: How many batches a resumed run has had of the pass.
        """
        while self.length is None or made < self.length:
            yield own_arrays(self.make(snapshot(experiment()), step))
            step, made = step + 1, made + 1
