"""Each fault is put into a small folder of good data; the report must name it and the file."""

import numpy as np
import pytest

from tinyseg.data import DataError, Sample, Shapes, check_dataset, examine


@pytest.fixture
def root(tmp_path, save, rng):
    """Five RGB images of 10 x 12 and masks of the classes 0, 1, 2; 255 is ignored."""
    for k in range(5):
        save(tmp_path / f"images/{k}.png", rng.integers(0, 256, (10, 12, 3)).astype(np.uint8))
        save(tmp_path / f"masks/{k}.png", rng.choice(np.array([0, 1, 2, 255], np.uint8), (10, 12)))
    return tmp_path


def problems(root, **options):
    options.setdefault("classes", ["a", "b", "c"])
    report = check_dataset("folder", root, "all", **options)
    return [str(problem) for problem in report.problems]


def one_problem(root, **options):
    found = problems(root, **options)
    assert len(found) == 1, found
    return found[0]


def test_good_data(root):
    assert problems(root) == []
    assert problems(root, classes=None) == []


def test_the_counts_by_hand(tmp_path, save):
    save(tmp_path / "images/a.png", np.full((1, 4), 51, np.uint8))
    save(tmp_path / "images/b.png", np.full((1, 2), 102, np.uint8))
    save(tmp_path / "masks/a.png", np.array([[0, 0, 1, 255]], np.uint8))
    save(tmp_path / "masks/b.png", np.array([[0, 0]], np.uint8))
    report = check_dataset("folder", tmp_path, "all")
    assert report.samples == 2 and report.classes == ("class 0", "class 1")
    assert report.pixels.tolist() == [4, 1]
    assert report.images.tolist() == [2, 1]
    assert report.ignored == 1
    assert report.sizes == {(1, 4): 1, (1, 2): 1}
    np.testing.assert_allclose(report.share, [4 / 6, 1 / 6])
    np.testing.assert_allclose(report.mean, [(4 * 0.2 + 2 * 0.4) / 6])
    np.testing.assert_allclose(report.std, [np.std([0.2, 0.2, 0.2, 0.2, 0.4, 0.4])])
    # Class 0 has 4 of the 3 + 2 counted pixels beside it, class 1 has 1 of 3; the median is in the middle.
    frequency = np.array([4 / 5, 1 / 3])
    np.testing.assert_allclose(report.median_frequency_weights, frequency.mean() / frequency)
    assert "class 1" in str(report) and "no problems found" in str(report)


def test_real_camvid(real_set):
    calls = []
    report = check_dataset(
        "camvid", real_set("camvid"), "val", progress=lambda done, total: calls.append((done, total))
    )
    assert report.problems == ()
    assert report.sizes == {(360, 480): 101}
    share = [9.177, 25.962, 0.564, 28.953, 8.719, 16.336, 0.892, 3.078, 1.746, 0.651, 2.217]
    np.testing.assert_allclose(100 * report.share, share, atol=5.1e-4)
    assert 100 * report.ignored / (report.pixels.sum() + report.ignored) == pytest.approx(1.703, abs=5.1e-4)
    assert calls[0] == (1, 101) and calls[-1] == (101, 101)


def test_binary_masks_of_which_255_is_ignored(root, save):
    for k in range(5):
        save(root / f"masks/{k}.png", np.where(np.eye(10, 12), 255, 0).astype(np.uint8))
    found = problems(root, classes=["a", "b"])
    assert len(found) == 2
    assert "0 and 255 alone" in found[0] and "values = [0, 255]" in found[0]
    assert found[1] == "1 of 2 classes occur in no mask: b"
    assert problems(root, classes=["a", "b"], values=[0, 255]) == []
    unknown = one_problem(root, classes=["a"], ignore_label=None)
    assert "the values 255 are none of the 1 classes" in unknown


def test_rgb_masks(root, save):
    for k in (1, 3):
        save(root / f"masks/{k}.png", np.full((10, 12, 3), (200, 10, 10), np.uint8))
    found = one_problem(root)
    assert "masks/1.png" in found and "masks/3.png: a mask must have one channel" in found and "RGB" in found


