"""Owns: frames equal those of plain decoding from the start, whatever is a key frame; colours and sizes.

The pictures move and have texture, so that a frame made from a wrong neighbour differs.
"""

import sys
from fractions import Fraction
from functools import partial

import av
import numpy as np
import pytest
from PIL import Image
from video_files import write_pictures

from moss_vllm.video import decoders
from moss_vllm.video.cache import choose_frame_reader, choose_reader, describe_clip
from moss_vllm.video.clip import Sampling, read_clip, read_frames
from moss_vllm.video.packets import index_frames

SIZE = 56, 84  # multiples of 28: read without scaling
N = 70
X264 = {"bf": "3", "preset": "veryfast", "x264-params": "b-pyramid=normal:keyint=24:scenecut=0"}
OPEN = "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"
FILES = {  # name -> encoder and its options
    "closed.mp4": ("libx264", X264),
    "long.mkv": ("libx264", {"bf": "3", "g": "250", "preset": "veryfast"}),
    "open.mkv": ("libx264", {"x264-params": OPEN}),
    "open_hevc.mp4": ("libx265", {"x265-params": f"{OPEN}:log-level=none"}),
    "closed_hevc.mkv": ("libx265", {"x265-params": "open-gop=0:keyint=20:bframes=4:log-level=none"}),
    "layers_hevc.mp4": (
        "libx265",
        {"x265-params": "temporal-layers=3:keyint=24:bframes=7:b-adapt=0:log-level=none"},
    ),
    "refresh.mp4": ("libx264", {"bf": "0", "x264-params": "intra-refresh=1:keyint=12:scenecut=0"}),
    "vp9.webm": ("libvpx-vp9", {"cpu-used": "8", "deadline": "realtime", "g": "20"}),
    "av1.mp4": ("libsvtav1", {"preset": "12", "g": "20"}),
    "mpeg4.mp4": ("mpeg4", {"bf": "2", "g": "12"}),
    "mpeg4.avi": ("mpeg4", {"g": "12"}),
    "mjpeg.mkv": ("mjpeg", {}),
}


def picture(i):
    random = np.random.default_rng(1)
    texture = random.integers(0, 256, (SIZE[0], SIZE[1], 3)).astype(float)
    soft = np.asarray(Image.fromarray(texture.astype(np.uint8)).resize((21, 14)).resize(SIZE[::-1]), float)
    return np.roll(soft, (i, 2 * i), (0, 1)).astype(np.uint8) // (1 + (i // 9) % 2)  # and scenes change


def flash(i):
    """A scene of one picture now and then, and back."""
    return 255 - picture(i) if i % 9 == 0 else picture(i)


