"""Owns: a folder of images is read as the frames it holds, turned and scaled right, or refused by name."""

import os
import time
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image
from test_video_kinds import SIZE, UPRIGHT, corners, picture
from video_files import numbers

from moss_vllm.video.clip import read_clip, read_frames
from moss_vllm.video.container import native_size
from moss_vllm.video.frames import BadVideo, list_images, target_size


def save(folder, names, change=lambda image: image, **options):
    """An image of each number, 0, 1, ..., called so."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        change(Image.fromarray(picture(number, *SIZE))).save(folder / name, **options)
    return folder


def called(pattern, count=8):
    return [pattern.format(i + 1) for i in range(count)]


TURNS = {  # of EXIF -> how a picture is stored that is to be seen upright
    1: lambda rgb: rgb,
    2: lambda rgb: rgb[:, ::-1],
    3: lambda rgb: rgb[::-1, ::-1],
    4: lambda rgb: rgb[::-1],
    5: lambda rgb: rgb.swapaxes(0, 1),
    6: lambda rgb: rgb[::-1].swapaxes(0, 1)[::-1, ::-1],
    7: lambda rgb: rgb[::-1, ::-1].swapaxes(0, 1),
    8: lambda rgb: rgb[:, ::-1].swapaxes(0, 1)[::-1, ::-1],
}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_turns(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation

    def store(image):
        return Image.fromarray(np.ascontiguousarray(TURNS[orientation](np.asarray(image))))

    folder = save(tmp_path / "v", called("{}" + suffix, 3), store, exif=exif)
    frames = read_frames(folder, np.arange)
    assert frames.shape[1:3] == SIZE == native_size(str(folder)) and corners(frames[0]) == UPRIGHT
    assert numbers(frames) == [0, 1, 2]
    assert read_clip(folder).frames.shape[1:3] == target_size(*native_size(str(folder)), 224)


def test_16_bit_greys_are_scaled(tmp_path):
    (tmp_path / "v").mkdir()
    deep = (np.arange(56 * 56) * 20).astype(np.uint16).reshape(56, 56)
    Image.fromarray(deep).save(tmp_path / "v" / "1.png")
    np.testing.assert_array_equal(read_frames(tmp_path / "v", np.arange)[0], np.stack([deep // 256] * 3, -1))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "mode"), [("1.png", "P"), ("1.png", "RGBA"), ("1.jpg", "CMYK"), ("1.webp", "RGBA")]
)
def test_other_modes_of_colour(tmp_path, name, mode):
    wanted = picture(0b1010, *SIZE)

    def change(image):
        image = Image.fromarray(wanted)
        image = image.quantize(64) if mode == "P" else image.convert(mode)
        if mode == "RGBA":
            image.putalpha(128)  # what is half to be seen through is shown as it is
        return image

    options = {"transparency": bytes([0, 100])} if mode == "P" else {"exact": True} if ".webp" in name else {}
    frames = read_frames(save(tmp_path / "v", [name], change, **options), np.arange)
    assert np.abs(frames[0].astype(int) - wanted).mean() < 5
    assert corners(frames[0]) == UPRIGHT and numbers(frames) == [0b1010]


# ---- one sequence


@pytest.mark.parametrize(
    "others",
    [
        called("flow_x_{:05d}.jpg") + called("flow_y_{:05d}.jpg"),
        ["._img_00001.jpg", ".hidden.png"],
        ["notes.txt"],
    ],
)
def test_what_is_no_frame_is_left_out(tmp_path, others):
    folder = save(tmp_path / "v", called("img_{:05d}.jpg"))
    for name in others:
        (folder / name).write_bytes(b"" if name[0] in ".n" else (folder / "img_00001.jpg").read_bytes())
    assert list_images(str(folder)) == called("img_{:05d}.jpg")
    assert numbers(read_frames(folder, np.arange)) == list(range(8))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (called("img_{:05d}.jpg") + ["thumb.jpg"], r"8 called 'img_#', 1 called 'thumb'"),
        (called("img_{:05d}.jpg") + called("mask_{:05d}.png"), r"8 called 'img_#', 8 called 'mask_#'"),
        (called("{:05d}.jpg") + called("{:05d}_depth.png"), r"8 called '#', 8 called '#_depth'"),
        (called("x_{}.jpg") + called("y_{}.jpg"), r"8 called 'x_#', 8 called 'y_#'"),
        (called("img_{:05d}.jpg") + ["img_00001 (1).jpg"], r"1 called 'img_# \(#\)'"),
        (
            called("{:05d}.jpg") + called("{:05d}.png"),
            r"one number: '00001\.(jpg|png)' and '00001\.(jpg|png)'",
        ),
        (called("{:05d}.jpg") + ["3.jpg"], r"one number: '(3|00003)\.jpg' and '(3|00003)\.jpg'"),
        (called("cam1_{}.jpg") + called("cam2_{}.jpg"), r"one number: 'cam1_1\.jpg' and 'cam2_1\.jpg'"),
    ],
)
def test_more_than_one_sequence_is_refused(tmp_path, names, told):
    folder = save(tmp_path / "v", names)
    for read in (read_clip, lambda folder: read_frames(folder, np.arange)):
        with pytest.raises(BadVideo, match=told + r" \(remedy: keep the frames of one video in the folder"):
            read(folder)


@pytest.mark.parametrize(
    "names",
    [
        called("{}.jpg", 12),
        called("v2_frame_{}.png", 12),
        [f"frame_{i}_t{i // 3}.{i % 3}.jpg" for i in range(12)],
        [*called("{:03d}.jpg", 5), *(f"{i + 6:03d}.PNG" for i in range(7))],
    ],
)
def test_one_sequence_is_in_the_order_of_its_numbers(tmp_path, names):
    assert numbers(read_frames(save(tmp_path / "v", names), np.arange)) == list(range(12))


# ---- what is no image


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A program `gs`, first in PATH, that leaves a mark."""
    mark, program = tmp_path / "started", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\necho 10.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return mark


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 56 56\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".bmp"])
def test_an_image_of_another_format_is_refused_and_starts_nothing(tmp_path, ghostscript, suffix):
    folder = tmp_path / "v"
    folder.mkdir()
    for content in (EPS, b"GIF89a" + bytes(100), b"<svg/>", b""):
        (folder / f"1{suffix}").write_bytes(content)
        for read in (read_clip, lambda folder: native_size(str(folder))):
            with pytest.raises(
                BadVideo, match=rf"1\{suffix}: the image is no (PNG|JPEG|WEBP|BMP) by its content"
            ):
                read(folder)
    Image.new("RGB", SIZE).save(folder / f"1{suffix}", "TIFF")
    with pytest.raises(BadVideo, match="by its content"):
        read_clip(folder)
    assert not ghostscript.exists()


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_an_animation_is_no_frame(tmp_path, suffix):
    (tmp_path / "v").mkdir()
    images = [Image.fromarray(picture(i, *SIZE)) for i in range(3)]
    images[0].save(tmp_path / "v" / f"1{suffix}", save_all=True, append_images=images[1:])
    with pytest.raises(BadVideo, match="the image holds 3 pictures, where one frame is wanted"):
        read_clip(tmp_path / "v")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_a_truncated_image_is_refused(tmp_path, suffix):
    folder = save(tmp_path / "v", [f"1{suffix}"])
    whole = (folder / f"1{suffix}").read_bytes()
    for share in (0.2, 0.6, 0.9):
        (folder / f"1{suffix}").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(BadVideo, match="the image cannot be read|by its content"):
            read_clip(folder)


def test_an_image_of_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    folder = save(tmp_path / "v", ["1.png"])
    data = bytearray((folder / "1.png").read_bytes())
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (folder / "1.png").write_bytes(data)
    with pytest.raises(BadVideo, match=r"1\.png"):
        read_clip(folder)


def test_pipes_and_folders_among_frames_are_refused_at_once(tmp_path):
    folder = save(tmp_path / "v", ["1.png", "2.png"])
    for make in (os.mkfifo, os.mkdir):
        place = folder / "3.png"
        make(place)
        started = time.monotonic()
        with pytest.raises(BadVideo, match=r"3\.png: is a pipe, a device or a folder, not an image"):
            read_frames(folder, np.arange)
        assert time.monotonic() - started < 1
        place.rmdir() if place.is_dir() else place.unlink()
