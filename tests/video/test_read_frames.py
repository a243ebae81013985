"""Owns: read_frames gives the frames asked for by index, and a FrameCache gives the same, bit for bit."""

import numpy as np
import pytest
from action_layouts import moving_square, write_frames, write_video
from PIL import Image
from test_cache import entries

from moss_vllm.video import cache as cache_module
from moss_vllm.video import cache_pieces
from moss_vllm.video.cache import FrameCache, choose_frame_reader
from moss_vllm.video.clip import Sampling, read_clip, read_frames
from moss_vllm.video.frames import BadVideo, scaled_size


@pytest.fixture(scope="module", params=["v.mp4", "v.webm", "folder"])
def video(request, tmp_path_factory):
    """A file or folder of 20 frames, not to be changed."""
    path = tmp_path_factory.mktemp("video") / request.param
    clip = moving_square(3, 20, 48, 64)
    write_frames(path, clip) if path.suffix == "" else write_video(path, clip)
    return path


def at(*indices):
    return lambda n_frames: np.array(indices)


def test_frames_come_as_they_were_written(video):
    frames = read_frames(video, np.arange)
    wanted = moving_square(3, 20, 48, 64)
    assert frames.shape == wanted.shape and frames.dtype == np.uint8
    assert np.abs(frames.astype(int) - wanted).mean() < 10
    for t in range(19):  # the square has moved: each is nearer to its own than to the next
        own, following = (np.abs(frames[t].astype(int) - wanted[i]).mean() for i in (t, t + 1))
        assert own < following


def test_any_order_and_repeats(video):
    whole, seen = read_frames(video, np.arange), []
    order = [7, 0, 19, 7, 7, 3]
    frames = read_frames(str(video), lambda n: seen.append(n) or np.array(order))
    np.testing.assert_array_equal(frames, whole[order])
    assert seen == [20]


def test_every_frame_is_what_read_clip_shows(video):
    clip = read_clip(video, Sampling(sample_fps=1000, short_side_px=None, max_frames=1000))
    assert len(clip.frames) == 20
    # read_clip makes sides multiples of 28
    np.testing.assert_array_equal(clip.frames, read_frames(video, np.arange, scale=(56, 56)))


@pytest.mark.parametrize(
    ("scale", "size"), [(24, (24, 32)), ((40, 30), (40, 30)), (None, (48, 64)), (48, (48, 64))]
)
def test_frames_are_scaled_on_the_way(video, scale, size):
    full = read_frames(video, at(2, 5))
    wanted = [np.asarray(Image.fromarray(f).resize(size[::-1], Image.Resampling.BICUBIC)) for f in full]
    if size == (48, 64):
        wanted = full
    frames = read_frames(video, at(2, 5), scale=scale)
    if video.suffix and size != (48, 64):  # FFmpeg scales stored colours, Pillow RGB that was rounded down
        assert frames.shape == (2, *size, 3) and np.abs(frames.astype(int) - wanted).mean() < 2.5
    else:
        np.testing.assert_array_equal(frames, wanted)


def test_sizes_are_rounded_as_torchvision_does():
    assert scaled_size(240, 427, 256) == (256, 455) and scaled_size(427, 240, 256) == (455, 256)
    assert scaled_size(360, 480, 224) == (224, 298) and scaled_size(100, 100, 56) == (56, 56)
    assert scaled_size(240, 427, (256, 320)) == (256, 320) and scaled_size(240, 427, None) == (240, 427)


@pytest.mark.parametrize("indices", [[20], [-1], [], [[1, 2]]])
def test_frames_that_are_not_there_are_refused(video, cache, indices):
    for read in (read_frames, cache.read_frames):
        with pytest.raises(ValueError, match="were chosen from 20, counted from 0"):
            read(video, lambda n: np.array(indices, int))


def test_a_damaged_file_is_named(tmp_path, cache):
    video = tmp_path / "v.mp4"
    write_video(video, moving_square(0, 40))
    video.write_bytes(video.read_bytes()[:-600])
    for read in (read_frames, cache.read_frames):
        with pytest.raises(BadVideo, match=r"v\.mp4"):
            read(video, np.arange)
        with pytest.raises(BadVideo, match="gone"):
            read(tmp_path / "gone.mp4", np.arange)
    assert entries(cache) == []


# ---- the cache


@pytest.mark.slow
@pytest.mark.parametrize("scale", [None, 24, (40, 30)])
def test_the_second_read_decodes_nothing_whatever_is_chosen(video, cache, no_decoder, scale):
    choices = [at(5, 1, 1), at(19), np.arange]
    wanted = [read_frames(video, choose, scale=scale) for choose in choices]
    np.testing.assert_array_equal(cache.read_frames(video, choices[0], scale=scale), wanted[0])
    no_decoder()
    for choose, frames in zip(choices, wanted, strict=True):
        np.testing.assert_array_equal(cache.read_frames(video, choose, scale=scale), frames)
        assert cache.read_frames(video, choose, scale=scale).flags.writeable
    assert len(entries(cache)) == 1


