"""Owns: after cache_frames.py training decodes nothing, and the disk is not filled by surprise.

The fast tests run `run_isolated` in this process; the slow one runs real child processes.
"""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_processors import tiny_model

from moss_vllm.commands.scripts import cache_frames
from moss_vllm.video import cache as cache_module
from moss_vllm.video.cache import FrameCache
from moss_vllm.video.clip import Sampling, read_clip
from moss_vllm.video.frames import FrameSize

SCRIPT = cache_frames
SAMPLING = Sampling(sample_fps=2.0, short_side_px=56)
FLAGS = ["--short-side-px", "56", "--workers", "2"]
ENTRY_BYTES = 3 * 56 * 84 * 3


def write_gif(path, seed):
    """1.5 s at 10 fps; a gif is quick to write."""
    noise = np.random.default_rng(seed).integers(0, 255, (56, 84, 3), np.uint8)
    first, *others = (Image.fromarray(np.roll(noise, 3 * i, 1)) for i in range(15))
    first.save(path, save_all=True, append_images=others, duration=100)
    return path


@pytest.fixture
def data(tmp_path):
    """FAVOR-Train's layout: six clips, one of them bad, and a row without a video."""
    root = tmp_path / "FAVOR"
    root.mkdir()
    for i in range(5):
        write_gif(root / f"{i}.gif", i)
    (root / "bad.gif").write_text("?")
    names = [*(f"{i}.gif" for i in range(5)), "bad.gif", "nowhere.mp4"]
    (root / "train.json").write_text(json.dumps([{"video_name": n, "caption": "It moves."} for n in names]))
    return root


def fill(data, cache, *flags):
    return cache_frames.main(["--data", str(data), "--cache", str(cache), *FLAGS, *flags])


def names_in(cache):
    return list(cache.glob("??/*.safetensors"))


def test_training_finds_every_clip(tmp_path, data, here, capsys, monkeypatch):
    cache = tmp_path / "cache"
    assert fill(data, cache) == 1
    out = capsys.readouterr().out
    assert "5 of 6 clips are in" in out and "0 were there, 5 added" in out and "1 bad, 1 rows without" in out
    bad = [json.loads(line) for line in (cache / "bad.jsonl").read_text().splitlines()]
    assert [line["path"] for line in bad] == [None, str(data / "bad.gif")]
    assert "row 6" in bad[0]["rows"][0] and bad[1]["rows"] == ["bad.gif"]
    expected = [read_clip(data / f"{i}.gif", SAMPLING) for i in range(5)]
    monkeypatch.setattr(cache_module, "read_clip", None)
    for i in range(5):
        clip = FrameCache(cache).read(data / f"{i}.gif", SAMPLING)
        np.testing.assert_array_equal(clip.frames, expected[i].frames)


@pytest.mark.parametrize(("kind", "sides"), [("qwen3_vl", FrameSize(32)), ("smolvlm", FrameSize(16, 16))])
def test_the_sides_are_those_of_the_models_family(tmp_path, data, here, monkeypatch, kind, sides):
    model, processor = tiny_model(kind)
    model.save_pretrained(tmp_path / kind)
    processor.save_pretrained(tmp_path / kind)
    assert fill(data, tmp_path / "cache", "--model", str(tmp_path / kind)) == 1
    sampling = Sampling(2.0, sides.square_px or 56, 180, sides)
    expected = read_clip(data / "0.gif", sampling)
    monkeypatch.setattr(cache_module, "read_clip", None)
    clip = FrameCache(tmp_path / "cache").read(data / "0.gif", sampling)
    np.testing.assert_array_equal(clip.frames, expected.frames)
    assert clip.frames.shape[1:3] == ((16, 16) if sides.square_px else (64, 96))
    with pytest.raises(TypeError):  # no entry of VideoLLaMA3's sides
        FrameCache(tmp_path / "cache").read(data / "0.gif", SAMPLING)


def test_what_is_there_is_skipped(tmp_path, data, here, capsys):
    cache = tmp_path / "cache"
    fill(data, cache)
    assert len(here) == 6
    names_in(cache)[0].unlink()
    here.clear()
    (data / "bad.gif").unlink()
    write_gif(data / "bad.gif", 9)
    capsys.readouterr()
    (data / "train.json").write_text((data / "train.json").read_text().replace("nowhere.mp4", "5.gif"))
    shutil.copy(data / "4.gif", data / "5.gif")
    assert fill(data, cache) == 0
    assert len(here) == 3 and {"bad.gif", "5.gif"} <= set(here)
    assert "7 of 7 clips are in" in capsys.readouterr().out
    here.clear()
    assert fill(data, cache) == 0 and here == []
    assert fill(data, cache, "--sample-fps", "4") == 0 and len(here) == 7
    assert len(names_in(cache)) == 14


def test_size_is_told_and_a_small_disk_refused(tmp_path, data, here, capsys, monkeypatch):
    monkeypatch.setattr(cache_frames, "MEASURED", 2)
    usage = namedtuple("usage", "free")
    free = 1.5 * ENTRY_BYTES
    monkeypatch.setattr(cache_frames.shutil, "disk_usage", lambda path: usage(free))
    cache = tmp_path / "cache"
    with pytest.raises(SystemExit) as caught:
        fill(data, cache)
    assert caught.value.code == 2 and len(names_in(cache)) == 2
    err = capsys.readouterr().err
    assert "expected: 0.00 GiB for " in err and "from 2 drawn at random" in err
    assert "are needed; free space, name another --cache" in err and "--cache-gib" in err
    # a part that fits is taken
    fill(data, cache, "--cache-gib", str(3.3 * ENTRY_BYTES / 2**30))
    assert len(names_in(cache)) == 3
    free = 100 * ENTRY_BYTES
    fill(data, cache)
    assert len(names_in(cache)) == 5


def test_limit_stops_it(tmp_path, data, here, capsys):
    cache = tmp_path / "cache"
    status = fill(data, cache, "--cache-gib", str(2.5 * ENTRY_BYTES / 2**30))
    out, err = capsys.readouterr()
    assert len(names_in(cache)) == 2 and "2 of 6 clips are in" in out and "took no more" in out
    assert err.count("full") == 1 and status == 1  # a row without a video
    assert len(here) <= 4  # the rest was not even decoded


def test_disk_that_fills_up_stops_it_with_status_2(tmp_path, data, here, capsys, monkeypatch):
    def refuse(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert fill(data, tmp_path / "cache") == 2
    assert "No space left" in capsys.readouterr().err and len(here) <= 2


def test_file_that_changes_meanwhile_is_named(tmp_path, data, here, monkeypatch):
    def touching(path, **settings):
        clip = read_clip(path, **settings)
        os.utime(path)
        return clip

    monkeypatch.setattr(cache_module, "read_clip", touching)
    assert fill(data, tmp_path / "cache") == 1
    reasons = [json.loads(line)["reason"] for line in open(tmp_path / "cache" / "bad.jsonl")]
    assert sum("changed while it was read" in reason for reason in reasons) == 5
    assert names_in(tmp_path / "cache") == []


@pytest.mark.slow
def test_with_child_processes(tmp_path, data, capfd):
    assert fill(data, tmp_path / "cache") == 1
    out, err = capfd.readouterr()
    assert "5 of 6 clips are in" in out and "bad.gif: not a video" in err
    assert len(names_in(tmp_path / "cache")) == 5
    assert fill(data, tmp_path / "cache", "--cache-gib", "1") == 1
    assert "5 were there, 0 added" in capfd.readouterr().out
