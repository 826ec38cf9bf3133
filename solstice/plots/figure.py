"""A figure that notebooks show; it imports matplotlib."""

import io

from matplotlib.figure import Figure


class ShownFigure(Figure):
    """A figure that a notebook shows without `%matplotlib inline`, which pyplot would need.

    >>> ShownFigure(figsize=(2, 1))._repr_png_()[1:4]
    b'PNG'
    """

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()
