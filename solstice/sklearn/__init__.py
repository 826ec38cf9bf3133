"""Estimators for scikit-learn: networks of any library in pipelines, grid searches and scores.

They need the extra `sklearn`, and are not loaded with `solstice`: `import solstice.sklearn`.
"""

from solstice.errors import MissingPackageError

try:
    from solstice.sklearn.classifier import Classifier
    from solstice.sklearn.regressor import Regressor
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "sklearn":
        raise
    raise MissingPackageError(
        "solstice.sklearn needs the package 'scikit-learn', which is not installed: "
        "pip install 'jax-solstice[sklearn]'"
    ) from error

__all__ = ["Classifier", "Regressor"]
