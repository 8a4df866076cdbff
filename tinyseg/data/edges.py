r"""Edges: true ones, from a mask of classes, and those that Canny's detector sees in an image.

Edges of a mask. A pixel belongs to the edge of class c if it is not farther than `radius` from the nearest pixel
on the other side of the class's border; distances go from centre to centre, so that the two pixels at a border
have distance 1. The edges of all classes together are the truth for an edge detector that knows no classes. Beyond
the frame of the image there is no class: objects that the frame cuts have an edge there. A class has one, too,
where an area without a label begins.

Canny's edges. Per channel, the derivatives u along a row and v down the rows by the Sobel kernels, and
m = |u| + |v|; at each pixel the channel with the largest m counts. A pixel stays if m is a maximum across the
edge, that is, against its two neighbours in the direction of the gradient, of which eight are told apart. Of these
pixels an edge is made of those with m > low that are connected, by 8-neighbours, with one of m > high.

Sources: Takikawa, Acuna, Jampani & Fidler, "Gated-SCNN", ICCV 2019 (what both are for); Canny, "A computational
approach to edge detection", PAMI 1986. Sobel's kernels, the sum of absolute values and the comparison with
tan(22.5 degrees) are the choices of OpenCV, which the published Gated-SCNN calls, with the thresholds 10 and 100.
"""

import numpy as np

TAN_22_5 = np.sqrt(2) - 1


def mask_edges(mask: np.ndarray, *, radius: float = 2.0, ignore_label: int | None = None) -> np.ndarray:
    """The edges of the classes in integer masks (.., H, W): bool (.., H, W).

    radius        in pixels, 1 or more: pixels up to so far from a border belong to the edge
    ignore_label  pixels with it are of no class
    """
    mask = np.asarray(mask)
    if mask.ndim < 2 or mask.dtype.kind not in "iub":
        raise TypeError(f"mask_edges: mask must be integers (.., H, W), got {mask.dtype} of shape {mask.shape}")
    if not radius >= 1:
        raise ValueError(f"mask_edges: radius must be at least 1, the distance across a border, got {radius}")
    from scipy.ndimage import distance_transform_edt

    edges = np.zeros(mask.shape, bool)
    for index in np.ndindex(mask.shape[:-2]):
        labels = mask[index]
        for label in np.unique(labels):
            if label == ignore_label:
                continue
            inside = np.pad(labels == label, 1)
            distances = [
                np.asarray(distance_transform_edt(side)) for side in (inside, ~inside)
            ]  # one of them is 0
            edges[index] |= (distances[0] + distances[1])[1:-1, 1:-1] <= radius
    return edges


def canny(image: np.ndarray, *, low: float = 10.0, high: float = 100.0) -> np.ndarray:
    """The edges in an image (H, W) or (H, W, C) with values from 0 to 255: bool (H, W).

    low, high  thresholds on the sum of the two derivatives by Sobel's kernels: a step of 1 grey value gives 4
    """
    image = np.asarray(image, np.float64)
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.size == 0:
        raise ValueError(f"canny: image must have the axes (H, W) or (H, W, C), got shape {image.shape}")
    if not 0 <= low <= high:
        raise ValueError(f"canny: thresholds must be 0 <= low <= high, got low={low} and high={high}")
    from scipy.ndimage import label

    u, v = _strongest_derivatives(image)
    m = np.abs(u) + np.abs(v)
    candidates = _is_maximum(m, u, v) & (m > low)
    component = np.empty(m.shape, np.int32)  # 0 where there is no candidate
    label(candidates, structure=np.ones((3, 3)), output=component)
    strong = np.zeros(component.max() + 1, bool)
    strong[component[candidates & (m > high)]] = True
    return strong[component]


def _strongest_derivatives(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u and v, (H, W), of the channel in which they are largest together."""
    x = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    along = x[:, 2:] - x[:, :-2]
    down = x[2:] - x[:-2]
    u = along[:-2] + 2 * along[1:-1] + along[2:]
    v = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    strongest = (np.abs(u) + np.abs(v)).argmax(axis=-1)[..., None]
    return np.take_along_axis(u, strongest, -1)[..., 0], np.take_along_axis(v, strongest, -1)[..., 0]


def _is_maximum(m: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether m is larger than at the neighbour before, and not smaller than at the one behind the edge."""
    H, W = m.shape
    padded = np.pad(m, 1)

    def neighbour(down: int, right: int) -> np.ndarray:
        return padded[1 + down : 1 + down + H, 1 + right : 1 + right + W]

    flat, steep = np.abs(v) < TAN_22_5 * np.abs(u), np.abs(u) < TAN_22_5 * np.abs(v)
    across_rows = (m > neighbour(0, -1)) & (m >= neighbour(0, 1))
    across_columns = (m > neighbour(-1, 0)) & (m >= neighbour(1, 0))
    falling = (m > neighbour(-1, -1)) & (
        m > neighbour(1, 1)
    )  # u and v of one sign: the gradient points right, down
    rising = (m > neighbour(-1, 1)) & (m > neighbour(1, -1))
    diagonal = np.where((u < 0) == (v < 0), falling, rising)
    return np.where(flat, across_rows, np.where(steep, across_columns, diagonal))
