"""Networks trained in torch, loaded by the same networks in every library: `nox -s interop`.

    PYTHONPATH=tests/compat python benchmarks/interop.py [--only NAME ...] [--write]

Each is trained for a few steps, saved with torch.save and with safetensors, and loaded from both.
The outputs must be those of torch to 1e-5; the figures are printed as a table. `--write` puts it
into docs/weights_tested.md, and the weights, inputs and outputs into tests/compat/from_torch, which
`tests/compat/weights/test_from_torch.py` loads where there is no torch.
"""

import argparse
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch
from architectures import FROM_TORCH, LIBRARIES, build
from architectures.common import INPUTS
from torch import nn
from torch.nn import functional

from solstice import compat

TOLERANCE = 1e-5
ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "compat" / "from_torch"
PAGE = ROOT / "docs" / "weights_tested.md"
BEGIN, END = "<!-- nox -s interop -- --write: begin -->", "<!-- end -->"
FIVE = [library for library in LIBRARIES if library != "Stax"]


def torch_mlp():
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    )


class TorchBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class TorchResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.layer1, self.layer2 = TorchBlock(8, 8, 1), TorchBlock(8, 16, 2)
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        x = self.bn1(self.conv1(x.permute(0, 3, 1, 2))).relu()
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class TorchLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.fc = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


class TorchTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.position = nn.Parameter(torch.randn(5, 16))
        layer = nn.TransformerEncoderLayer(
            16, 2, 32, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, 2, norm=nn.LayerNorm(16), enable_nested_tensor=False
        )
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        return self.fc(self.encoder(self.embed(x.long()) + self.position).mean(1))


TORCH = {
    "mlp": torch_mlp,
    "resnet": TorchResNet,
    "lstm": TorchLSTM,
    "transformer": TorchTransformer,
}


def trained(name):
    """Return a network after a few steps of Adam, in evaluation, and its outputs."""
    torch.manual_seed(0)
    network = TORCH[name]()
    inputs = torch.tensor(INPUTS[name])
    labels = torch.tensor([0, 1, 2, 1])[: len(inputs)]
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if losses[-1] >= losses[0]:
        raise SystemExit(f"{name}: training did not lower the loss: {losses}")
    network.eval()
    with torch.no_grad():
        return network, network(inputs)


def refuse_code(folder):
    """Show that a file that would run code when it is unpickled is refused, and runs none."""
    marker = folder / "ran"

    class Evil:
        def __reduce__(self):
            return Path.touch, (marker,)

    path = folder / "evil.pt"
    torch.save({"weight": torch.ones(2), "more": Evil()}, path)
    try:
        compat.load(build("Linen", "mlp", 0), path)
    except ValueError as error:
        if "not unpickled" in str(error) and not marker.exists():
            return
        raise
    raise SystemExit("A file with code in it was loaded.")


def gap(library, name, source, outputs):
    """Return how far a network's outputs are from those of torch, by its own weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "load\\(\\): .* by order alone")
        _, report = compat.load(build(library, name, 0), source, example=INPUTS[name])
    found = report.check(INPUTS[name], outputs.numpy(), tolerance=1e9)
    if found > TOLERANCE:
        print(report, file=sys.stderr)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(TORCH), help="some of the networks")
    parser.add_argument("--write", action="store_true", help="the page's table, and the fixtures")
    options = parser.parse_args()
    if options.only and options.write:
        parser.error("--write is for all networks")
    folder, worst, expected = Path(tempfile.mkdtemp()), 0.0, {}
    lines = [f"| network | {' | '.join(FIVE)} |", "| --- |" + " --- |" * len(FIVE)]
    print("\n".join(lines))
    for name in options.only or TORCH:
        network, outputs = trained(name)
        state = network.state_dict()
        files = [folder / f"{name}.pt", folder / f"{name}.safetensors"]
        checkpoint = {"epoch": 10, "state_dict": {f"module.{key}": v for key, v in state.items()}}
        torch.save(checkpoint, files[0])
        safetensors.torch.save_file(state, files[1])
        expected |= {f"{name}.inputs": torch.tensor(INPUTS[name]), f"{name}.outputs": outputs}
        found = [
            max(gap(library, name, source, outputs) for source in (*files, state))
            for library in FIVE
        ]
        worst = max(worst, *found)
        cells = " | ".join(f"{one:.1e}" for one in found)
        lines.append(f"| {FROM_TORCH[name]} | {cells} |")
        print(lines[-1], flush=True)
    refuse_code(folder)
    print("\nA file that would run code when it is unpickled was refused.")
    if worst > TOLERANCE:
        raise SystemExit(f"Outputs differ by {worst:.1e}, more than {TOLERANCE:.0e}.")
    if options.write:
        write(folder, expected, lines)


def write(folder, expected, lines):
    """Put the table into the page, and what was loaded into the tests' folder."""
    for name in TORCH:
        weights = folder / f"{name}.safetensors"
        (FIXTURES / weights.name).write_bytes(weights.read_bytes())
    safetensors.torch.save_file(expected, FIXTURES / "expected.safetensors")
    packages = "jax", "flax", "dm-haiku", "equinox", "keras"
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    title = f"With torch {version('torch')}, {versions}, on a CPU:"
    before, _, rest = PAGE.read_text().partition(BEGIN)
    table = "\n".join([title, "", *lines])
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