def test_jpeg_masks(root, save):
    (root / "masks/2.png").unlink()
    save(root / "masks/2.jpg", np.zeros((10, 12), np.uint8))
    assert "2.jpg: a mask must not be a JPEG" in one_problem(root)


def test_sizes_that_differ(root, save):
    save(root / "masks/4.png", np.zeros((10, 11), np.uint8))
    found = one_problem(root)
    assert "images/4.png is 10x12 (height x width), but its mask" in found and "masks/4.png is 10x11" in found
    save(root / "masks/4.png", np.zeros((12, 10), np.uint8))
    assert "turned by 90 degrees" in one_problem(root)


def test_unknown_labels(root, save):
    for k in (0, 4):
        save(root / f"masks/{k}.png", np.full((10, 12), 7, np.uint8))
    found = one_problem(root)
    assert (
        "masks/0.png" in found
        and "masks/4.png: the values 7 are none of the 3 classes (known: 0..2, 255)" in found
    )


def test_masks_scaled_with_smoothing(root, save, rng):
    save(root / "masks/0.png", rng.integers(0, 255, (10, 12)).astype(np.uint8))
    assert "more than 16 values are none of the 3 classes" in one_problem(root)


def test_masks_of_ignored_pixels(root, save):
    save(root / "masks/3.png", np.full((10, 12), 255, np.uint8))
    assert "masks/3.png: every pixel of the mask is ignored" in one_problem(root)


def test_absent_classes(root):
    assert one_problem(root, classes=["a", "b", "c", "d"]) == "1 of 4 classes occur in no mask: d"


def test_truncated_files(root):
    for name in ("images/1.png", "masks/2.png"):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])
    found = problems(root)
    assert len(found) == 2
    assert "images/1.png: cannot be read as an image" in found[0]
    assert "masks/2.png: cannot be read as an image" in found[1]
    assert len(problems(root, classes=None)) == 2


def test_images_without_mask_and_masks_without_image(root, save):
    (root / "masks/0.png").unlink()
    (root / "images/1.png").unlink()
    found = problems(root)
    assert len(found) == 2
    assert "images/0.png: has no mask, expected" in found[0]
    assert "masks/1.png: is a mask without an image, expected" in found[1]


def test_files_missing_from_a_list(tmp_path, save):
    save(tmp_path / "images/val/a.png", np.zeros((2, 3, 3), np.uint8))
    (tmp_path / "val.txt").write_text("a\nb\n")
    report = check_dataset("camvid", tmp_path, "val")
    found = [str(problem) for problem in report.problems]
    assert len(found) == 3
    assert "a.png: has no mask" in found[0] and "b.png: no such image" in found[1]
    assert found[2] == "there are no samples"


def test_a_problem_of_many_files_is_told_once(root, save):
    for k in range(5):
        save(root / f"masks/{k}.png", np.full((10, 12), 9, np.uint8))
    report = check_dataset("folder", root, "all", classes=["a", "b", "c"])
    assert len(report.problems[0].files) == 5
    assert "and 2 more: the values 9" in str(report.problems[0])
    assert "2 problems:" in str(report)


def test_any_data_set_can_be_examined():
    report = examine(Shapes("val", length=4, size=(40, 50), objects=(5, 8)))
    assert report.title == "Shapes val"
    assert report.pixels.sum() == 4 * 40 * 50

    class Odd(Shapes):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return [
                sample,
                sample._replace(mask=sample.mask + 7),
                sample._replace(mask=sample.mask[:-1]),
                Sample(sample.image, name="no mask"),
            ][index]

    found = [str(problem) for problem in examine(Odd("val", length=5, size=(40, 50))).problems]
    assert any("val-00001: the labels 7" in problem for problem in found)
    assert any("val-00002: image and mask differ in size" in problem for problem in found)
    assert any("sample 4: list index out of range" in problem for problem in found)


def test_what_cannot_be_opened_is_an_error(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        check_dataset("isbi", tmp_path / "nowhere")
