"""A network that learns handwritten digits; `tensorcall serve digits` lets other processes train and ask it.

The network lives in the process that serves. Callers see three functions, which share one network, and a class for
those who want a network of their own; nothing else of this file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from tensorcall.server import expose

BATCH = 32
LEARNING_RATE = 0.01

# Batches this small gain nothing from more threads, and with one the result depends less on the machine.
torch.set_num_threads(1)

_lock = threading.Lock()  # several callers may train and predict at once
_network: nn.Module | None = None


@expose
def train(images: Tensor, labels: Tensor, *, epochs: int = 20, seed: int = 0) -> Iterator[dict[str, float]]:
    """Trains a new network, which `predict` uses from the end of the training on.

    A generator: the caller gets every step as it is made. If the caller leaves early, the training stops there, and
    the network before stays in use.

    Args:
        images: N×8×8, float32 from 0 (white) to 1 (black).
        labels: N digits, int64.
        epochs: how often every image is looked at.
        seed: the same one gives the same network.

    Yields:
        step (from 1 to steps), steps, epoch (from 1), and the loss and the accuracy in this epoch so far.

    Raises:
        ValueError: images or labels have another shape.
    """
    global _network
    training = _Training(images, labels, epochs, seed)
    for _ in range(epochs):
        yield from training.epoch()
    with _lock:
        _network = training.network.eval()


@expose
def predict(images: Tensor) -> Tensor:
    """Tells which digits N×8×8 images show: N numbers, int64.

    Raises:
        ValueError: the images have another shape.
        RuntimeError: there is no network yet.
    """
    batch = _as_batch(images)
    with torch.inference_mode():
        return _trained()(batch).argmax(1)


@expose
def summary() -> dict[str, str | int]:
    """Describes the trained network and where it lives.

    Raises:
        RuntimeError: there is no network yet.
    """
    parameters = sum(parameter.numel() for parameter in _trained().parameters())
    return {"parameters": parameters, "process": os.getpid(), "torch": str(torch.__version__)}


@expose
class Model:
    """A network of the caller's own. It lives here as long as somebody holds a reference to it."""

    def __init__(self, images: Tensor, labels: Tensor, *, epochs: int = 20, seed: int = 0) -> None:
        """Takes what it shall learn; arguments as for `train`."""
        self._training = _Training(images, labels, epochs, seed)

    def train_epoch(self) -> dict[str, float]:
        """Looks at every image once; returns what `train` yields last in an epoch."""
        *_, now = self._training.epoch()
        return now

    def predict(self, images: Tensor) -> Tensor:
        """Tells which digits N×8×8 images show: N numbers, int64."""
        network = self._training.network.eval()
        try:
            with torch.inference_mode():
                return network(_as_batch(images)).argmax(1)
        finally:
            network.train()


class _Training:
    """The training of one network."""

    def __init__(self, images: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
        self._images = _as_batch(images)
        if labels.shape != (len(images),):
            raise ValueError(f"{len(images)} images need as many labels, got the shape {tuple(labels.shape)}")
        self._labels = labels
        self._random = torch.Generator().manual_seed(seed)
        self.network = _new_network(seed)
        self._optimizer = torch.optim.AdamW(self.network.parameters())
        self._steps = epochs * len(range(0, len(images), BATCH))
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, LEARNING_RATE, total_steps=self._steps)
        self._epoch = self._step = 0

    def epoch(self) -> Iterator[dict[str, float]]:
        """Looks at every image once, and tells after each batch."""
        self._epoch += 1
        seen = total_loss = right = 0
        for chosen in torch.randperm(len(self._images), generator=self._random).split(BATCH):
            scores = self.network(_jittered(self._images[chosen], self._random))
            loss = cross_entropy(scores, self._labels[chosen])
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            self._schedule.step()
            self._step += 1
            seen += len(chosen)
            total_loss += loss.item() * len(chosen)
            right += (scores.argmax(1) == self._labels[chosen]).sum().item()
            yield {
                "step": self._step,
                "steps": self._steps,
                "epoch": self._epoch,
                "loss": total_loss / seen,
                "accuracy": right / seen,
            }


def _trained() -> nn.Module:
    with _lock:
        if _network is None:
            raise RuntimeError("there is no network yet: call digits.train(images, labels) first")
        return _network


def _new_network(seed: int) -> nn.Module:
    # Layers draw their first weights from torch's one global generator: seeded under the lock, and then put back.
    with _lock, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),  # 8×8 → 4×4
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),  # 4×4 → 2×2
            nn.Flatten(),
            nn.Linear(64 * 2 * 2, 10),
        )


def _as_batch(images: Tensor) -> Tensor:
    """Checks N×8×8 images and returns them as N×1×8×8, which convolutions take."""
    if images.dim() != 3 or images.shape[1:] != (8, 8):
        raise ValueError(f"images must have the shape (N, 8, 8), got {tuple(images.shape)}")
    return images.unsqueeze(1)


def _jittered(images: Tensor, random: torch.Generator) -> Tensor:
    """Turns, scales and shifts each image a little, so that the network learns digits and not pixels."""
    angle, scale, right, down = 0.4 * torch.rand(4, len(images), generator=random) - 0.2
    cos, sin = angle.cos() * (1 + scale / 2), angle.sin() * (1 + scale / 2)
    # Of each image, the two rows of the matrix that says which point comes to lie where.
    matrices = torch.stack([cos, -sin, right, sin, cos, down], 1).view(-1, 2, 3)
    return grid_sample(images, affine_grid(matrices, list(images.shape), align_corners=False), align_corners=False)
