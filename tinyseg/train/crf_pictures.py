"""The picture of a parameter search: heat maps of what the CRF gains over the grid."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinyseg.train.crf_search import Found, Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, BEST = "#333333", "#999999", "#E69F00"


def heat_maps(found: Found) -> "Figure":
    """Gains in mean IoU, in points, over bandwidths of colour and position; a column for each appearance weight.

    The upper row counts all pixels, the lower one those near boundaries. Where the grid has other axes too (the
    smoothness kernel, iterations) a cell shows the best along them. Blue is a gain over the network alone, red a
    loss; an orange frame marks the best of each row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    weights, positions, colours = (
        _values(found, name) for name in ("appearance_weight", "appearance_position", "appearance_colour")
    )
    cell, gap = 0.62, 0.35
    width = 1.15 + len(weights) * (cell * len(positions) + gap) + 1.0
    height = 0.85 + 2 * (max(cell * len(colours), 1.0) + 0.85)
    figure = Figure(figsize=(max(width, 5.6), height), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 1)
    rows = [figure.add_subfigure(grid[k]) for k in range(2)]
    titles = (
        f"all pixels: {100 * found.without.mean_iou:.2f} % mean IoU without CRF",
        f"within {found.band_width:g} px of boundaries: {100 * found.without.band_iou:.2f} % without CRF",
    )
    for row, title, score in zip(rows, titles, (_mean_iou, _band_iou), strict=True):
        gains = np.stack([_gains(found, weight, positions, colours, score) for weight in weights])
        limit = max(np.nanmax(np.abs(gains)), 0.1) if np.isfinite(gains).any() else 1.0
        best = np.nanargmax(gains) if np.isfinite(gains).any() else -1
        panels = np.atleast_1d(row.subplots(1, len(weights), sharey=True))
        for k, axes in enumerate(panels):
            picture = _panel(axes, gains[k], positions, colours, limit)
            axes.set_title(f"appearance weight {weights[k]:g}", fontsize=9, color=INK)
            inside = best - k * gains[k].size
            if 0 <= inside < gains[k].size:
                _frame(axes, *np.unravel_index(inside, gains[k].shape))
        panels[0].set_ylabel("colour bandwidth\n(grey levels)", fontsize=9, color=INK)
        row.supxlabel("position bandwidth (pixels)", fontsize=9, color=INK)
        row.suptitle(title, fontsize=10.5, color=INK, x=0.02, ha="left")
        bar = row.colorbar(picture, ax=list(panels), shrink=0.9)
        bar.set_label("gain, points", fontsize=9, color=INK)
        bar.ax.tick_params(labelsize=8, color=FAINT, labelcolor=INK)
        bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _values(found: Found, name: str) -> list[float]:
    return sorted({getattr(setting.parameters, name) for setting in found.settings})


def _mean_iou(setting: Setting) -> float:
    return setting.mean_iou


def _band_iou(setting: Setting) -> float:
    return setting.band_iou


def _gains(
    found: Found,
    weight: float,
    positions: Sequence[float],
    colours: Sequence[float],
    score: Callable[[Setting], float],
) -> np.ndarray:
    """Points of mean IoU over the network alone, (colours, positions): of the best setting in each cell."""
    gains = np.full((len(colours), len(positions)), np.nan)
    for setting in found.settings:
        p = setting.parameters
        if p is not None and p.appearance_weight == weight:
            cell = colours.index(p.appearance_colour), positions.index(p.appearance_position)  # type: ignore
            gains[cell] = np.fmax(gains[cell], 100 * (score(setting) - score(found.without)))
    return gains


def _panel(axes: "Axes", gains: np.ndarray, positions: Sequence[float], colours: Sequence[float], limit: float):
    picture = axes.imshow(gains, cmap="RdBu", vmin=-limit, vmax=limit, origin="lower", aspect="auto")
    axes.set_xticks(range(len(positions)), [f"{value:g}" for value in positions])
    axes.set_yticks(range(len(colours)), [f"{value:g}" for value in colours])
    axes.tick_params(labelsize=8, length=0, labelcolor=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    for (row, column), gain in np.ndenumerate(gains):
        dark = abs(gain) > 0.45 * limit
        text = "" if np.isnan(gain) else f"{gain:+.2f}".replace("-", "−")
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color="white" if dark else INK)
    return picture


def _frame(axes: "Axes", row: int, column: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor=BEST, linewidth=2.4))
