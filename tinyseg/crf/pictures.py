"""What a dense CRF does to an image, as a picture.

figure = pictures.iterations(image, probabilities, "deeplab_v1", shown=(0, 1, 2, 5, 10))
viz.save(figure, "iterations.png")
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyseg import viz
from tinyseg.backend import Array
from tinyseg.crf.dense import Layout, dense_crf_steps
from tinyseg.crf.parameters import Parameters, parameters

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def iterations(
    image: Array,
    scores: Array,
    preset: str | Parameters = "pydensecrf",
    *,
    shown: Sequence[int] = (0, 1, 2, 5, 10),
    label: int | None = None,
    layout: Layout = "HWL",
    truth: Array | None = None,
    classes: Sequence[str] = (),
    colours: Array | None = None,
    ignore_label: int | None = None,
    title: str = "",
    **options: Any,
) -> "Figure":
    """The marginals of one label, and the labels that follow, before the CRF and after some of its iterations.

    shown     which iterations: 0 stands for the probabilities before the first. The CRF runs as many as the last
              of them, whatever the preset says
    label     whose probability is shown, by default the one that most pixels have apart from label 0
    truth, classes, colours, ignore_label, title     as for `viz.marginals`

    Other arguments are those of `dense_crf`, which see: layout, given, method, and changes of the preset.
    """
    if len(shown) == 0 or sorted(set(shown)) != list(shown) or shown[0] < 0:
        raise ValueError(f"iterations: shown must be increasing numbers of iterations, got {tuple(shown)}")
    chosen = parameters(preset)._replace(iterations=shown[-1])
    steps = {}
    for n, q in enumerate(dense_crf_steps(image, scores, chosen, layout=layout, **options)):
        if n in shown:
            steps[_caption(n)] = q if layout == "HWL" else np.moveaxis(q, 0, 2)
    if label is None:
        label = _largest(steps[_caption(shown[-1])])
    return viz.marginals(
        image,
        steps,
        label,
        truth=truth,
        classes=classes,
        colours=colours,
        ignore_label=ignore_label,
        title=title,
    )


def _caption(iteration: int) -> str:
    if iteration == 0:
        return "before the CRF"
    return f"{iteration} iteration{'s' if iteration > 1 else ''}"


def _largest(q: Array) -> int:
    """The label that most pixels have, of marginals (H, W, L), apart from label 0 if there is another."""
    count = np.bincount(q.argmax(axis=2).reshape(-1), minlength=q.shape[2])
    return int(count[1:].argmax()) + 1 if count[1:].any() else 0
