"""PyTorch Lightning on torch's CPU build: its own loop, progress bar and logger, torchmetrics."""

import logging
import tempfile
import warnings

import lightning
import torch
import torchmetrics
from problems import CLASSES, LEARNING_RATE


class Network(lightning.LightningModule):
    def __init__(self, shape, widths, channels):
        super().__init__()
        size, layers = shape[-1], []
        for n in channels:
            layers += [torch.nn.Conv2d(size, n, 3, padding="same"), torch.nn.ReLU()]
            layers.append(torch.nn.MaxPool2d(2))
            shape, size = (shape[0] // 2, shape[1] // 2), n
        layers.append(torch.nn.Flatten())
        if channels:
            size *= shape[0] * shape[1]
        for n in widths[:-1]:
            layers += [torch.nn.Linear(size, n), torch.nn.ReLU()]
            size = n
        self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(size, widths[-1]))
        self.loss = torchmetrics.MeanMetric()
        self.confusion = torchmetrics.ConfusionMatrix("multiclass", num_classes=CLASSES)

    def training_step(self, batch):
        x, y = batch
        logits = self.layers(x)
        loss = torch.nn.functional.cross_entropy(logits, y)
        self.loss.update(loss.detach())
        self.confusion.update(logits.argmax(-1), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), LEARNING_RATE)


def contenders(problem):
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    shape = problem.batches[0][0].shape[1:]
    network = Network(shape, problem.widths, problem.channels)
    # Channels first, as torch has them.
    batches = [
        (torch.tensor(x.transpose(0, 3, 1, 2).copy() if x.ndim == 4 else x), torch.tensor(y).long())
        for x, y in problem.batches
    ]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    where = tempfile.mkdtemp()

    def run():
        network.loss.reset()
        network.confusion.reset()
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            default_root_dir=where,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(network, loader)
        return float(network.loss.compute())

    return {"PyTorch Lightning (torch CPU)": run}
