"""Pictures of a run; each function returns a matplotlib figure, without showing or saving it.

They need the extra `plot`, and no display: `figure.savefig("curves.png")`. A notebook shows them
without any magic command; to log one, return `loggers.Image(figure)` from `compute()`.
"""

from solstice.plots.curves import learning_curves
from solstice.plots.images import worst_examples
from solstice.plots.matrix import confusion_matrix
from solstice.plots.reliability import calibration

__all__ = ["calibration", "confusion_matrix", "learning_curves", "worst_examples"]
