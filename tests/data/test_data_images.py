"""Images: the worked padding cases, the same numbers as CLIP's own processor, and files that must not be trusted."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlmsel.data.images import (
    CLIP_MEAN,
    MODES,
    Pictures,
    _eight_bits,
    expand2square,
    find_image,
    letterbox,
    load_image,
    require_folder,
    size_problem,
    square,
)
from vlmsel.models.vision import normalise

FILL = (122, 116, 104)
PADDING = json.loads((Path(__file__).parents[1] / "cases/structure.json").read_text())["padding"]


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    noise(6, 4).save(root / "sub/a.png")
    return root


def test_there_are_worked_padding_cases():
    assert {tuple(case["size"]) for case in PADDING} == {(2, 5), (5, 2), (7, 2), (3, 2), (4, 4)}
    assert all(case["fill"] == list(FILL) for case in PADDING)


@pytest.mark.parametrize("case", PADDING, ids=lambda case: str(case["size"]))
def test_worked_padding_cases(case):
    white = Image.new("RGB", case["size"], "white")
    padded = expand2square(white, FILL)
    assert padded.size == tuple(case["llava_size"])
    expected = np.full((*padded.size[::-1], 3), FILL, dtype=np.uint8)
    expected[np.ix_(case["content_rows"], case["content_cols"])] = 255
    np.testing.assert_array_equal(np.array(padded), expected)
    assert letterbox(white, FILL).size == tuple(case["prismatic_letterbox_size"])


def test_the_fill_is_the_mean_colour():
    black = Image.new("RGB", (8, 2))
    assert square(black, 8, "pad")[:, 0, 0].tolist() == list(FILL)
    assert square(black, 8, "pad", (0.5, 0.0, 1.0))[:, 0, 0].tolist() == [127, 0, 255]


@pytest.mark.parametrize("size", [(50, 31), (31, 50), (40, 40), (9, 100), (100, 9), (37, 36), (1, 1)])
def test_crop_equals_the_processor_of_clip(size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    image = noise(*size)
    for mode, given in (("crop", image), ("pad", expand2square(image, FILL)), ("letterbox", letterbox(image, FILL))):
        expected = torch.from_numpy(np.array(processor(given)["pixel_values"][0]))
        ours = normalise(square(image, 24, mode), CLIP_MEAN, (0.26862954, 0.26130258, 0.27577711))
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(24, 24), (7, 5), (5, 70)])
def test_every_mode_gives_the_same_shape(mode, size):
    out = square(noise(*size), 24, mode)
    assert out.shape == (3, 24, 24) and out.dtype == torch.uint8


@pytest.mark.parametrize("mode", MODES)
def test_a_square_of_the_right_size_stays_as_it_is(mode):
    image = noise(12, 12)
    np.testing.assert_array_equal(square(image, 12, mode).permute(1, 2, 0).numpy(), np.array(image))


def test_squash_keeps_everything_and_crop_does_not():
    image = Image.new("RGB", (30, 10))
    image.paste((255, 255, 255), (0, 0, 10, 10))
    assert square(image, 10, "squash")[0, :, 0].min() > 200 > square(image, 10, "crop")[0].max()


def test_an_unknown_mode_lists_the_modes():
    with pytest.raises(ValueError, match="'pad', 'crop', 'squash', 'letterbox'; got 'stretch'"):
        square(noise(2, 2), 2, "stretch")


# more than 8 bits


def ramp():
    return (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)


def pgm(most, depth):
    def write(numbers, path):
        path.write_bytes(b"P5 16 16 %d\n" % most + (numbers >> depth).astype(">u2").tobytes())

    return write


GREY = {  # how 16-bit numbers are written
    "a.png": lambda numbers, path: Image.fromarray(numbers).save(path),
    "a.tif": lambda numbers, path: Image.fromarray(numbers).save(path),
    "big.tif": lambda numbers, path: Image.fromarray(numbers.astype(">u2")).save(path),
    "white is 0.tif": lambda numbers, path: Image.fromarray(65535 - numbers).save(path, tiffinfo={262: 0}),
    "a.pgm": pgm(65535, 0),
    "12 bits.pgm": pgm(4095, 4),
}


@pytest.mark.parametrize("name", GREY)
def test_grey_of_16_bits_looks_as_in_8(name, folder):
    GREY[name](ramp(), folder / name)
    found = np.array(load_image(folder, name))
    np.testing.assert_array_equal(found, np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2))


def test_grey_of_12_bits_is_scaled_by_its_range():
    image = Image.fromarray(ramp() >> 4)
    image.tag_v2 = {258: (12,)}
    np.testing.assert_array_equal(np.array(_eight_bits(image)), ramp() >> 8)


@pytest.mark.parametrize("kind", [np.int32, np.float32, np.int16])
def test_pictures_whose_white_no_one_knows_are_refused(kind, folder):
    Image.fromarray(ramp().astype(kind)).save(folder / "odd.tif")
    with pytest.raises(ValueError, match="image 'odd.tif' cannot be read: its pixels are numbers, and nothing"):
        load_image(folder, "odd.tif")


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png", "deep.png"])
def test_orientation_tags_are_heeded_where_that_is_asked_for(name, folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(ramp()[:8]) if name == "deep.png" else noise(16, 8)
    image.save(folder / name, exif=exif)
    upright, turned = load_image(folder, name), load_image(folder, name, exif=True)
    assert turned.size == (8, 16) and upright.size == (16, 8)
    np.testing.assert_array_equal(np.array(turned), np.array(upright.transpose(Image.Transpose.ROTATE_270)))
    pictures = [Pictures(folder, 4, "squash", exif=exif)(name) for exif in (False, True)]
    assert not torch.equal(*pictures)


# files


def test_an_image_is_loaded_as_it_was_saved(folder):
    np.testing.assert_array_equal(np.array(load_image(folder, "sub/a.png")), np.array(noise(6, 4)))


def test_another_extension_of_the_same_name_will_do(folder):
    assert find_image(folder, "sub/a.jpg").name == "a.png"
    noise(3, 3).save(folder / "sub/a.jpg")
    assert find_image(folder, "sub/a.jpg").name == "a.jpg"


def test_an_animation_is_its_first_frame(folder):
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    red.save(folder / "b.gif", save_all=True, append_images=[blue])
    assert load_image(folder, "b.gif").getpixel((0, 0)) == (255, 0, 0)


def test_orientation_tags_are_ignored_and_transparency_is_dropped(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(8, 4).save(folder / "turned.jpg", exif=exif)
    assert load_image(folder, "turned.jpg").size == (8, 4)
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(folder / "clear.png")
    assert load_image(folder, "clear.png").getpixel((0, 0)) == (10, 20, 30)
    palette = noise(4, 4).convert("P")
    palette.save(folder / "palette.png", transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(np.array(load_image(folder, "palette.png")), np.array(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "I;16", "LA"])
def test_other_colour_modes_become_rgb(mode, folder):
    name = "grey.tif" if mode in ("CMYK", "I;16") else "grey.png"
    Image.new(mode, (3, 2)).save(folder / name)
    image = load_image(folder, name)
    assert image.mode == "RGB" and image.size == (3, 2)


def test_a_missing_folder_and_a_missing_image_are_named(folder):
    with pytest.raises(FileNotFoundError, match="nowhere: no such image folder"):
        require_folder(folder / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"image 'sub/none\.png' is missing in .*images"):
        load_image(folder, "sub/none.png")
    with pytest.raises(FileNotFoundError, match="missing"):
        load_image(folder, "sub")
    with pytest.raises(FileNotFoundError, match="missing"):
        load_image(folder, "x" * 5000)


@pytest.mark.parametrize("path", ["../secret.png", "sub/../../secret.png", "/etc/hostname"])
def test_paths_do_not_leave_the_folder(path, folder):
    noise(2, 2).save(folder.parent / "secret.png")
    with pytest.raises(ValueError, match="leaves the image folder"):
        load_image(folder, path)


def test_links_of_the_folder_s_owner_are_followed_and_paths_in_the_data_do_not_climb_out(folder):
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    noise(5, 2).save(blobs / "b.png")
    (folder / "link.png").symlink_to("../blobs/b.png")
    (folder / "blobs").symlink_to(blobs, target_is_directory=True)
    for path in ("link.png", "link.jpg", "blobs/b.png"):
        assert find_image(folder, path) == blobs / "b.png" and load_image(folder, path).size == (5, 2)
    for path in ("../blobs/b.png", "blobs/../../blobs/b.png", str(blobs / "b.png")):
        with pytest.raises(ValueError, match="leaves the image folder"):
            load_image(folder, path)
    (folder / "circle.png").symlink_to("circle.png")
    with pytest.raises(FileNotFoundError, match="'circle.png' is missing"):
        load_image(folder, "circle.png")


def test_a_folder_that_is_itself_a_link_will_do(folder):
    alias = folder.parent / "alias"
    alias.symlink_to(folder, target_is_directory=True)
    assert load_image(alias, "sub/a.png").size == (6, 4)


def _broken(folder):
    noise(64, 64).save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    png = (folder / "sub/a.png").read_bytes()
    return {"empty": b"", "text": b"<html>404</html>", "half": whole[: len(whole) // 2], "header": whole[:30],
            "flipped": png[:45] + bytes([png[45] ^ 255]) + png[46:], "cut": png[:-60],
            "program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}  # fmt: skip


@pytest.mark.parametrize("kind", ["empty", "text", "half", "header", "flipped", "cut", "program"])
def test_broken_images_are_refused_in_one_line(kind, folder):
    (folder / "broken.jpg").write_bytes(_broken(folder)[kind])
    with pytest.raises(ValueError, match=r"image 'broken\.jpg' cannot be read: .") as error:
        load_image(folder, "broken.jpg")
    assert "\n" not in str(error.value) and str(folder) not in str(error.value)


def _png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000), (80_000, 1_000), (9_000, 40)])
def test_pictures_that_would_fill_the_memory_are_refused(size, folder):
    (folder / "bomb.png").write_bytes(_png(*size))
    with pytest.raises(ValueError, match=r"image 'bomb\.png' .* more than is safe to load; shrink it"):
        load_image(folder, "bomb.png")


@pytest.mark.parametrize("size", [(9_000, 9_000), (1, 1), (1, 200), (16_384, 5_000)])
def test_large_photographs_are_allowed(size):
    assert size_problem(*size) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_block(folder):
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(FileNotFoundError):
        load_image(folder, "pipe.png")
