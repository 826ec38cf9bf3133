"""Runs a program whose pictures are saved twice, for light and for dark pages.

`python docs/assets/twice.py PROGRAM ARGUMENTS`: where the program saves `curves.png`, this writes
`curves-light.png` and `curves-dark.png`, at twice a screen's density and without a background.
"""

import runpy
import sys
from pathlib import Path

from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.spines import Spine
from matplotlib.text import Text

BLACK, BLUE = "#000000", "#0072b2"
# What black and blue are on each kind of page; the other colours are seen on both.
KINDS = {
    "light": {BLACK: "#24292f", BLUE: BLUE},
    "dark": {BLACK: "#d0d7de", BLUE: "#56b4e9"},
}
DENSITY = 200
save = Figure.savefig


def coloured(figure):
    """Return (colour, setter) of all that is drawn in black or in blue."""
    found = []
    for artist in figure.findobj(lambda one: isinstance(one, Text | Line2D)):
        # A number in a cell is black or white by the cell's colour.
        cell = artist.axes is not None and artist.axes.images and artist in artist.axes.texts
        if not cell:
            found.append((artist.get_color(), artist.set_color))
    found += [(one.get_edgecolor(), one.set_edgecolor) for one in figure.findobj(Spine)]
    for line in figure.findobj(Line2D):  # ticks are markers
        found.append((line.get_markeredgecolor(), line.set_markeredgecolor))
    for bar in figure.findobj(Rectangle):
        found.append((bar.get_facecolor(), bar.set_facecolor))
    for lines in figure.findobj(LineCollection):
        found.append((lines.get_color()[0], lines.set_color))
    found = [(to_hex(colour), setter) for colour, setter in found]
    return [(colour, setter) for colour, setter in found if colour in (BLACK, BLUE)]


def save_twice(figure, path, **_):
    """Save a figure as PATH-light.png and PATH-dark.png."""
    figure.draw_without_rendering()  # ticks are made now, and are black as yet
    found = coloured(figure)
    path = Path(path)
    for name, colours in KINDS.items():
        for colour, setter in found:
            setter(colours[colour])
        save(figure, path.with_stem(f"{path.stem}-{name}"), dpi=DENSITY, transparent=True)


if __name__ == "__main__":
    Figure.savefig = save_twice
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
