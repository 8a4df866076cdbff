r"""U-Net's weight map: pixels between neighbouring cells count more in the loss.

For cells that touch, a mask of cell and background says little about where one ends. The paper makes the network
learn the narrow borders by weighting each pixel x with

    w(x) = w_c(x) + w0 * exp(-(d1(x) + d2(x))^2 / (2 sigma^2))                                     (equation 2)

d1(x) is the distance to the nearest cell, d2(x) the distance to the second nearest, both in pixels and 0 inside
the cell itself; w_c balances the frequencies of the classes; the paper takes w0 = 10 and sigma = 5 pixels. The
second term is added to the pixels that belong to no cell. (The formula would raise it inside the cells too, to
w0 * exp(-d2^2 / (2 sigma^2)) near a neighbour; as in most implementations, it is not wanted there.)

A distance is taken from pixel centre to pixel centre, and a cell is a connected component of the foreground, by
4-neighbours: two cells that touch at a corner only are two cells.

Cost: a distance transform in a box around each cell. Cells farther than 7 sigma are left out, which changes the
weight by less than 3e-11 w0.

Source: Ronneberger, Fischer & Brox, "U-Net: convolutional networks for biomedical image segmentation", MICCAI
2015, section 3.
"""

import math
from typing import Any

import numpy as np


def unet_weight_map(
    mask: np.ndarray,
    *,
    foreground: int = 1,
    instances: np.ndarray | None = None,
    w0: float = 10.0,
    sigma: float = 5.0,
    balance: bool = True,
    ignore_label: int | None = None,
) -> np.ndarray:
    """The weight of every pixel, float32 (H, W).

    mask        integer labels (H, W), for w_c
    foreground  the label of the cells, whose connected components are the instances
    instances   integers (H, W), 0 for background and 1, 2, .. for each cell, where they are known
    w0, sigma   of the equation; sigma in pixels
    balance     w_c of `class_balance`; otherwise w_c = 1
    """
    if mask.ndim != 2 or mask.dtype.kind not in "iub":
        raise TypeError(f"unet_weight_map: mask must be integers (H, W), got {mask.dtype} of shape {mask.shape}")
    if sigma <= 0 or w0 < 0:
        raise ValueError(f"unet_weight_map: sigma must be above 0 and w0 not negative, got {sigma} and {w0}")
    if instances is None:
        instances = connected_components(mask == foreground)
    if instances.shape != mask.shape:
        raise ValueError(f"unet_weight_map: instances have shape {instances.shape}, the mask {mask.shape}")
    nearest, second = two_nearest(instances, reach=7 * sigma)
    border = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    border[instances > 0] = 0
    weights = class_balance(mask, ignore_label=ignore_label) if balance else np.ones(mask.shape)
    if ignore_label is not None:
        border[mask == ignore_label] = 0
    return (weights + border).astype(np.float32)


def connected_components(foreground: np.ndarray) -> np.ndarray:
    """Number the components of a boolean mask from 1; background is 0. Neighbours share a side. int32 (H, W)."""
    from scipy import ndimage

    labelled: Any = ndimage.label(foreground)
    return labelled[0]


def class_balance(mask: np.ndarray, *, ignore_label: int | None = None) -> np.ndarray:
    """w_c, float64 (H, W): the classes that occur share the total weight equally, and the mean weight is 1.

    With K classes in N pixels, a class of n pixels has the weight N / (K n). Ignored pixels have weight 0.
    """
    counted = np.ones(mask.shape, bool) if ignore_label is None else mask != ignore_label
    weights = np.zeros(mask.shape)
    labels, counts = np.unique(mask[counted], return_counts=True)
    for label, count in zip(labels, counts, strict=True):
        weights[mask == label] = counts.sum() / (len(labels) * count)
    return weights


def two_nearest(instances: np.ndarray, reach: float = math.inf) -> tuple[np.ndarray, np.ndarray]:
    """The distances in pixels to the nearest and the second nearest instance, float64 (H, W) each.

    Distances beyond `reach`, and those to an instance that does not exist, are infinite.
    """
    from scipy import ndimage

    nearest = np.full(instances.shape, np.inf)
    second = np.full(instances.shape, np.inf)
    margin = int(min(reach, max(instances.shape))) + 1
    for number, box in enumerate(ndimage.find_objects(instances), start=1):
        if box is None:  # this number does not occur
            continue
        around = tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in box)
        distance: Any = ndimage.distance_transform_edt(instances[around] != number)
        distance[distance > reach] = np.inf
        closest, runner_up = nearest[around], second[around]  # views
        np.minimum(runner_up, np.maximum(closest, distance), out=runner_up)
        np.minimum(closest, distance, out=closest)
    return nearest, second
