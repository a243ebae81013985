"""Owns: frames equal those of plain decoding from the start, whatever is a key frame; colours and sizes.

The pictures move and have texture, so that a frame made from a wrong neighbour differs.
"""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from moss_vllm.data import decoders
from moss_vllm.data.index import index_frames
from moss_vllm.data.video import read_clip, read_frames

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


def write(path, codec, options, n=N, times=None, colours=None, keys=(), rotation=None, pictures=picture):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec} encoder")
    first = pictures(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for name, value in (colours or {}).items():
            setattr(stream.codec_context, name, value)
        for i in [*range(n), None]:
            frame = None
            if i is not None:
                frame = av.VideoFrame.from_ndarray(pictures(i), format="rgb24").reformat(
                    format=stream.pix_fmt
                )
                frame.pts, frame.time_base = i if times is None else int(times[i]), Fraction(1, 10)
            for packet in stream.encode(frame):
                packet.is_keyframe = packet.is_keyframe or packet.pts in keys
                container.mux(packet)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write a file on first use, and decode it plainly."""
    folder = tmp_path_factory.mktemp("files")
    known = {}

    def get(name):
        if name not in known:
            codec, options = FILES.get(name, ("libx264", X264))
            how = {}
            if name == "uneven.mp4":
                how["times"] = np.cumsum([0] + [1, 1, 5, 1, 2] * 13 + [1] * 4)
            elif name == "turned.mp4":
                how["rotation"] = 90
            elif name == "all_keys.mp4":
                how["keys"] = range(N)
            elif name == "i_keys.mp4":  # pictures of type I that are no key frames
                options = {"bf": "0", "x264-params": "keyint=99:min-keyint=50:ref=4:scenecut=80"}
                how |= {"keys": range(0, N, 9), "pictures": flash}
            path = write(folder / name, codec, options, **how)
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


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", [*FILES, "uneven.mp4", "turned.mp4", "all_keys.mp4", "i_keys.mp4"])
def test_equals_plain_decoding(files, name, choice):
    path, plain = files(name)
    frames = read_frames(path, CHOICES[choice])
    wanted = [np.rot90(plain[i], 1 if name == "turned.mp4" else 0) for i in CHOICES[choice](N)]
    assert len(plain) == N
    np.testing.assert_array_equal(frames, wanted)


@pytest.mark.parametrize("name", [name for name in FILES if name != "refresh.mp4"])
def test_good_files_need_no_second_try(files, name, monkeypatch):
    path, plain = files(name)
    assert len(index_frames(str(path)).key_times_s)
    monkeypatch.setattr(decoders, "decode_in_order", lambda path: iter(()))
    for choice in CHOICES.values():
        np.testing.assert_array_equal(read_frames(path, choice), [plain[i] for i in choice(N)])


@pytest.mark.parametrize("name", ["closed.mp4", "open_hevc.mp4", "vp9.webm", "mpeg4.avi"])
def test_late_part(files, name):
    path, plain = files(name)
    clip = read_clip(path, short_side_px=None, sample_fps=2, start_s=4.32, end_s=6.5)
    np.testing.assert_array_equal(clip.frames, [plain[i] for i in (43, 48, 53, 58, 63)])
    np.testing.assert_allclose(clip.frame_times_s, [0, 0.48, 0.98, 1.48, 1.98], atol=1e-3)
