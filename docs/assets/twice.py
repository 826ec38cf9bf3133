"""Runs a program whose pictures are saved twice, for light and for dark pages.

`python docs/assets/twice.py PROGRAM ARGUMENTS`: where the program saves `curves.png`, there are then
`curves-light.png` and `curves-dark.png`, at twice the density of a screen and without a background.
"""

import runpy
import sys
from pathlib import Path

from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.spines import Spine
from matplotlib.text import Text

INKS = {"light": "#24292f", "dark": "#d0d7de"}
BLACK = "#000000"
DENSITY = 200
save = Figure.savefig


def inked(figure):
    """Return the setters of the colours of all that is drawn in black around the data."""
    setters = []
    for artist in figure.findobj(lambda one: isinstance(one, Text | Line2D)):
        # A number in a cell is black or white by the cell's colour.
        cell = artist.axes is not None and artist.axes.images and artist in artist.axes.texts
        if not cell and to_hex(artist.get_color()) == BLACK:
            setters.append(artist.set_color)
    spines = figure.findobj(Spine)
    setters += [spine.set_edgecolor for spine in spines if to_hex(spine.get_edgecolor()) == BLACK]
    for legend in figure.findobj(lambda one: type(one).__name__ == "Legend"):
        legend.get_frame().set_facecolor("none")
    return setters


def save_twice(figure, path, **_):
    """Save a figure as PATH-light.png and PATH-dark.png."""
    figure.draw_without_rendering()  # ticks are made now, and are black as yet
    setters = inked(figure)
    path = Path(path)
    for name, ink in INKS.items():
        for setter in setters:
            setter(ink)
        save(figure, path.with_stem(f"{path.stem}-{name}"), dpi=DENSITY, transparent=True)


if __name__ == "__main__":
    Figure.savefig = save_twice
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
