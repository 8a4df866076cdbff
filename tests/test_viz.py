"""Pictures: exact colours where they are arrays, and sound pages where they are figures."""

import doctest
import subprocess
import sys
import threading

import numpy as np
import pytest

from tinyseg import viz

pytest.importorskip("matplotlib", reason="figures are drawn with Matplotlib")


def pixels(path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# ----------------------------------------------------------------------------------------------------- colours

# The colours that the Pascal VOC development kit publishes for its 21 classes, and the one of the void border.
VOC_COLOURS = [
    (0, 0, 0),
    (128, 0, 0),
    (0, 128, 0),
    (128, 128, 0),
    (0, 0, 128),
    (128, 0, 128),
    (0, 128, 128),
    (128, 128, 128),
    (64, 0, 0),
    (192, 0, 0),
    (64, 128, 0),
    (192, 128, 0),
    (64, 0, 128),
    (192, 0, 128),
    (64, 128, 128),
    (192, 128, 128),
    (0, 64, 0),
    (128, 64, 0),
    (0, 192, 0),
    (128, 192, 0),
    (0, 64, 128),
]


def test_the_published_colours_of_pascal_voc():
    assert list(map(tuple, viz.palette(21).tolist())) == VOC_COLOURS
    assert tuple(viz.palette()[255]) == viz.VOID == (224, 224, 192)
    assert viz.palette().shape == (256, 3) and viz.palette().dtype == np.uint8
    assert len(set(map(tuple, viz.palette().tolist()))) == 256


@pytest.mark.parametrize("dtype", ["u1", "i8", "u2"])
def test_colourise(dtype):
    mask = np.array([[0, 20, 1], [2, 255, 0]], dtype)
    picture = viz.colourise(mask)
    assert picture.shape == (2, 3, 3) and picture.dtype == np.uint8
    assert tuple(picture[0, 1]) == (0, 64, 128) and tuple(picture[1, 1]) == (224, 224, 192)
    own = viz.colourise(mask % 3, np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), ignore_label=2)
    assert own[:, :, 0].tolist() == [[1, 224, 4], [224, 1, 1]]


def test_colourise_a_negative_ignore_label():
    assert tuple(viz.colourise(np.array([[-1, 1]]), ignore_label=-1)[0, 0]) == viz.VOID


def test_colourise_errors():
    with pytest.raises(
        ValueError, match=r"no colour for the labels 3, 7; there are 3 colours, and ignore_label is 9"
    ):
        viz.colourise(np.array([[0, 7, 9, 3]]), viz.palette(3), ignore_label=9)
    with pytest.raises(ValueError, match=r"must be integers \(H, W\), got float64, shape \(2, 3\)"):
        viz.colourise(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"got int64, shape \(1, 2, 3\)"):
        viz.colourise(np.zeros((1, 2, 3), int))


def test_rgb_of_every_kind_of_image(rng):
    grey = np.array([[0.0, 0.5, 1.0]])
    expected = [[[0, 0, 0], [128, 128, 128], [255, 255, 255]]]
    assert viz.rgb(grey).tolist() == viz.rgb(grey[:, :, None].astype("f4")).tolist() == expected
    assert viz.rgb(4 * grey - 1).tolist() == expected  # outside 0..1: stretched
    assert viz.rgb(grey > 0.2).tolist() == [[[0] * 3, [255] * 3, [255] * 3]]
    bytes_ = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
    np.testing.assert_array_equal(viz.rgb(bytes_), bytes_)
    np.testing.assert_array_equal(viz.rgb(np.dstack([bytes_, bytes_])), bytes_)
    assert viz.rgb(rng.random((4, 5, 2))).shape == (4, 5, 3)
    assert viz.rgb(np.array([[np.nan, np.inf, 0.5]])).dtype == np.uint8
    assert viz.rgb(np.full((2, 2), 7.0)).tolist() == [[[0] * 3] * 2] * 2
    with pytest.raises(ValueError, match=r"must have the axes \(H, W\) or \(H, W, C\), got shape \(2, 3, 4, 5\)"):
        viz.rgb(np.zeros((2, 3, 4, 5)))


