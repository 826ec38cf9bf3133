"""Time per step of whole training passes, as ratios to a hand-written JAX loop.

    python benchmarks/train.py [--rounds 15] [--output benchmarks/results]

In each round every contender trains one warm pass of about 0.2 s, in turn, and its time is divided
by that of the hand-written loop of the same round. Printed, and drawn: the median of the
ratios, the least and the largest. Absolute times mean nothing on a shared machine.
"""

import argparse
import contextlib
import io
import json
import random
import statistics
import time
from pathlib import Path

import contenders as house
import jax
import problems
from tqdm import tqdm

REFERENCE = "hand-written loop"


def measure(problem, rounds, files):
    turns, missing = house.contenders(problem, files)
    losses = {}
    for name, run in list(turns.items()):
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                run()
                losses[name] = run()
        except Exception as error:  # noqa: BLE001 - the table says so
            del turns[name]
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    ratios = {name: [] for name in turns}
    order = list(turns)
    for _ in tqdm(range(rounds), desc=problem.title, leave=False):
        random.shuffle(order)
        seconds = {}
        for name in order:
            # The bar of a run is drawn into memory: the same work, and a readable table.
            with contextlib.redirect_stderr(io.StringIO()):
                start = time.perf_counter()
                turns[name]()
                seconds[name] = time.perf_counter() - start
        for name in turns:
            ratios[name].append(seconds[name] / seconds[REFERENCE])
    return ratios, missing, losses


def table(results, missing):
    titles = list(results)
    names = list(dict.fromkeys(name for ratios in results.values() for name in ratios))
    lines = [f"| | {' | '.join(titles)} |", f"| --- |{' --- |' * len(titles)}"]
    for name in names:
        cells = []
        for title in titles:
            found = results[title].get(name)
            cells.append(
                f"{statistics.median(found):.2f} ({min(found):.2f}-{max(found):.2f})"
                if found
                else "-"
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [f"| {name} | {why} |{' |' * (len(titles) - 1)}" for name, why in missing.items()]
    return "\n".join(lines)


def picture(results, path):
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for ratios in results.values() for name in ratios))[::-1]
    figure = Figure(figsize=(11, 0.42 * len(names) + 1.4), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for panel, (title, ratios) in zip(panels, results.items(), strict=True):
        for row, name in enumerate(names):
            if found := ratios.get(name):
                colour = "#0072b2" if name.startswith("solstice") else "#888888"
                panel.plot([min(found), max(found)], [row, row], color=colour, alpha=0.4, lw=3)
                panel.plot(statistics.median(found), row, "o", color=colour)
        panel.axvline(1, color="black", lw=0.8, ls=":")
        panel.set_xscale("log")
        ticks = [t for t in (0.5, 0.7, 1, 1.5, 2, 4, 8, 16) if panel.get_xlim()[0] <= t]
        ticks = [t for t in ticks if t <= panel.get_xlim()[1]]
        panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
        panel.minorticks_off()
        panel.set_title(title)
        panel.set_yticks(range(len(names)), names)
        panel.grid(axis="x", alpha=0.3)
    figure.supxlabel("time per step / hand-written loop (median, least to largest)")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of steps")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--only", nargs="*", default=house.FILES, help="files of contenders/")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results, missing = {}, {}
    for problem in problems.all_problems(options.scale).values():
        found, absent, losses = measure(problem, options.rounds, options.only)
        results[problem.title] = found
        missing |= absent
        print(problem.title, {name: round(float(loss), 4) for name, loss in losses.items()})
    text = table(results, missing)
    device = jax.devices()[0].device_kind
    text = f"On {device}, jax {jax.__version__}, {options.rounds} rounds:\n\n{text}\n"
    print(text)
    (options.output / "train.md").write_text(text)
    (options.output / "train.json").write_text(json.dumps(results))
    picture(results, options.output / "train.png")


if __name__ == "__main__":
    main()