def one_thread(stream):
    stream.codec_context.thread_count = 1


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write a file on first use, and decode it plainly."""
    folder = tmp_path_factory.mktemp("files")
    known = {}

    def get(name):
        if name not in known:
            codec, options = FILES.get(name, ("libx264", X264))
            how, pictures = {}, picture
            if name == "uneven.mp4":
                how["times_ms"] = 100 * np.cumsum([0] + [1, 1, 5, 1, 2] * 13 + [1] * 4)
            elif name == "turned.mp4":
                how["rotation"] = 90
            elif name == "all_keys.mp4":
                how["keys"] = range(N)
            elif name == "i_keys.mp4":  # pictures of type I that are no key frames
                options = {"bf": "0", "x264-params": "keyint=99:min-keyint=50:ref=4:scenecut=80"}
                how["keys"], pictures = range(0, N, 9), flash
            written = map(pictures, range(N))
            path = write_pictures(folder / name, written, codec, options, prepare=one_thread, **how)
            with av.open(str(path)) as container:
                known[name] = path, [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        return known[name]

    return get


CHOICES = {
    "all": lambda n: np.arange(n),
    "every fifth": lambda n: np.arange(0, n, 5),
    "late": lambda n: np.array([n - 12, n - 9]),
    "last": lambda n: np.array([n - 1]),
    "around key frames": lambda n: np.array([i for i in range(n) if i % 12 in (10, 11, 0, 1)]),
    "far apart": lambda n: np.array([1, n // 2 + 3, n - 2]),
}


OTHERS = ["refresh.mp4", "uneven.mp4", "turned.mp4", "all_keys.mp4", "i_keys.mp4"]


@pytest.mark.parametrize("name", [*FILES, *OTHERS[1:]])
def test_equals_plain_decoding(files, name, monkeypatch):
    path, plain = files(name)
    assert len(plain) == N
    if name not in OTHERS:  # good files need no second try
        assert len(index_frames(str(path)).key_times_s)
        monkeypatch.setattr(decoders, "decode_in_order", lambda path: iter(()))
    for choice, choose in CHOICES.items():
        wanted = [np.rot90(plain[i], name == "turned.mp4") for i in choose(N)]
        np.testing.assert_array_equal(read_frames(path, choose), wanted, choice)


@pytest.mark.parametrize("name", ["closed.mp4", "open_hevc.mp4", "vp9.webm", "mpeg4.avi"])
def test_late_part(files, name):
    path, plain = files(name)
    clip = read_clip(path, Sampling(short_side_px=None, sample_fps=2), start_s=4.32, end_s=6.5)
    np.testing.assert_array_equal(clip.frames, [plain[i] for i in (43, 48, 53, 58, 63)])
    np.testing.assert_allclose(clip.frame_times_s, [0, 0.48, 0.98, 1.48, 1.98], atol=1e-3)


WEIGHTS = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114)}
COLOURS = {  # name -> tags of a file, its matrix, and whether levels go from 0 to 255
    "untagged": ({}, "bt601", False),
    "bt601": ({"colorspace": 6}, "bt601", False),
    "bt709": ({"colorspace": 1}, "bt709", False),
    "full bt601": ({"color_range": 2}, "bt601", True),
    "full bt709": ({"colorspace": 1, "color_range": 2}, "bt709", True),
}


@pytest.mark.parametrize("short_side_px", [None, 28, 112])
@pytest.mark.parametrize("name", COLOURS)
def test_colours_are_those_the_file_is_tagged_with(tmp_path, name, short_side_px):
    tags, matrix, is_full = COLOURS[name]
    y, u, v = 120, 100, 160
    path = tmp_path / "flat.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for tag, value in tags.items():
            setattr(stream.codec_context, tag, value)
        planes = np.full((SIZE[0] * 3 // 2, SIZE[1]), y, np.uint8)
        planes[SIZE[0] : SIZE[0] * 5 // 4], planes[SIZE[0] * 5 // 4 :] = u, v
        for i in range(4):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            for tag, value in tags.items():
                setattr(frame, tag, value)
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    red, blue = WEIGHTS[matrix]
    light = y / 255 if is_full else (y - 16) / 219
    cb, cr = ((chroma - 128) / (255 if is_full else 224) for chroma in (u, v))
    r, b = light + 2 * cr * (1 - red), light + 2 * cb * (1 - blue)
    g = (light - red * r - blue * b) / (1 - red - blue)
    seen = read_clip(path, Sampling(short_side_px=short_side_px, sample_fps=10)).frames.reshape(-1, 3)
    assert np.ptp(seen, 0).max() <= 1
    tolerance = 3 if short_side_px is None else 1  # FFmpeg's quick way for pictures of one size rounds down
    np.testing.assert_allclose(seen.mean(0), np.array([r, g, b]) * 255, atol=tolerance)


def test_scaling_is_smooth_and_keeps_colour_at_every_pixel(tmp_path):
    """Near to an antialiased resizing of the stored planes, also where colours change within 3 pixels."""
    rows, columns = np.mgrid[:448, :672]
    luma = 120 + 60 * np.sin(rows / 9) * np.cos(columns / 7)
    stripes = np.cos(columns[:224, :336] * (2 * np.pi / 6)).reshape(112, 672)
    stored = np.concatenate([luma, 100 + 50 * stripes, 140 - 60 * stripes]).round().astype(np.uint8)
    path = tmp_path / "stripes.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "0", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = 448, 672, "yuv420p"
        frame = av.VideoFrame.from_ndarray(stored, format="yuv420p")
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        container.mux([*stream.encode(frame), *stream.encode()])
    y, u, v = stored[:448], stored[448:560].reshape(224, 336), stored[560:].reshape(224, 336)
    y, u, v = (
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize((336, 224), Image.Resampling.BICUBIC))
        for plane in (y, u, v)
    )
    light, cb, cr = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    green = light - 0.344136 * cb - 0.714136 * cr
    wanted = np.stack([light + 1.402 * cr, green, light + 1.772 * cb], -1).clip(0, 1) * 255
    off = np.abs(read_clip(path).frames[0] - wanted)
    assert off.mean() < 14  # packed RGB, with a colour at every other pixel, is off by 22


def test_named_decoder_is_told_at_once_when_it_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    for name in ("decord", "torchcodec"):
        for read in (partial(choose_reader, None), partial(read_clip, "unread.mp4")):
            with pytest.raises(ImportError, match=rf'pip install -e "\.\[{name}\]"'):
                read(decoder=name)
    with pytest.raises(ValueError, match="decoder is 'opencv'; it must be one of auto, pyav, decord"):
        choose_frame_reader(None, decoder="opencv")


def test_auto_is_pyav_whatever_is_installed(files, monkeypatch):
    path, _ = files("closed.mp4")
    seen = read_clip(path).frames
    np.testing.assert_array_equal(seen, read_clip(path, decoder="pyav").frames)
    monkeypatch.setitem(sys.modules, "decord", None)
    np.testing.assert_array_equal(seen, read_clip(path).frames)


def test_cache_keeps_decoders_apart(files, tmp_path):
    pytest.importorskip("decord")
    path, _ = files("closed.mp4")
    read, read_other = (choose_reader(tmp_path, decoder=name) for name in ("auto", "decord"))
    for _ in range(2):
        np.testing.assert_array_equal(read(path).frames, read_clip(path).frames)
        np.testing.assert_array_equal(read_other(path).frames, read_clip(path, decoder="decord").frames)
    assert len(list(tmp_path.glob("??/*.safetensors"))) == 2
    assert describe_clip(path) == describe_clip(path, decoder="pyav") != describe_clip(path, decoder="decord")
    assert '"format": 3' in describe_clip(path)
