"""Predicting images that have no mask: palette masks, and overlays to look at.

The input convention (channels, mean, std) and the classes with their colours come from the checkpoint. Images may
have any size; large ones are predicted in tiles, to bound the memory.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from tinyseg import data
from tinyseg.crf import Parameters
from tinyseg.data import files as image_files
from tinyseg.models import SegmentationNetwork
from tinyseg.models.inference import Options, predict_logits
from tinyseg.train import build, checkpoint, files
from tinyseg.train.checkpoint import Checkpoint, Labels
from tinyseg.train.errors import CheckpointError, SettingError, UserError
from tinyseg.train.evaluation import check_options, normalised
from tinyseg.train.refinement import refined
from tinyseg.train.run import Run
from tinyseg.train.trainer import load_weights

LARGE = 1 << 21
"""Pixels from which an image is predicted in tiles, if nothing else is said: 2 megapixels."""

TILE, MARGIN = 512, 64


@dataclass
class Predictions:
    """What was written, and what could not be predicted, with the reason."""

    masks: list[Path] = field(default_factory=list)
    overlays: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


def load(
    source: str | Path, weights: str = "best", *, output_stride: int | None = None, device: str = "cpu"
) -> tuple[SegmentationNetwork, Checkpoint]:
    """The trained network of a run folder, or of a checkpoint file.

    weights        of a run: "best" or "last"; a run that has no best checkpoint yet has its last one taken
    output_stride  change it to this one, in a network that can be changed (DeepLab v3 and v3+)
    device         where the network is put: "cpu", or "cuda" for a GPU

    Raises `CheckpointError` or `RunFolderError`, and `SettingError` for an output stride that cannot be.
    """
    path = Path(source)
    if path.suffix != ".safetensors":
        run = Run.open(path)
        path = run.best if weights == "best" and run.best.exists() else run.last
    found = checkpoint.load(path)
    labels = found.labels
    network = build.network(found.config, labels.channels, len(labels.classes), mean=labels.mean, std=labels.std)
    load_weights(network, found)
    if output_stride is not None:
        _set_output_stride(network, found.config.model.name, output_stride)
    network.to(device).eval()
    return network, found


def open_dataset(found: Checkpoint, split: str | None = None, root: Path | None = None) -> data.Dataset:
    """The images that a network was validated on, or another split of them, or the data set in another folder.

    Raises `CheckpointError` if its classes are not those of the network, and `DataError`.
    """
    config = found.config
    if root is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(root)))
    dataset = build.open_dataset(config, "val", split)
    if tuple(dataset.classes) != found.labels.classes:
        raise CheckpointError(
            f"{found.path} knows the classes {', '.join(found.labels.classes)}; the data set has "
            f"{', '.join(dataset.classes)}"
        )
    return dataset


def _set_output_stride(network: SegmentationNetwork, name: str, output_stride: int) -> None:
    change = getattr(network, "set_output_stride", None)
    if change is None:
        raise SettingError(f"{name} has one output stride only; those of DeepLab v3 and v3+ can be changed")
    try:
        change(output_stride)
    except ValueError as error:
        raise SettingError(str(error)) from error


def predict(
    source: str | Path,
    paths: Iterable[str | Path],
    out: str | Path,
    *,
    weights: str = "best",
    output_stride: int | None = None,
    device: str = "cpu",
    overlays: bool = True,
    crf: Parameters | None = None,
    progress: Callable[[int, int], Any] = lambda done, total: None,
    **options: Unpack[Options],
) -> Predictions:
    """Predict images, and write `out/masks/NAME.png` and `out/overlays/NAME.png`.

    source         a run folder or a checkpoint
    paths          images, and folders of images
    output_stride  another one than in training, for a network that can be changed
    device         where the network runs: "cpu", or "cuda" for a GPU
    crf            of a dense CRF that sharpens the network's probabilities, `tinyseg.crf.parameters("deeplab_v1")`
    options        of `models.inference.predict_logits`, beyond those of the configuration. If neither tiles nor
                   windows are among them, large images are predicted in tiles of 512 pixels; tiles have a margin
                   of 64, if none is given

    A file that cannot be read is listed in the result, and the others are still done.
    """
    network, found = load(source, weights, output_stride=output_stride, device=device)
    options = {**found.config.inference.options(), **options}
    check_options(network, options)
    images = list_images(paths)
    result = Predictions()
    names = _unique_names(images)
    for done, (path, name) in enumerate(zip(images, names, strict=True), start=1):
        try:
            image = image_files.read_image(path, found.labels.channels)
        except data.DataError as error:
            result.failed.append((path, str(error)))
        else:
            mask = predict_mask(network, image, found.labels, crf=crf, **_in_tiles(image, options))
            result.masks.append(_write_mask(Path(out) / "masks" / name, mask, found.labels))
            if overlays:
                result.overlays.append(_write_overlay(Path(out) / "overlays" / name, image, mask, found.labels))
        progress(done, len(images))
    return result


def _in_tiles(image: np.ndarray, options: Options) -> Options:
    """The options for an image: in tiles, if it is large and nothing else is said."""
    large = image.shape[0] * image.shape[1] > LARGE
    if large and options.get("tile") is None and options.get("window") is None:
        options = {**options, "tile": TILE}
    return options if options.get("tile") is None else {"margin": MARGIN, **options}


def predict_mask(
    network: SegmentationNetwork,
    image: np.ndarray,
    labels: Labels,
    *,
    crf: Parameters | None = None,
    **options: Unpack[Options],
) -> np.ndarray:
    """The most probable class of every pixel, (H, W), of an image as read from a file."""
    logits = predict_logits(network, normalised(image, labels), **options)
    scores = logits if crf is None else refined(image, logits, crf, on_gpu=network.on_gpu)
    return scores.argmax(axis=-1).astype(np.uint8 if len(labels.classes) <= 256 else np.int32)


def list_images(paths: Iterable[str | Path]) -> list[Path]:
    """The image files among these paths and in the folders among them. Raises `UserError` if there are none."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [
                entry for entry in sorted(path.iterdir()) if entry.suffix.lower() in image_files.IMAGE_SUFFIXES
            ]
            if not inside:
                kinds = ", ".join(image_files.IMAGE_SUFFIXES)
                raise UserError(f"the folder {path} holds no images ({kinds})")
            found += inside
        else:
            found.append(path)
    return found


def _unique_names(images: Sequence[Path]) -> list[str]:
    """A PNG name for each image; where two images have the same, the later ones get a number."""
    taken: set[str] = set()
    names = []
    for path in images:
        name, number = f"{path.stem}.png", 2
        while name in taken:
            name, number = f"{path.stem}-{number}.png", number + 1
        taken.add(name)
        names.append(name)
    return names


def _write_mask(path: Path, mask: np.ndarray, labels: Labels) -> Path:
    """A PNG whose pixels are class numbers, shown in the classes' colours."""
    import io

    from PIL import Image

    picture = Image.fromarray(mask)
    if mask.dtype == np.uint8:
        picture.putpalette(np.array(labels.palette, np.uint8).tobytes())
    content = io.BytesIO()
    picture.save(content, format="PNG")
    files.make_folder(path.parent)
    files.write_atomically(path, content.getvalue())
    return path


def _write_overlay(path: Path, image: np.ndarray, mask: np.ndarray, labels: Labels) -> Path:
    from tinyseg import viz

    try:
        viz.save(viz.overlay(image, mask, np.array(labels.palette, np.uint8)), path)
    except OSError as error:
        raise files.explained(error, path) from error
    return path