def test_each_scale_and_state_of_a_file_has_its_own_entry(tmp_path, cache):
    video = tmp_path / "v.mp4"
    write_video(video, moving_square(0))
    for scale in (None, 24, (24, 32)):
        cache.read_frames(video, np.arange, scale=scale)
    clip = cache.read(video, Sampling(short_side_px=28))
    assert len(entries(cache)) == 4
    write_video(video, moving_square(1, 11))
    assert len(cache.read_frames(video, np.arange)) == 11 and len(entries(cache)) == 5
    assert clip.frames.shape[1:] == (28, 28, 3) or clip.frames.shape[1:] == (28, 56, 3)


def test_frames_are_chosen_once_even_where_an_entry_is_damaged(video, cache, capsys):
    whole, drawn = read_frames(video, np.arange), []

    def choose(n_frames):
        drawn.append(n_frames)
        return np.array([4, 9])

    cache.read_frames(video, choose)
    (entry,) = entries(cache)
    data = bytearray(entry.read_bytes())
    data[-11 * 48 * 64 * 3 + 100] ^= 1  # one bit of frame 9; the frames are stored last
    entry.write_bytes(data)
    np.testing.assert_array_equal(cache.read_frames(video, choose), whole[[4, 9]])
    assert drawn == [20, 20]
    assert "damaged (its contents are not those that were written); removed" in capsys.readouterr().err
    np.testing.assert_array_equal(cache.read_frames(video, np.arange), whole)
    assert capsys.readouterr().err == ""


def test_a_few_frames_of_a_long_video_are_not_kept(video, cache, monkeypatch):
    monkeypatch.setattr(cache_module, "MAX_FRAMES", 19)
    np.testing.assert_array_equal(cache.read_frames(video, at(3)), read_frames(video, at(3)))
    assert entries(cache) == []


def test_a_part_of_a_long_video_is_kept_in_pieces(video, cache, monkeypatch, no_decoder):
    monkeypatch.setattr(cache_module, "MAX_FRAMES", 19)
    monkeypatch.setattr(cache_pieces, "PIECE", 4)
    whole = read_frames(video, np.arange)
    windows = [np.arange(2, 14, 2), np.array([6, 10, 8, 8]), np.arange(4, 20, 2)]
    for chosen in windows:  # every second frame: pieces 0, 2, 4, 6 and 8, 10, 12, 14 and 16, 18
        np.testing.assert_array_equal(cache.read_frames(video, lambda n, c=chosen: c[c < n]), whole[chosen])
    assert len(entries(cache)) == 1 + 3
    np.testing.assert_array_equal(cache.read_frames(video, lambda n: np.arange(n)), whole)  # pieces of 4
    assert len(entries(cache)) == 1 + 3 + 5
    no_decoder()
    for _ in range(2):  # also from a cache that is full by then
        for chosen in windows:
            np.testing.assert_array_equal(cache.read_frames(video, lambda n, c=chosen: c), whole[chosen])
        cache._close("no room")


def test_a_damaged_piece_is_decoded_again_and_a_full_cache_decodes(
    video, cache, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cache_module, "MAX_FRAMES", 19)
    monkeypatch.setattr(cache_pieces, "PIECE", 4)
    whole = read_frames(video, np.arange)
    cache.read_frames(video, np.arange)
    largest = max(entries(cache), key=lambda entry: entry.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[-100] ^= 1
    largest.write_bytes(data)
    np.testing.assert_array_equal(cache.read_frames(video, np.arange), whole)
    assert "damaged" in capsys.readouterr().err
    full = FrameCache(tmp_path / "full", max_gib=4e-6)  # room for the count, not for a piece
    for _ in range(2):
        np.testing.assert_array_equal(full.read_frames(video, np.arange), whole)
    assert len(entries(full)) <= 1 and "is full" in capsys.readouterr().err


def test_a_full_cache_decodes(video, tmp_path, capsys):
    cache = FrameCache(tmp_path / "small", max_gib=1e-6)
    for _ in range(2):
        np.testing.assert_array_equal(cache.read_frames(video, at(3, 2)), read_frames(video, at(3, 2)))
    assert entries(cache) == [] and "is full" in capsys.readouterr().err


def test_the_reader_is_chosen_by_the_folder(video, tmp_path):
    assert choose_frame_reader(None) is read_frames
    read = choose_frame_reader(tmp_path / "cache")
    np.testing.assert_array_equal(read(video, at(1), scale=24), read_frames(video, at(1), scale=24))