def test_overlay_by_hand():
    image = np.full((1, 4, 3), 100, np.uint8)
    mask = np.array([[0, 1, 2, 255]])
    picture = viz.overlay(image, mask, alpha=0.25, ignore_label=255, hide=(2,))
    # 0.75 * 100 = 75, and a quarter of (0, 0, 0) or (128, 0, 0)
    assert picture.tolist() == [[[75, 75, 75], [107, 75, 75], [100, 100, 100], [100, 100, 100]]]
    np.testing.assert_array_equal(viz.overlay(image, mask, alpha=0), image)
    np.testing.assert_array_equal(viz.overlay(image, mask, alpha=1), viz.colourise(mask))
    with pytest.raises(ValueError, match=r"the image is \(1, 4\) \(H, W\), but the mask is \(4, 1\)"):
        viz.overlay(image, mask.T)
    with pytest.raises(ValueError, match=r"alpha must lie in 0..1, got 2"):
        viz.overlay(image, mask, alpha=2)


def test_error_map_by_hand():
    truth, prediction = np.array([[0, 1, 255, 2]]), np.array([[0, 2, 1, 2]])
    picture = viz.error_map(truth, prediction, ignore_label=255)
    assert list(map(tuple, picture[0].tolist())) == [(250,) * 3, viz.WRONG, viz.IGNORED, (250,) * 3]
    with_image = viz.error_map(truth, prediction, np.array([[0.0, 0, 0, 1]]), ignore_label=255)
    assert list(map(tuple, with_image[0].tolist())) == [(190,) * 3, viz.WRONG, viz.IGNORED, (255,) * 3]
    with pytest.raises(ValueError, match="but the prediction is"):
        viz.error_map(truth, prediction.T)
    with pytest.raises(ValueError, match=r"the image is \(2, 2\) \(H, W\), but the truth is \(1, 4\)"):
        viz.error_map(truth, prediction, np.zeros((2, 2)))


# ----------------------------------------------------------------------------------------------------- figures


def samples(rng, sizes):
    images = [rng.random((*size, 3)) for size in sizes]
    truths = [rng.integers(0, 3, size) for size in sizes]
    return images, truths, [np.where(rng.random(truth.shape) < 0.5, truth, 1) for truth in truths]


def drawn(figure):
    """The axes that hold a picture, once the page is laid out."""
    figure.canvas.draw()
    return [axes for axes in figure.axes if axes.images]


def proportions(axes) -> float:
    """Height / width of the picture as drawn, relative to that of its pixels: 1 if it is not distorted."""
    height, width = axes.images[0].get_array().shape[:2]
    box = axes.get_window_extent()
    return (box.height / box.width) / (height / width)


