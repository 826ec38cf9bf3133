"""Pictures of a run; each function returns a matplotlib figure, and shows or saves nothing.

They need the extra `plot`, and no display: `figure.savefig("curves.png")`. A notebook shows them
without any magic; `loggers.Image(figure)` among the values of `compute()` logs one.
"""

from solstice.plots.curves import learning_curves
from solstice.plots.images import worst_examples
from solstice.plots.matrix import confusion_matrix
from solstice.plots.reliability import calibration

__all__ = ["calibration", "confusion_matrix", "learning_curves", "worst_examples"]
