"""Owns: FrameCache.read returns what read_clip returns, bit for bit, whatever happened to its files.

Also: it stays within its size, goes on without a disk to write to, and says each of these once.
"""

import errno
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from launching import ROOT, load_script
from PIL import Image
from video_files import write_pictures

from moss_vllm.video import cache as cache_module
from moss_vllm.video.cache import FrameCache, choose_reader, describe_clip
from moss_vllm.video.clip import Clip, Sampling, read_clip
from moss_vllm.video.frames import BadVideo

SMALL = Sampling(sample_fps=2, short_side_px=56, max_frames=6)
ENTRY_BYTES = 4 * 56 * 84 * 3  # of the clips below: 2 s


def write(path, seed=0, frames=20):
    noise = np.random.default_rng(seed).integers(0, 255, (8, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return write_pictures(path, [np.roll(noise, 3 * i, 1) for i in range(frames)])


@pytest.fixture
def video(tmp_path):
    return write(tmp_path / "v.mp4")


def assert_same(clip, expected):
    for name in ("frames", "frame_times_s"):
        found, wanted = getattr(clip, name), getattr(expected, name)
        assert found.dtype == wanted.dtype and found.flags.writeable
        np.testing.assert_array_equal(found, wanted)


def entries(cache):
    return sorted(cache.folder.glob("??/*.safetensors"))


@pytest.mark.parametrize(
    "settings", [{}, {"start_s": 0.35, "end_s": 1.6}, {"sampling": replace(SMALL, short_side_px=None)}]
)
def test_second_read_is_equal_and_decodes_nothing(video, cache, no_decoder, settings):
    settings = {"sampling": SMALL} | settings
    expected = read_clip(video, **settings)
    assert_same(cache.read(video, **settings), expected)
    no_decoder()
    assert_same(cache.read(video, **settings), expected)
    side = settings["sampling"].short_side_px
    in_floats = {"sampling": Sampling(2.0, side and float(side), 6.0)}
    assert_same(cache.read(str(video), **settings | in_floats), expected)


def test_defaults_are_those_of_read_clip(video, cache):
    assert_same(cache.read(video), read_clip(video))
    assert choose_reader(None) is read_clip
    assert_same(choose_reader(cache.folder)(video), read_clip(video))


def test_entries_of_an_earlier_format_are_not_served(video, cache, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(cache_module, "FORMAT", cache_module.FORMAT - 1)
        other = Clip(np.zeros_like(read_clip(video, SMALL).frames), read_clip(video, SMALL).frame_times_s)
        earlier.setattr(cache_module, "read_clip", lambda path, **settings: other)
        assert_same(cache.read(video, SMALL), other)
        every = cache.read_frames(video, np.arange)
    assert_same(cache.read(video, SMALL), read_clip(video, SMALL))
    np.testing.assert_array_equal(cache.read_frames(video, np.arange), every)
    assert len(entries(cache)) == 4


def test_every_setting_has_its_own_entry(video, cache):
    fields = [{"sample_fps": 3}, {"short_side_px": 28}, {"short_side_px": None}, {"max_frames": 3}]
    settings = [{"sampling": replace(SMALL, **field)} for field in [{}, *fields]]
    settings += [{"sampling": SMALL, "start_s": 0.5}, {"sampling": SMALL, "end_s": 1.0}]
    for each in settings:
        cache.read(video, **each)
    for each in settings:
        assert_same(cache.read(video, **each), read_clip(video, **each))
    assert len(entries(cache)) == len(settings)


def test_changed_file_is_decoded_again(video, cache):
    cache.read(video, SMALL)
    stat = video.stat()
    write(video, seed=1)
    assert_same(cache.read(video, SMALL), read_clip(video, SMALL))
    os.utime(video, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    cache.read(video, SMALL)
    assert len(entries(cache)) == 3


def test_frame_folder_is_known_by_its_images(tmp_path, cache, no_decoder):
    folder = tmp_path / "frames_of_video"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(np.full((56, 84, 3), 30 * i, np.uint8)).save(folder / f"{i}.png")
    old = cache.read(folder, SMALL)
    image = folder / "3.png"  # 2.png is not sampled
    stat = image.stat()
    Image.fromarray(np.full((56, 84, 3), 255, np.uint8)).save(image)
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    new = cache.read(folder, SMALL)
    assert (new.frames != old.frames).any()
    assert_same(new, read_clip(folder, SMALL))
    (folder / "notes.txt").touch()
    no_decoder()
    cache.read(folder, SMALL)


def flip(entry):
    data = bytearray(entry.read_bytes())
    data[-1000] ^= 1
    entry.write_bytes(data)


DAMAGES = {
    "one bit": flip,
    "cut short": lambda entry: os.truncate(entry, entry.stat().st_size - 1),
    "empty": lambda entry: os.truncate(entry, 0),
    "zeros": lambda entry: entry.write_bytes(bytes(entry.stat().st_size)),
    "text": lambda entry: entry.write_text("no tensors"),
    "times as integers": lambda entry: entry.write_bytes(entry.read_bytes().replace(b'"F64"', b'"I64"')),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_entry_is_named_and_decoded_again(video, cache, capsys, damage):
    expected = cache.read(video, SMALL)
    (entry,) = entries(cache)
    DAMAGES[damage](entry)
    assert_same(cache.read(video, SMALL), expected)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(entry) in said and "damaged" in said
    assert_same(cache.read(video, SMALL), expected)
    assert capsys.readouterr().err == ""


def test_entry_of_another_clip_is_refused(tmp_path, video, cache, capsys):
    other = write(tmp_path / "other.mp4", seed=1)
    cache.read(other, SMALL)
    (wrong,) = entries(cache)
    place = cache.entry(describe_clip(video, SMALL))
    place.parent.mkdir(exist_ok=True)
    shutil.copy(wrong, place)
    assert_same(cache.read(video, SMALL), read_clip(video, SMALL))
    assert str(place) in capsys.readouterr().err


def test_full_cache_adds_nothing_and_says_so_once(tmp_path, capsys):
    videos = [write(tmp_path / f"{i}.mp4", seed=i) for i in range(5)]
    cache = FrameCache(tmp_path / "frames", max_gib=2.9 * ENTRY_BYTES / 2**30)
    clips = [pickle.loads(pickle.dumps(cache)).read(video, SMALL) for video in videos]
    assert len(entries(cache)) == 2
    for video, clip in zip(videos, clips, strict=True):
        assert_same(clip, read_clip(video, SMALL))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "full" in said and "raise the limit" in said

    again = FrameCache(cache.folder, max_gib=3.9 * ENTRY_BYTES / 2**30)  # counts what is there
    for video in videos:
        again.read(video, SMALL)
    assert len(entries(cache)) == 3
    assert again.used_bytes() >= sum(entry.stat().st_size for entry in entries(cache))


def read_with(cache, video):
    return cache.read(video, SMALL).frames.sum()


@pytest.mark.slow
def test_many_processes_keep_to_the_limit(tmp_path):
    first = write(tmp_path / "0.mp4")
    videos = [shutil.copy(first, tmp_path / f"{i}.mp4") for i in range(1, 41)]
    cache = FrameCache(tmp_path / "frames", max_gib=20 * ENTRY_BYTES / 2**30)
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        sums = set(pool.map(read_with, [cache] * 80, [*videos, *videos]))
    assert len(sums) == 1
    assert 12 <= len(entries(cache)) <= 20 + 4
    assert not list(cache.folder.glob("*/.*.part"))


class Reads:
    def __init__(self, cache, videos):
        self.cache, self.videos = cache, videos

    def __len__(self):
        return len(self.videos)

    def __getitem__(self, index):
        return self.cache.read(self.videos[index], SMALL).frames


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers(tmp_path, cache, method):
    from torch.utils.data import DataLoader  # here, for the children of the test above need no torch

    videos = [write(tmp_path / f"{i}.mp4", seed=i) for i in range(3)] * 2
    workers = 2 if method == "fork" else 1
    loader = DataLoader(
        Reads(cache, videos), batch_size=None, num_workers=workers, multiprocessing_context=method
    )
    for video, frames in zip(videos, loader, strict=True):
        np.testing.assert_array_equal(frames, read_clip(video, SMALL).frames)
    assert len(entries(cache)) == 3


def test_evaluation_reads_through_it(tmp_path, world, tiny_base, no_decoder):
    module, data = load_script(ROOT / "eval" / "motionbench.py"), world / "MotionBench"
    flags = ["--data", data, "--ckpt", tiny_base, "--limit", 3, "--protocol", "letter", "--short-side-px", 56]

    def outputs(name, *more):
        result = module.main([str(flag) for flag in [*flags, "--out", tmp_path / name, *more]])
        return [record["output"] for record in result.records]

    plain = outputs("plain")
    assert outputs("filling", "--cache", tmp_path / "cache") == plain
    no_decoder()
    assert outputs("cached", "--cache", tmp_path / "cache") == plain
    assert entries(FrameCache(tmp_path / "cache"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_disk_that_refuses_is_told_once(tmp_path, cache, monkeypatch, capsys, code):
    def refuse(path, data):
        with open(path, "wb") as file:
            file.write(data[:100])
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    for i in range(3):
        video = write(tmp_path / f"{i}.mp4", seed=i)
        assert_same(cache.read(video, SMALL), read_clip(video, SMALL))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and os.strerror(code) in said and "free space" in said
    assert not list(cache.folder.glob("??/*")) and not list(cache.folder.glob("??/.*"))


def test_file_that_changes_while_it_is_read_is_not_stored(video, cache, monkeypatch):
    def slow_copy(path, **settings):
        clip = read_clip(path, **settings)
        os.utime(path, ns=(0, 0))
        return clip

    monkeypatch.setattr(cache_module, "read_clip", slow_copy)
    cache.read(video, SMALL)
    assert entries(cache) == []


@pytest.mark.parametrize("settings", [{}, {"start_s": 99.0}])
@pytest.mark.parametrize("kind", ["text", "missing", "empty folder"])
def test_bad_video_is_the_same_error(tmp_path, cache, kind, settings):
    path = tmp_path / "bad.mp4"
    if kind == "text":
        path.write_text("no video")
    elif kind == "empty folder":
        path.mkdir()
    errors = []
    for read in (read_clip, cache.read, cache.read):
        with pytest.raises(BadVideo) as caught:
            read(path, SMALL, **settings)
        errors.append(str(caught.value))
    assert len(set(errors)) == 1 and entries(cache) == []


def test_wrong_arguments_are_refused(tmp_path, video, cache):
    with pytest.raises(ValueError, match="sample_fps is nan"):
        cache.read(video, Sampling(sample_fps=float("nan")))
    with pytest.raises(ValueError, match="max_gib is 0"):
        FrameCache(tmp_path / "x", max_gib=0)


def test_what_killed_processes_left_is_cleared(video, cache):
    cache.read(video, SMALL)
    (entry,) = entries(cache)
    old, new = entry.with_name(".a.part"), entry.with_name(".b.part")
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    FrameCache(cache.folder, max_gib=1)
    assert not old.exists() and new.exists() and entry.exists()
