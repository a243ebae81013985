"""Owns: read_clip gives the frames on screen at the sampled times, the same from each decoder, or BadVideo.

Each clip is written here and carries its frame number in the picture as eight dark or bright bars.
"""

import os
import pickle
import struct
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from video_files import bars, numbers, write_pictures, write_sound

from moss_vllm.video import frames
from moss_vllm.video.clip import Sampling, read_clip
from moss_vllm.video.decoders import check_decoder
from moss_vllm.video.frames import BadVideo

HEIGHT, WIDTH = 64, 96
FPS = {"mpeg4.avi": 25, "mpeg2.mpg": 25, "raw.m2v": 25}  # of all other clips: 10
UNEVEN_MS = np.cumsum([0] + [40, 40, 40, 300, 40] * 11 + [40] * 4)
CHANGED = {
    "uneven.mp4": {"times_ms": UNEVEN_MS},
    "turned90.mp4": {"rotation": 90},
    "turned180.mp4": {"rotation": 180},
    "turned-90.mp4": {"rotation": -90},
}
PLAIN = {  # file name -> encoder and its options
    "h264.mp4": ("libx264", {"bf": "2", "g": "12"}),
    "bframes.mkv": ("libx264", {"bf": "3", "g": "25"}),
    "vp9.webm": ("libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}),
    "mpeg4.avi": ("mpeg4", {}),
}
SPECIAL = {  # files decord cannot be trusted with
    "anim.gif": ("gif", {}),
    "mpeg2.mpg": ("mpeg2video", {}),
    "raw.m2v": ("mpeg2video", {}),
    "h264.ts": ("libx264", {"bf": "2", "g": "12"}),
    "bframes.avi": ("mpeg4", {"bf": "2"}),
    "hidden.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "4"}),
    "open_gop.mkv": ("libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"}),
    "open_gop.mp4": ("libx265", {"x265-params": "open-gop=1:keyint=12:bframes=3:scenecut=0:log-level=none"}),
    "av1.mp4": ("libsvtav1", {"preset": "12"}),
}


