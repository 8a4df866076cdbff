"""Predicting files: palette masks, overlays, any size and kind of image, and files that cannot be read."""

import numpy as np
import pytest
from PIL import Image

from tinyseg.data import files as image_files
from tinyseg.models.inference import predict_logits
from tinyseg.train import config, prediction, train
from tinyseg.train.errors import CheckpointError, RunFolderError, SettingError, UserError
from tinyseg.train.evaluation import normalised


@pytest.fixture
def trained(tmp_path, tiny):
    return train(config.override(tiny, ["train.epochs=1"]), tmp_path / "run", reporters=[]).folder


@pytest.fixture
def images(tmp_path, rng):
    """A folder with a colour image, a grey one of odd size, one with alpha, a tiny one, and a file of 16 bits."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(rng.integers(0, 256, (20, 33, 3), np.uint8)).save(folder / "colour.jpg")
    Image.fromarray(rng.integers(0, 256, (17, 9), np.uint8)).save(folder / "grey.png")
    Image.fromarray(rng.integers(0, 256, (16, 16, 4), np.uint8)).save(folder / "alpha.png")
    Image.fromarray(rng.integers(0, 256, (1, 2, 3), np.uint8)).save(folder / "tiny.png")
    Image.fromarray(rng.integers(0, 65536, (16, 20), np.uint16)).save(folder / "deep.tif")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_masks_hold_class_numbers_and_the_palette(tmp_path, trained, images):
    result = prediction.predict(trained, [images], tmp_path / "out")
    assert result.failed == []
    assert sorted(path.name for path in result.masks) == [
        "alpha.png",
        "colour.png",
        "deep.png",
        "grey.png",
        "tiny.png",
    ]
    for path, size in (("colour", (33, 20)), ("grey", (9, 17)), ("tiny", (2, 1))):
        with Image.open(tmp_path / "out" / "masks" / f"{path}.png") as mask:
            assert mask.mode == "P"
            assert mask.size == size
            assert np.asarray(mask).max() < 6
            assert mask.getpalette()[3:6] == [224, 108, 92]  # the colour of the disk
        with Image.open(tmp_path / "out" / "overlays" / f"{path}.png") as overlay:
            assert overlay.mode == "RGB"
            assert overlay.size == size
    assert image_files.read_mask(tmp_path / "out" / "masks" / "grey.png").shape == (17, 9)


def test_a_mask_is_what_the_network_says(tmp_path, trained, images):
    network, found = prediction.load(trained)
    prediction.predict(trained, [images / "colour.jpg"], tmp_path / "out", overlays=False)
    image = image_files.read_image(images / "colour.jpg")
    mask = image_files.read_mask(tmp_path / "out" / "masks" / "colour.png")
    np.testing.assert_array_equal(mask, prediction.predict_mask(network, image, found.labels))
    assert not (tmp_path / "out" / "overlays").exists()


def test_tiles_with_enough_context_change_nothing(tmp_path, trained, images):
    """A network of depth 1 sees 9 pixels far; tiles start at even pixels, as its pooling does."""
    whole = prediction.predict(trained, [images / "colour.jpg"], tmp_path / "whole")
    tiled = prediction.predict(trained, [images / "colour.jpg"], tmp_path / "tiled", tile=8, margin=12)
    inner = (slice(12, -12), slice(12, -12))  # mirrored borders differ from zeros
    masks = [image_files.read_mask(result.masks[0])[inner] for result in (whole, tiled)]
    np.testing.assert_array_equal(*masks)


def test_options_of_inference_are_handed_on(tmp_path, trained, images):
    network, found = prediction.load(trained)
    options = {"scales": (0.5, 1.0, 1.5), "flip": True, "window": (13, 16), "stride": 5, "average": "logits"}
    prediction.predict(trained, [images / "colour.jpg"], tmp_path / "out", overlays=False, **options)
    image = image_files.read_image(images / "colour.jpg")
    logits = predict_logits(network, normalised(image, found.labels), **options)
    mask = image_files.read_mask(tmp_path / "out" / "masks" / "colour.png")
    np.testing.assert_array_equal(mask, logits.argmax(axis=-1))
    with pytest.raises(SettingError, match=r"^an image is cut into tiles or into windows, not both"):
        prediction.predict(trained, [images], tmp_path / "other", tile=8, window=8)
    assert not (tmp_path / "other").exists()


def test_large_images_are_predicted_in_tiles(monkeypatch, rng):
    monkeypatch.setattr(prediction, "LARGE", 300)
    large, small = np.zeros((20, 16, 3), np.uint8), np.zeros((20, 15, 3), np.uint8)
    assert prediction._in_tiles(large, {"flip": True}) == {"flip": True, "tile": 512, "margin": 64}
    assert prediction._in_tiles(small, {"flip": True}) == {"flip": True}
    assert prediction._in_tiles(large, {"window": 8}) == {"window": 8}
    assert prediction._in_tiles(small, {"tile": 8, "margin": 3}) == {"tile": 8, "margin": 3}


def test_another_output_stride_than_in_training(tmp_path, tiny, trained):
    options = ["model.name=deeplab_v3_resnet50", "model.backbone=resnet18", "model.width=0.0625"]
    train(
        config.override(tiny, [*options, "train.epochs=1", "data.train.length=2"]), tmp_path / "v3", reporters=[]
    )
    image = np.random.default_rng(0).standard_normal((33, 49, 3)).astype(np.float32)
    coarse, fine = (prediction.load(tmp_path / "v3", output_stride=stride)[0] for stride in (None, 8))
    assert coarse.scores(image[None]).shape[1:3] == (3, 4)
    assert fine.scores(image[None]).shape[1:3] == (5, 7)
    with pytest.raises(SettingError, match=r"output_stride must be one of 32, 16, 8; got 4"):
        prediction.load(tmp_path / "v3", output_stride=4)
    with pytest.raises(SettingError, match="unet_padded has one output stride only; those of DeepLab v3 and v3"):
        prediction.load(trained, output_stride=8)


def test_a_bad_file_does_not_stop_the_others(tmp_path, trained, images):
    content = (images / "colour.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(content[: len(content) // 2])
    (images / "empty.png").write_bytes(b"")
    result = prediction.predict(trained, [images, images / "absent.png"], tmp_path / "out")
    assert len(result.masks) == 5
    assert [path.name for path, _ in result.failed] == ["cut.jpg", "empty.png", "absent.png"]
    reasons = [reason for _, reason in result.failed]
    assert "cut.jpg: cannot be read as an image" in reasons[0]
    assert "absent.png: no such file" in reasons[2]


def test_equal_names_do_not_overwrite_each_other(tmp_path, trained, images):
    other = tmp_path / "other"
    other.mkdir()
    (images / "grey.png").rename(other / "colour.png")
    result = prediction.predict(trained, [images / "colour.jpg", other / "colour.png"], tmp_path / "out")
    assert [path.name for path in result.masks] == ["colour.png", "colour-2.png"]


def test_a_folder_without_images_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"holds no images \(.png, .jpg"):
        prediction.list_images([tmp_path])


def test_a_full_disk_is_reported(tmp_path, trained, images, full_disk):
    with full_disk(), pytest.raises(RunFolderError, match="the disk is full"):
        prediction.predict(trained, [images], tmp_path / "out")


def test_weights_are_found_in_a_run_or_in_a_file(tmp_path, trained):
    from_run = prediction.load(trained)[1]
    assert from_run.path == trained / "best.safetensors"
    assert prediction.load(trained, "last")[1].path == trained / "last.safetensors"
    assert prediction.load(trained / "best.safetensors")[1].model.keys() == from_run.model.keys()
    (trained / "best.safetensors").unlink()
    assert prediction.load(trained)[1].path == trained / "last.safetensors"
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*none.safetensors; beside it"):
        prediction.load(trained / "none.safetensors")
    with pytest.raises(RunFolderError, match="there is no run folder"):
        prediction.load(tmp_path / "nowhere")
