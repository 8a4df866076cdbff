"""Pictures of segmentations: masks in colour, overlays, contact sheets and learning curves.

Functions that return a picture of the image's own size give uint8 arrays (H, W, 3) and need NumPy alone. Functions
that compose a page return a Matplotlib figure, which `save` writes:

    viz.save(viz.contact_sheet(images, truths, predictions, classes=dataset.classes), "samples.png")

The figures are made from Matplotlib's objects, not from pyplot: there is no window, no display is needed, nothing
is shared between threads, and a figure is gone when its last reference is.

Colours of classes are the data set's own (Pascal VOC's where it has none). All others are taken from Okabe & Ito's
set, which stays distinct under the common forms of colour blindness (Wong, "Points of view: color blindness",
Nature Methods 8, 2011), and differ in lightness too.
"""

import math
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyseg.data.sample import voc_palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray

VOID = (224, 224, 192)
"""The colour of ignored pixels: Pascal VOC's for label 255."""

WRONG = (213, 94, 0)
"""The colour of wrong pixels in an error map: a red that differs from grey in lightness too."""

IGNORED = (158, 158, 158)
"""The colour of ignored pixels in an error map."""

LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Colours of curves: blue, vermilion, green, purple, light blue, orange."""

INK = "#333333"
FAINT = "#999999"


# ------------------------------------------------------------------------------------- pictures as arrays, H W 3


def palette(count: int = 256) -> Array:
    """Pascal VOC's colours, uint8 (count, 3).

    >>> palette(4)
    array([[  0,   0,   0],
           [128,   0,   0],
           [  0, 128,   0],
           [128, 128,   0]], dtype=uint8)
    """
    return voc_palette(count)


def rgb(image: Array) -> Array:
    """Any image as uint8 H W 3, to be looked at.

    image   H W, H W 1 (grey), H W 3, or H W C of which the first three channels are shown (the first, if C is 2).
            uint8 is taken as it is, and bool as black and white. Other numbers are brightness in 0..1; when any
            lies outside, all are stretched so that the smallest becomes 0 and the largest 1.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.size == 0:
        raise ValueError(f"rgb: an image must have the axes (H, W) or (H, W, C), got shape {image.shape}")
    image = image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1].repeat(3, axis=2)
    if image.dtype != np.uint8:
        image = np.nan_to_num(image.astype(np.float64), posinf=1.0, neginf=0.0)
        low, high = image.min(), image.max()
        if low < 0 or high > 1:
            image = (image - low) / max(high - low, 1e-12)
        image = (255 * image + 0.5).astype(np.uint8)
    return np.ascontiguousarray(image)


def colourise(mask: Array, colours: Array | None = None, ignore_label: int | None = None) -> Array:
    """Each label as its colour, uint8 H W 3.

    mask           integers, H W
    colours        uint8 (classes, 3), by default Pascal VOC's 256
    ignore_label   drawn in the colour VOID

    Raises ValueError if a label has no colour.

    >>> colourise(np.array([[0, 1, 255]]), ignore_label=255).tolist()
    [[[0, 0, 0], [128, 0, 0], [224, 224, 192]]]
    """
    mask = _label_map("colourise", mask)
    table = palette() if colours is None else np.asarray(colours, np.uint8)
    ignored = _ignored(mask, ignore_label)
    labels = np.where(ignored, 0, mask)
    if labels.size and (labels.min() < 0 or labels.max() >= len(table)):
        wrong = np.unique(labels[(labels < 0) | (labels >= len(table))])[:5]
        raise ValueError(
            f"colourise: no colour for the labels {', '.join(map(str, wrong))}; there are {len(table)} colours"
            + ("" if ignore_label is None else f", and ignore_label is {ignore_label}")
        )
    picture = table[labels.astype(np.intp)]
    picture[ignored] = VOID
    return picture