def write(path, n=60, size=(HEIGHT, WIDTH), noise=False, **settings):
    codec, options = {**PLAIN, **SPECIAL}.get(path.name, ("libx264", {"bf": "2", "g": "12"}))
    random, pictures = np.random.default_rng(0), [bars(i, *size) for i in range(n)]
    if noise:  # makes the payload large against the headers
        for picture in pictures:
            picture[size[0] // 2 :] = random.integers(0, 255, (size[0] - size[0] // 2, size[1], 1))
    return write_pictures(path, pictures, codec, options, **settings)


def overwrite(path, start, stop):
    data = bytearray(path.read_bytes())
    span = slice(int(len(data) * start), int(len(data) * stop))
    data[span] = np.random.default_rng(0).bytes(span.stop - span.start)
    path.write_bytes(data)


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Write a clip on first use and keep it for the module."""
    folder = tmp_path_factory.mktemp("clips")

    def get(name, **settings):
        path = folder / name
        return path if path.exists() else write(path, fps=FPS.get(name, 10), **settings)

    return get


def fails(path, words, **settings):
    with pytest.raises(BadVideo) as caught:
        read_clip(path, **settings)
    error = caught.value
    assert error.path.startswith(str(path)) and error.path in str(error), str(error)
    assert words in error.reason and error.reason in str(error), str(error)
    assert len(error.remedy) > 10 and error.remedy in str(error) and "\n" not in str(error), str(error)
    return error


@pytest.mark.parametrize("name", PLAIN)
def test_frames_times_and_shape(clips, name):
    fps = FPS.get(name, 10)
    clip = read_clip(clips(name), Sampling(sample_fps=5))
    expected = range(0, 60, fps // 5)
    assert numbers(clip.frames) == list(expected)
    assert clip.frames.shape == (len(expected), 224, 336, 3) and clip.frames.dtype == np.uint8
    assert clip.frame_times_s.dtype == np.float64
    np.testing.assert_allclose(clip.frame_times_s, np.array(expected) / fps, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decoder", "name"),
    [*product(["decord"], [*PLAIN, *CHANGED]), *product(["torchcodec"], [*PLAIN, "uneven.mp4"])],
)
def test_other_decoders_equal_pyav(clips, decoder, name):
    try:
        check_decoder(decoder)
    except ImportError as error:
        pytest.skip(str(error))
    path = clips(name, **CHANGED.get(name, {}))
    for span in ({}, {"start_s": 1.25, "end_s": 2.3}):
        one, two = (read_clip(path, Sampling(sample_fps=7), decoder=d, **span) for d in (decoder, "pyav"))
        np.testing.assert_array_equal(one.frame_times_s, two.frame_times_s)
        assert one.frames.shape == two.frames.shape and numbers(one.frames) == numbers(two.frames)
        if decoder == "decord":
            assert np.abs(one.frames.astype(int) - two.frames).mean() <= 2  # Pillow resizes its pictures


@pytest.mark.parametrize("name", SPECIAL)
def test_files_decord_is_not_given(clips, name):
    fps = FPS.get(name, 10)
    path = clips(name)
    clip = read_clip(path, Sampling(sample_fps=5))
    assert numbers(clip.frames) == list(range(0, 60, fps // 5))
    np.testing.assert_allclose(clip.frame_times_s, np.arange(len(clip.frames)) / 5, atol=2e-3)
    if "decord" in sys.modules:
        fails(path, "wrong frames", decoder="decord")


def test_variable_frame_rate_follows_time_stamps(clips):
    clip = read_clip(clips("uneven.mp4", **CHANGED["uneven.mp4"]), Sampling(sample_fps=4))
    times_s = UNEVEN_MS / 1000
    on_screen = [int(np.flatnonzero(times_s <= t + 1e-9)[-1]) for t in np.arange(0, times_s[-1] + 0.04, 0.25)]
    expected = sorted(set(on_screen))
    assert len(expected) < len(on_screen)  # some frame is on screen at two sampled times
    assert numbers(clip.frames) == expected
    np.testing.assert_allclose(clip.frame_times_s, times_s[expected], atol=1e-6)


def test_edit_list_hides_frames(clips):
    path = write(clips("h264.mp4").parent / "edited.mp4")
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12  # one entry: duration in ms, first tick shown, 10240 ticks a second
    _, delay = struct.unpack_from(">Ii", data, entry)
    struct.pack_into(">Ii", data, entry, 3500, delay + 25 * 1024)  # frames 0..24 are cut away
    path.write_bytes(data)
    clip = read_clip(path, Sampling(sample_fps=10))
    assert numbers(clip.frames) == list(range(25, 60))
    np.testing.assert_allclose(clip.frame_times_s, np.arange(35) / 10)


def test_file_slower_than_sampling_gives_each_frame_once(clips):
    clip = read_clip(clips("h264.mp4"), Sampling(sample_fps=24))
    assert numbers(clip.frames) == list(range(60))
    assert numbers(read_clip(clips("h264.mp4"), Sampling(sample_fps=1000), end_s=0.25).frames) == [0, 1, 2]


def test_one_frame(clips):
    clip = read_clip(clips("one.mp4", n=1))
    assert clip.frames.shape == (1, 224, 336, 3) and clip.frame_times_s.tolist() == [0]


def test_thinning_keeps_first_and_last(clips):
    whole = read_clip(clips("h264.mp4"), Sampling(sample_fps=10))
    thin = read_clip(clips("h264.mp4"), Sampling(sample_fps=10, max_frames=7))
    assert numbers(thin.frames) == [0, 10, 20, 30, 39, 49, 59]
    np.testing.assert_array_equal(thin.frame_times_s, whole.frame_times_s[numbers(thin.frames)])
    assert numbers(read_clip(clips("h264.mp4"), Sampling(max_frames=1)).frames) == [0]


def test_span(clips):
    path = clips("h264.mp4")
    clip = read_clip(path, start_s=2.0, end_s=4.0)
    assert numbers(clip.frames) == [20, 25, 30, 35]
    np.testing.assert_allclose(clip.frame_times_s, [0, 0.5, 1, 1.5])
    clip = read_clip(path, start_s=2.05, end_s=99)  # frame 20 is on screen at 2.05 s: it counts from 0
    assert numbers(clip.frames)[:2] == [20, 25] and numbers(clip.frames)[-1] == 55
    np.testing.assert_allclose(clip.frame_times_s[:2], [0, 0.45])
    assert numbers(read_clip(path, start_s=2.0, end_s=2.0001).frames) == [20]


@pytest.mark.parametrize(
    ("size", "short_side_px", "expected"),
    [
        ((64, 96), None, (56, 84)),
        ((56, 84), None, (56, 84)),
        ((64, 96), 28, (28, 56)),
        ((65, 97), 224, (224, 336)),
        ((96, 54), 224, (392, 224)),
        ((64, 96), 100, (112, 140)),
    ],
)
def test_sizes(tmp_path, size, short_side_px, expected):
    path = write(tmp_path / "mpeg4.avi", n=4, size=size)  # mpeg4 takes odd sides
    clip = read_clip(path, Sampling(short_side_px=short_side_px, sample_fps=10))
    assert clip.frames.shape == (4, *expected, 3)
    assert numbers(clip.frames) == [0, 1, 2, 3]


def test_decord_that_fails_is_named(clips, monkeypatch):
    decord = pytest.importorskip("decord")

    def broken(*_, **__):
        raise decord.DECORDError("no luck")

    monkeypatch.setattr(decord, "VideoReader", broken)
    fails(clips("h264.mp4"), "no luck", decoder="decord")
    assert numbers(read_clip(clips("h264.mp4"), Sampling(sample_fps=1)).frames) == [0, 10, 20, 30, 40, 50]


def test_decord_bridge_of_another_package(clips):
    decord = pytest.importorskip("decord")
    decord.bridge.set_bridge("torch")
    try:
        assert numbers(read_clip(clips("h264.mp4"), decoder="decord").frames) == list(range(0, 60, 5))
        assert decord.bridge._CURRENT_BRIDGE.type == "torch"
    finally:
        decord.bridge.reset_bridge()


def image_folder(folder, count=12, suffix=".png", mode="L"):
    folder.mkdir()
    for i in range(count):
        Image.fromarray(bars(i, HEIGHT, WIDTH)).convert(mode).save(folder / f"frame_{i}{suffix}")
    return folder


@pytest.mark.parametrize(
    ("suffix", "mode"), [(".png", "L"), (".jpg", "RGB"), (".jpeg", "L"), (".webp", "RGB"), (".bmp", "RGB")]
)
def test_folder_of_images(tmp_path, suffix, mode):
    folder = image_folder(tmp_path / "v.mp4", suffix=suffix, mode=mode)  # a folder may be named like a file
    (folder / "notes.txt").write_text("not a frame")
    (folder / f"._frame_3{suffix}").write_text("what a Mac leaves behind")
    clip = read_clip(folder, Sampling(sample_fps=3))
    assert numbers(clip.frames) == list(range(12))  # frame_2 before frame_10
    assert clip.frames.shape == (12, 224, 336, 3)
    np.testing.assert_allclose(clip.frame_times_s, np.arange(12) / 3)
    clip = read_clip(str(folder), Sampling(sample_fps=2), folder_fps=6, start_s=0.5)
    assert numbers(clip.frames) == [3, 6, 9]
    np.testing.assert_allclose(clip.frame_times_s, [0, 0.5, 1])


def test_bad_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "no images")
    folder = image_folder(tmp_path / "sizes")
    Image.new("RGB", (50, 50)).save(folder / "frame_3.png")
    assert fails(folder, "50x50", sampling=Sampling(sample_fps=3)).path == str(folder / "frame_3.png")
    folder = image_folder(tmp_path / "broken")
    cut(folder / "frame_6.png", 0.5)
    assert fails(folder, "cannot be read", sampling=Sampling(sample_fps=3)).path == str(
        folder / "frame_6.png"
    )
    fails(folder, "video ends at 4.00 s", start_s=4)


def test_absurd_sizes(tmp_path, monkeypatch):
    (tmp_path / "thin").mkdir()
    Image.new("L", (630, 30)).save(tmp_path / "thin" / "0.png")
    assert "20-fold" in fails(tmp_path / "thin", "630x30").reason
    monkeypatch.setattr(frames, "MAX_FRAME_PX", 6000)
    path = write(tmp_path / "large.mp4", n=12)
    assert "at most 6000" in fails(path, "96x64").reason
    monkeypatch.setattr(frames, "MAX_FRAME_PX", 10**8)
    monkeypatch.setattr(frames, "MAX_CLIP_BYTES", 451583)
    assert "max_frames" in fails(path, "451583").remedy


def test_bad_files(tmp_path):
    fails(tmp_path / "missing.mp4", "No such file")
    (tmp_path / "empty.mp4").touch()
    fails(tmp_path / "empty.mp4", "empty (0 bytes)")
    (tmp_path / "text.mp4").write_text("<html>404 not found</html>" * 50)
    fails(tmp_path / "text.mp4", "not a video")
    cut(write(tmp_path / "no_moov.mp4", noise=True), 0.6)
    fails(tmp_path / "no_moov.mp4", "not a video")
    write_sound(tmp_path / "sound.mp4")
    fails(tmp_path / "sound.mp4", "no video stream")
    overwrite(write(tmp_path / "all.mp4", noise=True, faststart=True), 0.05, 1)
    fails(tmp_path / "all.mp4", "0 of 60 frames decode")
    path = write(tmp_path / "good.mp4")
    fails(path, "video ends at 6.00 s", start_s=6.0)


def test_partly_good_files(tmp_path):
    """What is whole may be read; asking for more is an error with counts, never fewer frames."""
    path = write(tmp_path / "middle.mp4", noise=True, faststart=True)
    overwrite(path, 0.4, 0.6)
    assert "of 60 frames decode, then at" in fails(path, "frames decode").reason
    path = write(tmp_path / "half.mp4", noise=True, faststart=True)
    cut(path, 0.6)
    fails(path, "frames decode, then")
    for name in ("bframes.mkv", "vp9.webm", "mpeg4.avi"):
        path = write(tmp_path / name, noise=True)
        cut(path, 0.6)
        reason = fails(path, "").reason
        assert "cut short" in reason or "packet is incomplete" in reason
        assert numbers(read_clip(path, Sampling(sample_fps=5), end_s=1.0).frames) == [0, 2, 4, 6, 8]
    path = write(tmp_path / "h264.ts", noise=True)
    overwrite(path, 0.4, 0.6)
    fails(path, "packet is incomplete or damaged")


@pytest.mark.skipif(os.name != "posix", reason="file permissions")
def test_no_permission(tmp_path):
    path = write(tmp_path / "secret.mp4", n=2)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read anything
    try:
        fails(path, "Permission denied")
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    "setting",
    [
        {"sample_fps": 0},
        {"sample_fps": float("nan")},
        {"folder_fps": -1},
        {"max_frames": 0},
        {"start_s": -1},
        {"start_s": float("nan")},
        {"end_s": 0.0},
        {"end_s": float("nan")},
        {"short_side_px": 27},
        {"decoder": "opencv"},
    ],
)
def test_arguments_out_of_range(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"^{name} is '?{value}'?; it must be") as caught:
        if name in ("sample_fps", "short_side_px", "max_frames"):
            Sampling(**setting)
        else:
            read_clip("unread.mp4", **setting)
    assert not isinstance(caught.value, BadVideo)


def test_bad_video_pickles():
    error = BadVideo("/a: b/c.mp4", "3 of 4 frames decode", "copy it again")
    again = pickle.loads(pickle.dumps(error))
    assert (again.path, again.reason, again.remedy) == (error.path, error.reason, error.remedy)
    assert str(again) == str(error)


def test_bad_video_is_rebuilt_from_a_long_traceback_at_once():
    error = BadVideo("BadVideo: a: b, " * 50_000, "3 of 4: (x) frames", "copy (it) again")
    started = time.monotonic()
    again = BadVideo(f"Caught BadVideo in worker\n  File ...\nmoss_vllm.data.frames.BadVideo: {error}\n")
    assert (again.reason, again.remedy) != ("", "") and time.monotonic() - started < 1
    again = BadVideo("frames.BadVideo: /a/c.mp4: 3 of 4: (x) frames (remedy: copy (it) again)\n")
    assert (again.path, again.reason, again.remedy) == ("/a/c.mp4", "3 of 4: (x) frames", "copy (it) again")


class Files(Dataset):
    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return read_clip(self.paths[i]).frames


def test_dataloader_worker(clips, tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.touch()
    read_clip(clips("h264.mp4"))  # decoding before the fork must not hang the worker
    batches = iter(DataLoader(Files([clips("h264.mp4"), empty]), batch_size=None, num_workers=1, timeout=20))
    assert numbers(next(batches).numpy()) == list(range(0, 60, 5))
    with pytest.raises(BadVideo) as caught:
        next(batches)
    assert caught.value.path == str(empty) and "0 bytes" in caught.value.reason and caught.value.remedy
    assert "Traceback" not in str(caught.value)


def test_nothing_stays_open(clips):
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc")
    paths = [clips("h264.mp4"), clips("anim.gif")]
    for path in paths:
        read_clip(path)
    before = len(list(descriptors.iterdir()))
    for _ in range(5):
        for path in paths:
            read_clip(path)
    assert len(list(descriptors.iterdir())) <= before


def test_one_frame_is_read_at_any_rate(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "0.png")
    for fps in (0.001, 2.0, 999.0, 1000.0):
        assert len(read_clip(str(tmp_path), Sampling(sample_fps=fps)).frames) == 1
