"""Owns: a window's frames are those of its indices, scaled and cut, and a test decodes each of them once."""

import dataclasses

import numpy as np
import pytest
import torch
from detection_layouts import TEST
from tiny_detector import FRAMES, PIXELS, WINDOWS
from video_files import numbers, write_pictures

from moss_vllm.data.detection.datasets import DetectionVideo
from moss_vllm.detection.pixels import (
    PixelSettings,
    fill_up,
    join_frames,
    read_new_frames,
    read_placed,
    read_window,
)
from moss_vllm.detection.windows import WindowSettings, draw_window, windows_to_test
from moss_vllm.video.cache import FrameCache
from moss_vllm.video.clip import count_shown, read_frames
from moss_vllm.video.frames import BadVideo


class Counted:
    """`read_frames`, and the frames that were asked for."""

    def __init__(self):
        self.indices = []

    def __call__(self, path, choose, **how):
        def note(n_frames):
            chosen = choose(n_frames)
            self.indices += chosen.tolist()
            return chosen

        return read_frames(path, note, **how)


def whole_windows(video, windows=WINDOWS, pixels=PIXELS, read=read_frames):
    """What a test makes of a video."""
    frames = None
    for number in range(len(windows_to_test(video, count_shown(video.path), windows))):
        window, new = read_new_frames(video, number, windows, pixels, read=read)
        frames = join_frames(frames, window, torch.from_numpy(new))
        yield window, frames.numpy()


@pytest.mark.parametrize("place", range(3), ids=("mp4", "folder of frames", "shorter than a window"))
def test_windows_have_the_frames_of_their_indices_and_each_is_decoded_once(split, place):
    video, read = split.videos[place], Counted()
    assert count_shown(video.path) == FRAMES[TEST[place]] == video.frames
    found = list(whole_windows(video, read=read))
    assert len(found) == (9, 5, 1)[place]
    for (window, frames), expected in zip(found, windows_to_test(video, video.frames, WINDOWS), strict=True):
        assert frames.shape == (window.valid, 32, 32, 3) and frames.flags.c_contiguous
        assert window.start_frame == expected.start_frame
        scaled = read_window(video, window, short_side_px=32)
        assert scaled.shape == (window.valid, 32, 42, 3)  # 48 x 64 by a short side of 32
        assert numbers(scaled) == expected.frame_indices[: window.valid].tolist()
        assert np.array_equal(frames, scaled[:, :, 5:37])
    assert read.indices == list(range(0, video.frames, 2))


def test_a_clip_repeats_the_last_frame_as_the_mask_says(split):
    video = split.videos[2]
    ((window, frames),) = whole_windows(video)
    assert window.valid == 13
    clip = fill_up(frames, window)
    assert clip.shape == (16, 3, 32, 32) and clip.dtype == torch.uint8
    assert np.array_equal(clip[:13].permute(0, 2, 3, 1).numpy(), frames)
    assert torch.equal(clip[13:], clip[12:13].expand(3, -1, -1, -1))


@pytest.mark.parametrize("frames, count", [(64, 3), (32, 1), (48, 2)])
def test_the_last_window_may_be_there_twice(split, frames, count, tmp_path):
    """Of a video whose steps are a multiple of the advance; nothing is new in it."""
    short = DetectionVideo("v", split.videos[0].path, 15.0, 150, ())
    path = write_pictures(tmp_path / "v.mp4", read_frames(short.path, lambda n: np.arange(frames)))
    video = DetectionVideo("v", str(path), frames / 10, frames, ())
    found = list(whole_windows(video))
    starts = [window.start_frame for window, _ in found]
    assert len(starts) == len(windows_to_test(video, frames, WINDOWS)) and len(set(starts)) == count
    assert all(numbers(shown)[0] == window.start_frame and len(shown) == 16 for window, shown in found)


def test_windows_that_do_not_overlap(split):
    apart = dataclasses.replace(WINDOWS, test_overlap=0.0)
    read = Counted()
    found = list(whole_windows(split.videos[0], apart, read=read))
    assert [window.start_frame for window, _ in found] == [0, 32, 64, 96]  # AdaTAD shows no more either
    assert read.indices == list(range(0, 128, 2))


def test_a_drawn_window_opens_the_file_once(split):
    video, read, drawn = split.videos[0], Counted(), []

    def place(n_frames):
        drawn.append(draw_window(video, n_frames, WINDOWS, np.random.default_rng(3)))
        return drawn[-1]

    window, frames = read_placed(video, place, short_side_px=40, read=read)
    assert drawn == [window] and read.indices == numbers(frames) == window.frame_indices.tolist()
    assert frames.shape == (16, 40, 53, 3)
    assert np.array_equal(frames, read_window(video, window, short_side_px=40))


def test_the_frame_cache_gives_the_same(split, tmp_path):
    cache = FrameCache(tmp_path / "cache")
    for _ in range(2):
        for (_, one), (_, other) in zip(
            whole_windows(split.videos[0]),
            whole_windows(split.videos[0], read=cache.read_frames),
            strict=True,
        ):
            assert np.array_equal(one, other)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1


@pytest.mark.parametrize("annotated, told", [(137, None), (166, None), (136, "136"), (167, "167")])
def test_a_file_of_another_number_of_frames_is_named(split, annotated, told):
    """A tenth more or less is another video, or one of another frame rate."""
    video = dataclasses.replace(split.videos[0], frames=annotated)
    if told is None:
        assert len(list(whole_windows(video))) > 5
        return
    with pytest.raises(
        BadVideo, match=rf"150 frames are there, the annotation of \w+ has {told} .remedy: use"
    ):
        list(whole_windows(video))
    with pytest.raises(BadVideo):
        read_window(video, windows_to_test(video, 150, WINDOWS)[0], short_side_px=32)


def test_a_file_that_ends_before_a_window_is_named(split):
    video = dataclasses.replace(split.videos[0], frames=164)
    windows = WindowSettings(steps=2, stride=2)
    with pytest.raises(BadVideo, match=r"window at frame 15\d, the file has 150 frames, its annotation 164"):
        list(read_new_frames(video, number, windows, PIXELS) for number in range(81))


@pytest.mark.parametrize(
    "given, told",
    [
        ({"size_px": 0}, "size_px is 0; it must be at least 1"),
        ({"size_px": 224}, "train_short_side_px is 182; it must be at least size_px, 224"),
    ],
)
def test_sizes_out_of_range(given, told):
    with pytest.raises(ValueError, match=told):
        PixelSettings(**given)
    assert PixelSettings(224, 256).size_px == 224