def overlay(
    image: Array,
    mask: Array,
    colours: Array | None = None,
    *,
    alpha: float = 0.5,
    ignore_label: int | None = None,
    hide: Sequence[int] = (),
) -> Array:
    """The mask's colours laid over the image, uint8 H W 3.

    alpha          strength of the colours: 0 shows the image alone, 1 the mask alone
    ignore_label   pixels with this label show the image
    hide           labels that show the image as well, for instance (0,) for the background

    `image` is taken as by `rgb`, and `mask` and `colours` as by `colourise`.
    """
    picture = rgb(image)
    mask = _label_map("overlay", mask)
    if picture.shape[:2] != mask.shape:
        raise ValueError(f"overlay: the image is {picture.shape[:2]} (H, W), but the mask is {mask.shape}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"overlay: alpha must lie in 0..1, got {alpha}")
    blended = (1 - alpha) * picture + alpha * colourise(mask, colours, ignore_label)
    shown = ~_ignored(mask, ignore_label) & ~np.isin(mask, list(hide))
    return np.where(shown[:, :, None], (blended + 0.5).astype(np.uint8), picture)


def error_map(
    truth: Array, prediction: Array, image: Array | None = None, ignore_label: int | None = None
) -> Array:
    """Wrong pixels in red, ignored ones in grey, and right ones nearly white, uint8 H W 3.

    With an image, its brightness shows through the right pixels, so that one sees what was missed.
    """
    truth, prediction = _label_map("error_map", truth), _label_map("error_map", prediction)
    if truth.shape != prediction.shape:
        raise ValueError(f"error_map: the truth is {truth.shape} (H, W), but the prediction is {prediction.shape}")
    if image is None:
        picture = np.full((*truth.shape, 3), 250, np.uint8)
    else:
        brightness = rgb(image).mean(axis=2, keepdims=True)
        if brightness.shape[:2] != truth.shape:
            raise ValueError(
                f"error_map: the image is {brightness.shape[:2]} (H, W), but the truth is {truth.shape}"
            )
        picture = (190 + 65 * brightness / 255).astype(np.uint8).repeat(3, axis=2)
    ignored = _ignored(truth, ignore_label)
    picture[truth != prediction] = WRONG
    picture[ignored] = IGNORED
    return picture


# ------------------------------------------------------------------------------------------------------- figures


def contact_sheet(
    images: Sequence[Array],
    truths: Sequence[Array],
    predictions: Sequence[Array],
    *,
    names: Sequence[str] = (),
    classes: Sequence[str] = (),
    colours: Array | None = None,
    ignore_label: int | None = None,
    title: str = "",
) -> "Figure":
    """A page with one row for each image: input, truth, prediction, error; and a legend of the classes seen.

    images        as for `rgb`
    truths        integers, H W
    predictions   integers, H W. Where it is smaller than the image or the truth, as the result of a network
                  without padding is, the middle of the others is shown.
    names         of the images, written beside the rows
    classes       names of the classes, for the legend; without them there is no legend
    colours       of the classes, uint8 (classes, 3); by default Pascal VOC's
    ignore_label  pixels that do not count
    """
    if not len(images) == len(truths) == len(predictions) > 0:
        raise ValueError(
            f"contact_sheet: needs as many images as truths and predictions, and at least one; "
            f"got {len(images)}, {len(truths)} and {len(predictions)}"
        )
    rows, seen = [], set()
    for image, truth, prediction in zip(images, truths, predictions, strict=True):
        prediction = _label_map("contact_sheet", prediction)
        image, truth = _middle(image, prediction.shape), _middle(truth, prediction.shape)
        rows.append(_row(image, truth, prediction, colours, ignore_label))
        seen |= set(np.unique(truth).tolist()) | set(np.unique(prediction).tolist())
    table = palette() if colours is None else np.asarray(colours, np.uint8)
    swatches = [(classes[c], table[c]) for c in range(len(classes)) if c in seen]
    if classes and ignore_label in seen:
        swatches.append(("ignored", np.array(VOID)))

    # All lengths in inches, from the top left corner.
    column, gap, left, caption = 2.4, 0.08, 0.35 if names else 0.08, 0.24
    width = left + 4 * (column + gap)
    shapes = [pictures[0].shape for pictures, _ in rows]
    heights = [min(max(column * shape[0] / shape[1], 0.5), 1.6 * column) for shape in shapes]
    heading = 0.65 if title else 0.3
    legend_height, per_line = _legend_size(swatches, width)
    height = heading + sum(heights) + caption * len(rows) + legend_height
    figure = _figure(width, height)
    top = heading
    for n, ((pictures, note), row_height) in enumerate(zip(rows, heights, strict=True)):
        for k, picture in enumerate(pictures):
            axes = _picture(figure, picture, left + k * (column + gap), top, column, row_height)
            if n == 0:
                axes.set_title(("input", "truth", "prediction", "error")[k], fontsize=11, color=INK, pad=5)
            if k == 0 and names:
                axes.set_ylabel(_shortened(names[n], int(14 * row_height)), fontsize=8, color=INK)
            if k == 3:
                axes.set_xlabel(note, fontsize=8, color=INK, labelpad=2)
        top += row_height + caption
    _title(figure, title)
    _legend(figure, swatches, per_line)
    return figure


def curves(history: Sequence[Mapping[str, Any]], title: str = "") -> "Figure":
    """Losses, scores and the learning rate against the epoch.

    history   one dict for each epoch, as in the lines of metrics.jsonl: "epoch", and as many of these as there are
                  loss, train_loss, val_loss      (drawn together)
                  mean_iou, pixel_accuracy        (drawn together, the best mean IoU is marked)
                  lr or learning_rate
              A value may be missing, None or NaN in some rows. Other keys are not drawn.
    """
    panels = [
        ("loss", {"loss": "training", "train_loss": "training", "val_loss": "validation"}),
        ("score", {"mean_iou": "mean IoU", "pixel_accuracy": "pixel accuracy"}),
        ("learning rate", {"lr": "learning rate", "learning_rate": "learning rate"}),
    ]
    drawn = []
    for name, keys in panels:
        series = {label: points for key, label in keys.items() if len((points := _points(history, key))[0])}
        if series:
            drawn.append((name, series))
    epochs = [epoch for _, series in drawn for points in series.values() for epoch in points[0]]
    first, last = min(epochs, default=0), max(epochs, default=0)
    figure = _figure(0.4 + 3.8 * max(len(drawn), 1), 3.4 if title else 3.1)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    if title:
        figure.suptitle(title, fontsize=12, color=INK)
    if not drawn:
        figure.text(0.5, 0.5, "no epoch has ended yet", ha="center", va="center", color=FAINT)
    for k, (name, series) in enumerate(drawn):
        axes = figure.add_subplot(1, len(drawn), k + 1)
        for colour, (label, (epochs, values)) in zip(LINES, series.items(), strict=False):
            if label == "mean IoU":
                best = int(np.argmax(values))
                label += f", best {values[best]:.3f}"
                axes.plot(epochs[best], values[best], "o", ms=9, mfc="none", mec=colour, mew=1.5)
            # A line of one point is invisible; a few points are clearer when they are marked.
            marker = "o" if len(epochs) < 16 else ""
            axes.plot(epochs, values, color=colour, label=label, lw=1.8, marker=marker, ms=3.5)
        _dress(axes, name, [value for _, values in series.values() for value in values])
        axes.set_xlim(first - 0.5, last + 0.5)
        if name != "learning rate":
            axes.legend(fontsize=9, frameon=False, labelcolor=INK)
    return figure


def strip(
    images: Sequence[Array],
    captions: Sequence[str] = (),
    *,
    height: float = 2.4,
    title: str = "",
) -> "Figure":
    """A row of images of one height with a caption under each, for instance at the head of a README.

    images    as for `rgb`: photographs, or what `colourise` and `overlay` return
    height    of the images in inches; the figure has 150 pixels to the inch
    """
    if not images or (captions and len(captions) != len(images)):
        raise ValueError(
            f"strip: needs a caption for each image, got {len(images)} images, {len(captions)} captions"
        )
    pictures = [rgb(image) for image in images]
    widths = [height * picture.shape[1] / picture.shape[0] for picture in pictures]
    gap, below, above = 0.1, 0.35 if captions else 0.08, 0.45 if title else 0.08
    figure = _figure(sum(widths) + gap * (len(widths) + 1), height + below + above)
    left = gap
    for k, picture in enumerate(pictures):
        axes = _picture(figure, picture, left, above, widths[k], height)
        if captions:
            axes.set_xlabel(captions[k], fontsize=11, color=INK, labelpad=5)
        left += widths[k] + gap
    _title(figure, title)
    return figure


def marginals(
    image: Array,
    steps: Mapping[str, Array],
    label: int,
    *,
    truth: Array | None = None,
    classes: Sequence[str] = (),
    colours: Array | None = None,
    ignore_label: int | None = None,
    hide: Sequence[int] = (0,),
    title: str = "",
) -> "Figure":
    """How probabilities change from step to step, for instance in a CRF: a column for each step.

    Above is the probability of one label, from black (0) to white (1); below are the most probable labels, laid
    over the image, and under them how many pixels are wrong, or without a truth how many changed since the column
    before. The image itself, and the truth, stand in the first column.

    image         as for `rgb`
    steps         from the caption of each column to its probabilities (H, W, L)
    label         whose probability is shown
    truth         integers (H, W)
    classes       names of the labels
    colours, ignore_label, hide    as for `overlay`
    """
    picture = rgb(image)
    size = picture.shape[:2]
    if not steps:
        raise ValueError("marginals: needs at least one step")
    for caption, q in steps.items():
        if q.ndim != 3 or q.shape[:2] != size or not 0 <= label < q.shape[2]:
            raise ValueError(
                f"marginals: {caption!r} must have shape (H, W, L) = {(*size, 'L')} and have label {label}, "
                f"got {q.shape}"
            )
    if truth is not None and np.shape(truth) != size:
        raise ValueError(f"marginals: the image is {size} (H, W), but the truth is {np.shape(truth)}")

    def shown(mask: Array) -> Array:
        return overlay(picture, mask, colours, alpha=0.6, ignore_label=ignore_label, hide=hide)

    masks = [q.argmax(axis=2) for q in steps.values()]
    name = classes[label] if label < len(classes) else f"label {label}"
    above, notes_above = [picture], [f"probability of {name} \N{RIGHTWARDS ARROW}"]
    below = [np.full_like(picture, 255) if truth is None else shown(truth)]
    notes_below = ["" if truth is None else "truth"]
    for n, q in enumerate(steps.values()):
        above.append(rgb(np.clip(q[:, :, label], 0, 1)))
        below.append(shown(masks[n]))
        notes_above.append("")
        notes_below.append(_share_of_pixels(masks, n, truth, ignore_label))

    width = 2.4 * min(1.0, size[1] / size[0])
    height = width * size[0] / size[1]
    gap, note, heading = 0.08, 0.24, 0.65 if title else 0.3
    figure = _figure(gap + (gap + width) * len(above), heading + 2 * (height + note))
    for k, heads in enumerate(("image", *steps)):
        left = gap + k * (gap + width)
        axes = _picture(figure, above[k], left, heading, width, height)
        axes.set_title(heads, fontsize=11, color=INK, pad=5)
        axes.set_xlabel(notes_above[k], fontsize=9, color=INK, labelpad=2)
        if k > 0 or truth is not None:
            axes = _picture(figure, below[k], left, heading + height + note, width, height)
            axes.set_xlabel(notes_below[k], fontsize=9, color=INK, labelpad=2)
    _title(figure, title)
    return figure


def save(picture: "Figure | Array", path: str | Path) -> None:
    """Write a figure (.png, .svg, .pdf), or a uint8 picture (.png, .jpg), so that the file is complete or absent.

    It is written under a temporary name in the same folder and then renamed: who looks at the file while a run
    renews it sees the old picture or the new one. The folder is made if it is missing. Raises OSError if writing
    fails; then a former picture is still there.
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if not kind:
        raise ValueError(f"save: the name of a picture needs an ending such as .png, got {str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{threading.get_ident()}.{kind}")
    try:
        if isinstance(picture, np.ndarray):
            from PIL import Image

            Image.fromarray(picture).save(temporary)
        else:
            # Without a date in the file, the same picture is the same bytes.
            picture.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# -------------------------------------------------------------------------------------------------------- shared


def _figure(width: float, height: float) -> "Figure":
    """An empty white page; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _picture(figure: "Figure", picture: Array, left: float, top: float, width: float, height: float) -> "Axes":
    """A picture in a box, which is given in inches from the top left corner; in its own proportions."""
    page_width, page_height = figure.get_size_inches()
    bottom = page_height - top - height
    axes = figure.add_axes((left / page_width, bottom / page_height, width / page_width, height / page_height))
    enlarged = width * figure.dpi > picture.shape[1]
    axes.imshow(picture, aspect="equal", interpolation="nearest" if enlarged else "antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set(color="#cccccc", linewidth=0.6)
    return axes


def _title(figure: "Figure", title: str) -> None:
    if title:
        top = 1 - 0.12 / figure.get_figheight()
        figure.text(0.5, top, title, ha="center", va="top", fontsize=12, color=INK)


def _row(
    image: Array, truth: Array, prediction: Array, colours: Array | None, ignore_label: int | None
) -> tuple[list[Array], str]:
    """The four pictures of a contact sheet's row, and the note under the last."""
    counted = ~_ignored(truth, ignore_label)
    wrong = truth[counted] != prediction[counted]
    note = f"{100 * wrong.mean():.1f} % wrong" if wrong.size else "nothing to compare"
    masks = [colourise(mask, colours, ignore_label) for mask in (truth, prediction)]
    return [rgb(image), *masks, error_map(truth, prediction, image, ignore_label)], note


def _share_of_pixels(masks: Sequence[Array], n: int, truth: Array | None, ignore_label: int | None) -> str:
    """How many pixels of the n-th mask are wrong, or differ from the mask before it."""
    if truth is not None:
        counted = ~_ignored(truth, ignore_label)
        return f"{np.mean(masks[n][counted] != truth[counted]):.1%} wrong" if counted.any() else ""
    return f"{np.mean(masks[n] != masks[n - 1]):.1%} changed" if n else ""


def _legend_size(swatches: Sequence[tuple[str, Array]], width: float) -> tuple[float, int]:
    """The height of a legend on a page of this width, in inches, and how many entries fit into one line."""
    if not swatches:
        return 0.05, 1
    entry = 0.6 + 0.085 * max(len(name) for name, _ in swatches)
    per_line = max(1, min(len(swatches), int(width / entry)))
    return 0.1 + 0.2 * math.ceil(len(swatches) / per_line), per_line


def _legend(figure: "Figure", swatches: Sequence[tuple[str, Array]], per_line: int) -> None:
    from matplotlib.patches import Patch

    if not swatches:
        return
    figure.legend(
        handles=[
            Patch(facecolor=tuple(colour / 255), edgecolor=FAINT, lw=0.5, label=name) for name, colour in swatches
        ],
        loc="lower center",
        ncols=per_line,
        fontsize=9,
        frameon=False,
        labelcolor=INK,
        handlelength=1.2,
        handleheight=1.2,
        columnspacing=1.4,
        borderaxespad=0.15,
    )


def _points(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of the rows that have a finite value."""
    points = [
        (float(row.get("epoch", n + 1)), float(row[key]))
        for n, row in enumerate(history)
        if row.get(key) is not None and math.isfinite(row[key])
    ]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _dress(axes: "Axes", name: str, values: Sequence[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(name, fontsize=11, color=INK, loc="left")
    axes.set_xlabel("epoch", fontsize=10, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, color=FAINT, labelcolor=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    low, high = min(values), max(values)
    if name == "score":
        axes.set_ylim(0 if low < 0.5 else math.floor(10 * low) / 10, 1)
    elif low > 0 and high > 50 * low:
        axes.set_yscale("log")
    elif low >= 0:
        axes.set_ylim(0, 1.08 * high if high else 1)


def _label_map(function: str, mask: Array) -> Array:
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype.kind not in "iub":
        raise ValueError(f"{function}: a mask must be integers (H, W), got {mask.dtype}, shape {mask.shape}")
    return mask


def _ignored(mask: Array, ignore_label: int | None) -> Array:
    return np.zeros(mask.shape, bool) if ignore_label is None else mask == ignore_label


def _middle(array: Array, size: tuple[int, ...]) -> Array:
    """The central part of this height and width, of an image or a mask."""
    array = np.asarray(array)
    top, left = (array.shape[0] - size[0]) // 2, (array.shape[1] - size[1]) // 2
    if top < 0 or left < 0:
        raise ValueError(
            f"contact_sheet: a prediction of {size} (H, W) is larger than its image or truth, {array.shape}"
        )
    return array[top : top + size[0], left : left + size[1]]


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else "…" + text[-max(length - 1, 1) :]