@pytest.mark.parametrize("sizes", [[(40, 60)], [(64, 64), (30, 90), (300, 40), (2, 50)]])
def test_contact_sheet_keeps_proportions(sizes, rng):
    figure = viz.contact_sheet(*samples(rng, sizes), names=["a"] * len(sizes), classes=("x", "y", "z"), title="t")
    axes = drawn(figure)
    assert len(axes) == 4 * len(sizes)
    assert [proportions(one) for one in axes] == pytest.approx([1] * len(axes), rel=0.02)
    assert [one.get_title() for one in axes[:4]] == ["input", "truth", "prediction", "error"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y", "z"]
    page = figure.bbox
    for one in axes:  # nothing lies outside the page
        box = one.get_tightbbox()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.width and box.y1 <= page.height


def test_contact_sheet_shows_the_right_pictures(rng):
    images, truths, predictions = samples(rng, [(6, 8)])
    truths[0][0] = 255
    figure = viz.contact_sheet(images, truths, predictions, classes=("x", "y", "z", "unseen"), ignore_label=255)
    shown = [np.asarray(axes.images[0].get_array()) for axes in drawn(figure)]
    np.testing.assert_array_equal(shown[0], viz.rgb(images[0]))
    np.testing.assert_array_equal(shown[1], viz.colourise(truths[0]))
    np.testing.assert_array_equal(shown[2], viz.colourise(predictions[0]))
    np.testing.assert_array_equal(shown[3], viz.error_map(truths[0], predictions[0], images[0], 255))
    wrong = np.mean(truths[0][1:] != predictions[0][1:])
    assert drawn(figure)[3].get_xlabel() == f"{100 * wrong:.1f} % wrong"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y", "z", "ignored"]


def test_contact_sheet_of_a_network_without_padding(rng):
    """The prediction is smaller: the middle of the image and of the truth is shown."""
    images, truths, _ = samples(rng, [(12, 11)])
    figure = viz.contact_sheet(images, truths, [truths[0][2:10, 3:8]])
    shown = [np.asarray(axes.images[0].get_array()) for axes in drawn(figure)]
    np.testing.assert_array_equal(shown[0], viz.rgb(images[0])[2:10, 3:8])
    assert drawn(figure)[3].get_xlabel() == "0.0 % wrong"
    with pytest.raises(ValueError, match=r"a prediction of \(20, 11\) \(H, W\) is larger than its image or truth"):
        viz.contact_sheet(images, truths, [np.zeros((20, 11), int)])
    with pytest.raises(ValueError, match="got 1, 1 and 0"):
        viz.contact_sheet(images, truths, [])


def test_contact_sheet_where_all_is_ignored(rng):
    figure = viz.contact_sheet(
        [rng.random((4, 4))], [np.full((4, 4), 255)], [np.zeros((4, 4), int)], ignore_label=255
    )
    assert drawn(figure)[3].get_xlabel() == "nothing to compare"


def history(epochs: int) -> list[dict]:
    rows = []
    for n in range(1, epochs + 1):
        row = {"epoch": n, "loss": 1 / n, "lr": 0.01 * 0.8**n, "seconds": 3.0, "iou": {"sky": 0.5}}
        if n % 2 == 0:
            row |= {
                "val_loss": 2 / n,
                "mean_iou": 0.9 - 1 / n if n != 6 else 0.875,
                "pixel_accuracy": float("nan"),
            }
        rows.append(row)
    return rows


def test_curves_hold_the_numbers():
    figure = viz.curves(history(8), title="run")
    figure.canvas.draw()
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "score", "learning rate"]
    lines = {line.get_label(): line.get_xydata() for axes in figure.axes for line in axes.lines}
    np.testing.assert_allclose(lines["training"], [[n, 1 / n] for n in range(1, 9)])
    np.testing.assert_allclose(lines["validation"], [[n, 2 / n] for n in (2, 4, 6, 8)])
    np.testing.assert_allclose(lines["mean IoU, best 0.875"][:, 0], [2, 4, 6, 8])
    np.testing.assert_allclose(lines["learning rate"][:, 1], 0.01 * 0.8 ** np.arange(1.0, 9))
    assert "pixel accuracy" not in lines
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    for axes in figure.axes:
        for line in axes.lines:
            assert axes.get_ylim()[0] <= line.get_ydata().min() and line.get_ydata().max() <= axes.get_ylim()[1]


@pytest.mark.parametrize("epochs", [0, 1, 2, 30])
def test_curves_of_any_length(epochs, tmp_path):
    viz.save(viz.curves(history(epochs)), tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").std() > 1


def test_curves_of_a_learning_rate_that_falls_far_are_logarithmic():
    figure = viz.curves([{"epoch": n, "learning_rate": 10.0**-n} for n in range(5)])
    assert figure.axes[0].get_yscale() == "log"


def test_strip_keeps_proportions(rng):
    images = [rng.random((30, 60)), rng.random((50, 20, 3)), np.zeros((8, 8, 3), np.uint8)]
    figure = viz.strip(images, ["one", "two", "three"], title="three pictures")
    axes = drawn(figure)
    assert [proportions(one) for one in axes] == pytest.approx([1, 1, 1], rel=0.01)
    assert len({round(one.get_window_extent().height) for one in axes}) == 1
    assert [one.get_xlabel() for one in axes] == ["one", "two", "three"]
    assert len(drawn(viz.strip(images))) == 3
    with pytest.raises(ValueError, match="got 3 images, 1 captions"):
        viz.strip(images, ["one"])
    with pytest.raises(ValueError, match="got 0 images"):
        viz.strip([])


def test_marginals_show_probabilities_labels_and_what_is_wrong():
    image = np.full((20, 30, 3), 100, np.uint8)
    first, second = np.full((20, 30, 3), 0.2), np.full((20, 30, 3), 0.1)
    first[:, :10, 1] = second[:, :15, 1] = 0.8  # label 1 on the left, a third and a half of the image
    truth = np.where(np.arange(30) < 15, 1, 0) * np.ones((20, 1), int)
    truth[:, -10:] = 255
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]])
    options = {"colours": colours, "ignore_label": 255, "classes": ("ground", "cat", "dog"), "title": "t"}
    figure = viz.marginals(image, {"before": first, "after": second}, 1, truth=truth, **options)
    axes = drawn(figure)
    assert [one.get_title() for one in axes[::2]] == ["image", "before", "after"]
    assert [one.get_xlabel() for one in axes[1::2]] == ["truth", "25.0% wrong", "0.0% wrong"]
    assert axes[0].get_xlabel().startswith("probability of cat")
    assert [proportions(one) for one in axes] == pytest.approx([1] * 6, rel=0.02)
    before = np.asarray(axes[2].images[0].get_array())
    assert before[5, 5].tolist() == [204] * 3
    assert before[5, 12].tolist() == [51] * 3
    labels = np.asarray(axes[5].images[0].get_array())
    assert labels[5, 14].tolist() == [193, 40, 40]  # 0.4 * 100 + 0.6 * colour
    assert labels[5, 15].tolist() == [100] * 3, "label 0 is hidden"
    page = figure.bbox
    for one in axes:
        box = one.get_tightbbox()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.width and box.y1 <= page.height

    without_truth = drawn(viz.marginals(image, {"before": first, "after": second}, 2))
    assert [one.get_xlabel() for one in without_truth] == [
        without_truth[0].get_xlabel(),
        *("", "", "", "16.7% changed"),
    ]
    assert "label 2" in without_truth[0].get_xlabel()


