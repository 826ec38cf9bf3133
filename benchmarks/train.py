"""Time per step of whole training passes, as ratios to a hand-written JAX loop.

    python benchmarks/train.py [--rounds 11] [--only hand ours] [--quick] [--write]

In each round every contender trains one warm pass of about 0.2 s, in turn, and its time is divided
by that of the hand-written loop of the same round. Printed, and drawn: the median of the
ratios, the least and the largest. Absolute times mean nothing on a shared machine. PyTorch's
trainer comes after all the others, beside the loop alone: it slows down what shares its process.
"""

import argparse
import contextlib
import io
import json
import random
import statistics
import time

import contenders as house
import jax
import pages
import picture
import problems
from tqdm import tqdm

REFERENCE = "hand-written loop"


@contextlib.contextmanager
def unseen():
    """Draw the bars of a run into memory: the same work, and a readable table."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def measure(problem, rounds, files):
    turns, missing = house.contenders(problem, files)
    losses = {}
    for name, run in list(turns.items()):
        try:
            with unseen():
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
            with unseen():
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
    if missing:
        lines += ["", "Not measured:", ""]
        lines += [f"- {name.replace('_', ' ')}: {why}" for name, why in missing.items()]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of steps")
    parser.add_argument(
        "--only", nargs="*", default=[*house.FILES, *house.LAST], help="files of contenders/"
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds of a twentieth of the steps")
    parser.add_argument(
        "--write", action="store_true", help="into the pages of benchmarks and docs"
    )
    options = parser.parse_args()
    if options.write and not {*house.FILES, *house.LAST} <= set(options.only):
        parser.error("--write replaces whole tables: leave out --only")
    if options.quick:
        options.rounds, options.scale = 2, 0.05
    last = [file for file in options.only if file in house.LAST]
    others = [file for file in options.only if file not in last]
    results, missing = {}, {}
    for files in filter(None, (others, ["hand", *last] if last else [])):
        for problem in problems.all_problems(options.scale).values():
            found, absent, losses = measure(problem, options.rounds, files)
            for name, ratios in found.items():
                results.setdefault(problem.title, {}).setdefault(name, ratios)
            missing |= absent
            print(problem.title, {name: round(float(loss), 4) for name, loss in losses.items()})
    device = jax.devices()[0]
    where = "two shared CPU cores" if device.platform == "cpu" else device.device_kind
    text = (
        f"On {where}, jax {jax.__version__}, {options.rounds} rounds: median (least-largest).\n\n"
    )
    text += table(results, missing)
    print(text)
    (pages.results() / "train.json").write_text(json.dumps(results))
    (pages.results() / "train.md").write_text(text + "\n")
    picture.contenders(results, pages.results() / "benchmark.png")
    if options.write:
        pages.write("train", text)
        picture.contenders(results, pages.IMAGES / "benchmark.png")


if __name__ == "__main__":
    main()
