"""A dense CRF behind a trained network: what `--crf` does for predict and eval."""

from collections.abc import Sequence
from typing import get_type_hints

import numpy as np

from tinyseg import crf, cuda, ops
from tinyseg.crf import Parameters
from tinyseg.data import as_float
from tinyseg.train import settings
from tinyseg.train.errors import SettingError
from tinyseg.train.settings import Entry


def refined(image: np.ndarray, logits: np.ndarray, parameters: Parameters, *, on_gpu: bool = False) -> np.ndarray:
    """The marginals (H, W, L) of a dense CRF whose unary energies are a network's logits (H, W, L).

    image   uint8 0..255 or float32 0..1, (H, W, C), as data sets give it: before normalisation
    on_gpu  calculate there; arrays come from the CPU and return to it
    """
    scores = cuda.to_device(logits) if on_gpu else logits
    return cuda.to_host(crf.dense_crf(colours(image), ops.softmax(scores)[0], parameters))


def colours(image: np.ndarray) -> np.ndarray:
    """The image as bytes: bandwidths of colours are in grey levels."""
    return image if image.dtype == np.uint8 else np.rint(255 * as_float(image).clip(0, 1)).astype(np.uint8)


def crf_parameters(preset: str | None, changes: Sequence[str] = ()) -> Parameters | None:
    """What a command line asks for: a preset by name, and changes such as "appearance_weight=5"; None without any.

    Raises `SettingError` for names that do not exist and values that cannot be.
    """
    if preset is None:
        if changes:
            raise SettingError(
                "--crf-set changes a preset: add --crf and its name, one of " + ", ".join(crf.PRESETS)
            )
        return None
    kinds = get_type_hints(Parameters)
    values = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise SettingError(f"--crf-set needs NAME=VALUE, got {change!r}")
        name = name.strip()
        values[name] = settings.parse(f"--crf-set {name}", text, Entry(kinds[name])) if name in kinds else text
    try:
        return crf.parameters(preset, **values)
    except (ValueError, TypeError) as error:
        raise SettingError(str(error)) from error


def crf_options(parameters: Parameters) -> str:
    """The options of a command line that ask for these parameters, from the preset that they are nearest to."""

    def changes(preset: str) -> list[str]:
        start = crf.PRESETS[preset]._asdict()
        return [f"{name}={_text(value)}" for name, value in parameters._asdict().items() if value != start[name]]

    nearest = min(crf.PRESETS, key=lambda preset: len(changes(preset)))
    return " ".join([f"--crf {nearest}", *(f"--crf-set {change}" for change in changes(nearest))])


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
