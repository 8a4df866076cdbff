import numpy as np
import pytest

from tinyseg.data import DataError
from tinyseg.data.files import find_image, image_channels, image_size, images_in, read_image, read_list, read_mask

COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
GREY = COLOURS[:, :, 0]


def test_images_have_as_many_channels_as_asked_for(tmp_path, save):
    coloured, grey = save(tmp_path / "c.png", COLOURS), save(tmp_path / "g.png", GREY)
    np.testing.assert_array_equal(read_image(coloured), COLOURS)
    np.testing.assert_array_equal(read_image(grey, 1), GREY[:, :, None])
    np.testing.assert_array_equal(read_image(grey, 3), np.repeat(GREY[:, :, None], 3, axis=2))
    luma = COLOURS @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(read_image(coloured, 1)[:, :, 0], luma, atol=1)
    assert (image_channels(coloured), image_channels(grey)) == (3, 1)
    assert image_size(coloured) == (5, 7)


def test_alpha_is_dropped(tmp_path, save):
    path = save(tmp_path / "a.png", np.dstack([COLOURS, GREY]))
    np.testing.assert_array_equal(read_image(path), COLOURS)


def test_a_palette_image_with_transparency_raises_no_warning(tmp_path):
    from PIL import Image

    image = Image.fromarray(GREY % 4)
    image.putpalette([1, 2, 3, 40, 50, 60, 70, 80, 90, 5, 5, 5])
    image.save(tmp_path / "p.png", transparency=bytes([0, 128, 255, 255]))
    expected = np.array([[1, 2, 3], [40, 50, 60], [70, 80, 90], [5, 5, 5]], np.uint8)[GREY % 4]
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), expected)
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png"), GREY % 4)


def test_sixteen_bits_become_floats(tmp_path, save):
    path = save(tmp_path / "deep.png", np.array([[0, 13107, 65535]], np.uint16))
    image = read_image(path, 1)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image.reshape(-1), [0, 0.2, 1])


def test_pages_of_a_volume(tmp_path):
    from PIL import Image

    pages = [Image.fromarray(np.full((4, 6), value, np.uint8)) for value in (10, 20, 30)]
    pages[0].save(tmp_path / "v.tif", save_all=True, append_images=pages[1:])
    assert [int(read_image(tmp_path / "v.tif", 1, page)[0, 0, 0]) for page in range(3)] == [10, 20, 30]
    with pytest.raises(DataError, match=r"v\.tif: cannot be read"):
        read_image(tmp_path / "v.tif", 1, 3)


def test_a_mask_keeps_the_integers_of_its_file(tmp_path, save, save_palette):
    np.testing.assert_array_equal(read_mask(save(tmp_path / "l.png", GREY)), GREY)
    np.testing.assert_array_equal(read_mask(save_palette(tmp_path / "p.png", GREY)), GREY)
    deep = GREY.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_mask(save(tmp_path / "d.png", deep)), deep)
    bits = read_mask(save(tmp_path / "b.png", GREY > 100))
    np.testing.assert_array_equal(bits, GREY > 100)
    assert bits.dtype == np.uint8


def test_masks_of_colours_are_refused_and_told_from_grey_ones_saved_as_rgb(tmp_path, save):
    with pytest.raises(DataError, match=r"c\.png: a mask must have one channel.*RGB; it holds colours.*`colours`"):
        read_mask(save(tmp_path / "c.png", COLOURS))
    with pytest.raises(DataError, match=r"g\.png: .*its channels are equal, so it is a grey mask saved as RGB"):
        read_mask(save(tmp_path / "g.png", np.repeat(GREY[:, :, None], 3, axis=2)))


def test_a_table_of_colours(tmp_path, save, save_palette):
    table = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (7, 7, 200)]
    labels = GREY % 4
    path = save(tmp_path / "c.png", np.array(table, np.uint8)[labels])
    np.testing.assert_array_equal(read_mask(path, colours=table), labels)
    indexed = save_palette(tmp_path / "p.png", labels, palette=sum((table[::-1]), ()))
    np.testing.assert_array_equal(read_mask(indexed, colours=table), 3 - labels)
    with pytest.raises(DataError, match=r"c\.png: 1 colours are not in the list of classes, .*\(7, 7, 200\)"):
        read_mask(path, colours=table[:3])
    with pytest.raises(DataError, match=r"triples \(R, G, B\)"):
        read_mask(path, colours=[(1, 2)])


def test_masks_must_not_be_jpegs_nor_floats(tmp_path, save):
    with pytest.raises(DataError, match=r"m\.jpg: a mask must not be a JPEG"):
        read_mask(save(tmp_path / "m.jpg", GREY))
    with pytest.raises(DataError, match=r"m\.tif: a mask must hold integers"):
        read_mask(save(tmp_path / "m.tif", GREY / np.float32(255)))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.6, 0.95])
def test_truncated_files_are_named(tmp_path, save, suffix, part):
    picture = np.random.default_rng(1).integers(0, 256, (64, 64)).astype(np.uint8)
    path = save(tmp_path / f"short.{suffix}", picture)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DataError, match=rf"short\.{suffix}: cannot be read as an image .*probably truncated"):
        read_image(path)


def test_a_missing_file_and_a_file_that_is_no_image(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.png: no such file"):
        read_image(tmp_path / "nothing.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"text\.png: cannot be read as an image"):
        read_mask(tmp_path / "text.png")


@pytest.mark.parametrize(
    "content",
    [b"a\nb c\n", b"\xef\xbb\xbfa\r\nb c\r\n", b"\r\n a \r\n\r\n\tb c\r\n\r\n", b"a\rb c", b"a\n\n\nb c"],
)
def test_lists_with_a_byte_order_mark_windows_line_ends_and_blank_lines(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    assert read_list(tmp_path / "list.txt") == ["a", "b c"]


def test_lists_that_are_none(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(DataError, match=r"empty\.txt: the list is empty"):
        read_list(tmp_path / "empty.txt")
    with pytest.raises(DataError, match=r"gone\.txt: no such list"):
        read_list(tmp_path / "gone.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"bytes\.txt: is not a text file in UTF-8"):
        read_list(tmp_path / "bytes.txt")


def test_images_of_a_folder(tmp_path, save):
    for name in ("10.png", "2.PNG", "1.png"):
        save(tmp_path / name, GREY, format="PNG")
    (tmp_path / "notes.txt").write_text("no image")
    assert list(images_in(tmp_path)) == ["1", "2", "10"]
    assert find_image(tmp_path, "10") == tmp_path / "10.png"
    save(tmp_path / "10.jpg", GREY)
    with pytest.raises(DataError, match=r"10\.jpg and 10\.png have the same stem"):
        images_in(tmp_path)
