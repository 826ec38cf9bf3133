"""Converts every architecture from every library to every other; writes a table of the differences.

    python tests/compat/conversions.py docs/converting.md

What stands between the page's two marks is replaced by the table.
"""

import re
import sys
from pathlib import Path

import numpy as np
from architectures import ARCHITECTURES, LIBRARIES, build
from architectures.common import INPUTS

from solstice import compat
from solstice.errors import InvalidValueError

BEGIN, END = "<!-- begin: conversions -->", "<!-- end: conversions -->"


def cell(source, target, architecture):
    """Return the largest absolute difference of outputs, or the reason why there is none."""
    x = INPUTS[architecture]
    model, like = build(source, architecture, 1), build(target, architecture, 2)
    try:
        converted = compat.convert(model, like=like, example=x)
    except InvalidValueError as error:
        said = re.sub(r"\S+ \((\w+) [\dx]+\)", r"a \1", str(error).partition(" Give ")[0])
        return re.sub(r"differ by [\d.e+-]+: .*? Probably", "differ by more. Probably", said)
    return float(np.abs(np.asarray(converted(x)[0]) - np.asarray(model(x)[0])).max())


def main(page, only=None):
    """Fill the page's table."""
    reasons, lines, done = [], [], 0
    for architecture, title in ARCHITECTURES.items():
        if only and architecture not in only:
            continue
        there = [name for name, networks in LIBRARIES.items() if architecture in networks]
        lines += ["", f"### {title}", "", f"| from \\ to | {' | '.join(there)} |"]
        lines.append("| --- " * (len(there) + 1) + "|")
        for source in there:
            cells = []
            for target in there:
                found = "" if source == target else cell(source, target, architecture)
                if isinstance(found, str) and found:
                    if found not in reasons:
                        reasons.append(found)
                    found = f"no ({reasons.index(found) + 1})"
                elif found != "":
                    found, done = f"{found:.1e}", done + 1
                cells.append(found)
            lines.append(f"| {source} | {' | '.join(cells)} |")
            sys.stdout.write(lines[-1] + "\n")
            sys.stdout.flush()
    lines += [""] + [f"{i}. {reason}" for i, reason in enumerate(reasons, 1)] + [""]
    sys.stdout.write(f"{done} converted\n" + "\n".join(reasons) + "\n")
    if page:
        text = Path(page).read_text()
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        Path(page).write_text(f"{before}{BEGIN}\n{chr(10).join(lines)}\n{END}{after}")


if __name__ == "__main__":
    main(*sys.argv[1:2], only=sys.argv[2:]) if sys.argv[1:] else main(None)
