"""Draws which digits were taken for which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

SHOWN = 8


def draw(path: Path, images: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> None:
    """Writes a PNG: the confusion matrix, and below it the first images that were taken for something else.

    Args:
        path: where to write it.
        images: N×8×8.
        truth: what they show, N digits.
        predicted: what they were taken for, N digits.
    """
    counts = np.zeros((10, 10), dtype=int)
    np.add.at(counts, (truth, predicted), 1)
    wrong = np.flatnonzero(truth != predicted)
    figure = Figure(figsize=(7.5, 9.5), layout="constrained")
    right = len(truth) - len(wrong)
    figure.suptitle(f"{right} of {len(truth)} digits recognised ({right / len(truth):.1%})", fontsize=16)
    above, below = figure.subfigures(2, 1, height_ratios=[5, 1.25])
    _draw_counts(above.subplots(), counts)
    _draw_wrong(below, images[wrong], truth[wrong], predicted[wrong])
    figure.savefig(path, dpi=120)


def _draw_counts(axes, counts: np.ndarray) -> None:
    # What is right in blue; what is wrong in red, and a single one already well visible.
    diagonal = np.eye(10, dtype=bool)
    axes.imshow(np.ma.masked_where(~diagonal, counts), cmap="Blues", vmin=0, vmax=1.3 * counts.max())
    axes.imshow(np.ma.masked_where(diagonal | (counts == 0), counts), cmap="Reds", vmin=-6, vmax=16)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if row == column or count > 5 else "black"
            axes.text(column, row, count, color=color, ha="center", va="center", fontsize=13)
    axes.set(xticks=range(10), yticks=range(10))
    axes.set_xlabel("recognised as", fontsize=12)
    axes.set_ylabel("written digit", fontsize=12)
    # Thin lines between the cells.
    axes.set_xticks(np.arange(-0.5, 10), minor=True)
    axes.set_yticks(np.arange(-0.5, 10), minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.8)
    axes.tick_params(which="both", length=0, labelsize=12)


def _draw_wrong(figure, images: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> None:
    heading = (
        "taken for something else (written → recognised)" if len(images) else "nothing was taken for something else"
    )
    if len(images) > SHOWN:
        heading = f"the first {SHOWN} of {len(images)} that were {heading}"
    figure.suptitle(heading, fontsize=12)
    first = max(0, SHOWN - len(images)) // 2  # so that a few stand in the middle
    for position, axes in enumerate(figure.subplots(1, SHOWN), start=-first):
        axes.set_axis_off()
        if 0 <= position < len(images):
            axes.imshow(images[position], cmap="gray_r")
            axes.set_title(f"{truth[position]} → {predicted[position]}", fontsize=13)