def test_marginals_errors(rng):
    image, q = rng.random((4, 6, 3)), rng.random((4, 6, 3))
    with pytest.raises(ValueError, match="needs at least one step"):
        viz.marginals(image, {}, 0)
    with pytest.raises(ValueError, match=r"'a' must have shape \(H, W, L\) = \(4, 6, 'L'\) .* got \(3, 4, 6\)"):
        viz.marginals(image, {"a": q.transpose(2, 0, 1)}, 0)
    with pytest.raises(ValueError, match="have label 3"):
        viz.marginals(image, {"a": q}, 3)
    with pytest.raises(ValueError, match=r"the truth is \(6, 4\)"):
        viz.marginals(image, {"a": q}, 0, truth=np.zeros((6, 4), int))


# ------------------------------------------------------------------------------------------------------ saving


@pytest.mark.parametrize("name", ["a.png", "deep/er/a.PNG", "a.svg", "a.pdf"])
def test_save_a_figure(name, tmp_path):
    path = tmp_path / name
    viz.save(viz.curves(history(3)), path)
    assert path.stat().st_size > 1000
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_save_an_array(rng, tmp_path):
    picture = rng.integers(0, 256, (7, 9, 3)).astype(np.uint8)
    viz.save(picture, str(tmp_path / "picture.png"))
    np.testing.assert_array_equal(pixels(tmp_path / "picture.png"), picture)


def test_the_same_picture_is_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        viz.save(viz.curves(history(5)), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_failed_save_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    viz.save(viz.curves(history(3)), path)
    before = path.read_bytes()
    figure = viz.curves(history(5))

    def full_disk(target, **_):
        target.write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full_disk)
    with pytest.raises(OSError, match="No space left"):
        viz.save(figure, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"needs an ending such as \.png"):
        viz.save(figure, tmp_path / "curves")


def test_threads_do_not_disturb_each_other(rng, tmp_path):
    sheet = samples(rng, [(20, 30)])
    viz.save(viz.contact_sheet(*sheet, classes=("x", "y", "z")), tmp_path / "alone.png")

    def work(n):
        viz.save(viz.contact_sheet(*sheet, classes=("x", "y", "z")), tmp_path / f"{n}.png")
        viz.save(viz.contact_sheet(*sheet, classes=("x", "y", "z")), tmp_path / "shared.png")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = (tmp_path / "alone.png").read_bytes()
    assert [(tmp_path / name).read_bytes() == expected for name in ("0.png", "1.png", "shared.png")] == [True] * 3


def test_no_pyplot_and_no_matplotlib_before_the_first_figure(tmp_path):
    program = f"""
import sys
from tinyseg import viz
import numpy as np
viz.overlay(np.zeros((4, 4)), np.zeros((4, 4), int))
assert "matplotlib" not in sys.modules
viz.save(viz.curves([]), {str(tmp_path / "a.png")!r})
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_examples_in_the_documentation():
    assert doctest.testmod(viz).failed == 0
