"""Owns: a boundary model's test - every clip once, whatever kills it, by any number of processes."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch
from boundary_layouts import TEST, write_tapos
from stored_environments import edit_environment
from tiny_boundaries import CLIPS, MOSS, SLICES, WITHOUT, gebd, write_moving
from torch import nn

from moss_vllm.boundaries import testing
from moss_vllm.boundaries.batches import ClipSettings, read_slice
from moss_vllm.boundaries.predictions import pick_boundaries, read_predictions
from moss_vllm.boundaries.schema import collect_scores
from moss_vllm.boundaries.scores import score_boundaries, score_test
from moss_vllm.data.boundaries.datasets import read_boundaries
from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.line_store import Shard
from moss_vllm.runtime.versions import versions
from moss_vllm.video.clip import read_frames

HEADER = {"checkpoint": "step 1"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("kinetics")
    write_moving(root)
    return root


@pytest.fixture(scope="module")
def split(root):
    return read_boundaries("kinetics_gebd", root, "test")


@pytest.fixture(scope="module")
def tapos(tmp_path_factory):
    root = tmp_path_factory.mktemp("tapos")
    write_tapos(root)
    return read_boundaries("tapos", root, "test")


@pytest.fixture(scope="module", params=[MOSS, WITHOUT], ids=["MOSS", "none"])
def model(request):
    return gebd(**request.param)


@pytest.fixture(scope="module")
def plain():
    return gebd(**WITHOUT)


def run(model, split, folder, **how):
    given = {"header": HEADER, "workers": 0, "quiet": True, **how}
    return testing.find_boundaries(model, split, given.pop("clips", CLIPS), folder, **given)


def same(one, other):
    """Whether scores by clip are equal to the last bit, in the same order."""
    return list(one) == list(other) and all(
        np.array_equal(getattr(one[name], part), getattr(other[name], part))
        for name in one
        for part in ("numbers", "scores")
    )


def own_lines(folder):
    """The lines of all processes, without headers, as text by clip."""
    files = sorted((folder / "answers").glob("*.jsonl"))
    lines = [line for file in files for line in file.read_text().splitlines()[1:]]
    return {json.loads(line)["video_id"]: line for line in lines}


def test_a_clips_scores_are_those_of_its_frames(model, split, tmp_path):
    assert run(model, split, tmp_path) == 0
    found = collect_scores(tmp_path, split)
    assert list(found) == list(TEST)
    for video in split.videos:
        read = read_slice(video, 0, CLIPS)
        with torch.no_grad():
            expected = model(read.pixels[None])[0].sigmoid().numpy()
        assert found[video.video_id].numbers.tolist() == np.linspace(1, 100, 20).astype(int).tolist()
        np.testing.assert_allclose(found[video.video_id].scores, expected, atol=1e-6)
        assert len(np.unique(expected)) > 10


def test_a_clip_in_slices_is_scored_frame_by_frame_once(model, tapos, tmp_path):
    run(model, tapos, tmp_path, clips=SLICES)
    found = collect_scores(tmp_path, tapos)
    for video in tapos.videos:
        one = found[video.video_id]
        frames = max(1, int(video.duration_s / 0.1))
        assert len(one.numbers) == len(one.scores) == frames  # what fills the last slice has no score
        assert (np.diff(one.numbers) >= 0).all() and (one.numbers[0], one.numbers[-1]) == (1, video.frames)
    last = tapos.videos[0]
    slices = [read_slice(last, number, SLICES) for number in range(3)]
    with torch.no_grad():
        expected = [model(one.pixels[None])[0].sigmoid().numpy()[one.mask] for one in slices]
    np.testing.assert_allclose(found[last.video_id].scores, np.concatenate(expected), atol=1e-6)


def test_predictions_written_and_read_back_score_the_same(model, split, tmp_path):
    run(model, split, tmp_path)
    threshold = float(np.median(collect_scores(tmp_path, split)[TEST[0]].scores))
    scores = score_test(tmp_path, split, {"step": 1}, threshold=threshold)
    found = pick_boundaries(split, collect_scores(tmp_path, split), threshold)
    assert read_predictions(tmp_path / "predictions.json", split) == found and found[TEST[0]]
    assert read_predictions(tmp_path / "scores.json", split, threshold=threshold) == found
    again = score_boundaries(split, found)
    assert again.summary() == dataclasses.replace(scores, notes=again.notes).summary()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["F1@0.05"] == scores.mean["F1@0.05"] and result["failed"] == {} and result["step"] == 1
    assert result["threshold"] == threshold and result["rule"] == "official"
    assert read_boundaries(**result["split"], split="test") == split


def test_a_result_says_what_made_it_and_what_changed_in_between(model, split, tmp_path):
    run(model, split, tmp_path)
    now = edit_environment(tmp_path, lambda header: header["environment"].update(av="17.0.0"))
    assert versions().items() < now.items() and (now["device"], now["dtype"]) == ("cpu", "float32")
    assert run(model, split, tmp_path) == 0
    score_test(tmp_path, split, {}, threshold=0.3)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["environment"] == {**now, "av": "17.0.0"}
    assert result["notes"][1] == f"not everything was computed with the same: av 17.0.0 and {now['av']}"
    edit_environment(tmp_path, lambda header: header.pop("environment"))  # as earlier versions wrote it
    assert run(model, split, tmp_path) == 0
    score_test(tmp_path, split, {}, threshold=0.3)
    assert json.loads((tmp_path / "result.json").read_text())["environment"] == {}


# ---- nothing twice, nothing lost


def test_a_killed_test_goes_on_with_the_clips_that_are_left(model, split, tmp_path):
    run(model, split, tmp_path / "whole")
    run(model, split, tmp_path / "out")
    (file,) = (tmp_path / "out" / "answers").glob("*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    file.write_text("".join(lines[:2]) + lines[2][:300])  # killed while it wrote the second clip
    read = []

    def counted(path, *how, **more):
        read.append(path)
        return read_frames(path, *how, **more)

    assert run(model, split, tmp_path / "out", read=counted) == 0
    assert read == [video.path for video in split.videos[1:]]
    assert own_lines(tmp_path / "out") == own_lines(tmp_path / "whole")
    run(model, split, tmp_path / "out", read=counted)
    assert len(read) == 2
    run(model, split, tmp_path / "out", read=counted, overwrite=True)
    assert len(read) == 2 + 3


def test_a_killed_test_of_slices_begins_its_clip_again(model, tapos, tmp_path):
    run(model, tapos, tmp_path / "whole", clips=SLICES)
    read = []

    def killed(path, *how, **more):
        read.append(path)
        if len(read) == 2:
            raise KeyboardInterrupt
        return read_frames(path, *how, **more)

    with pytest.raises(KeyboardInterrupt):
        run(model, tapos, tmp_path / "out", clips=SLICES, read=killed)
    assert own_lines(tmp_path / "out") == {}
    run(model, tapos, tmp_path / "out", clips=SLICES)
    assert own_lines(tmp_path / "out") == own_lines(tmp_path / "whole")


def test_two_processes_share_the_clips(model, split, tmp_path):
    run(model, split, tmp_path / "whole")
    assert run(model, split, tmp_path / "out", shard=Shard(1, 2)) == 2
    assert list(collect_scores(tmp_path / "out", split)) == [TEST[1]]
    assert run(model, split, tmp_path / "out", shard=Shard(0, 2)) == 0
    assert own_lines(tmp_path / "out") == own_lines(tmp_path / "whole")
    assert same(collect_scores(tmp_path / "out", split), collect_scores(tmp_path / "whole", split))
    assert run(nn.Identity(), split, tmp_path / "none", shard=Shard(5, 6)) == 3  # no clip is its own


def test_workers_read_the_same(plain, split, tmp_path):
    run(plain, split, tmp_path / "here")
    run(plain, split, tmp_path / "there", workers=1)
    assert own_lines(tmp_path / "here") == own_lines(tmp_path / "there")


def test_a_store_of_another_test_is_refused(plain, split, tmp_path):
    run(plain, split, tmp_path)
    other = gebd(**WITHOUT)
    with torch.no_grad():
        other.head.classifier.out.bias += 1
    later = dataclasses.replace(split, videos=(dataclasses.replace(split.videos[0], duration_s=15.1),))
    for told, how in (
        (r"checkpoint was step 1, is step 2\)", {"header": {"checkpoint": "step 2"}}),
        (r"weights was \w{16}, is \w{16}\)", {"model": other}),
        (r"weights was \w{16}, is \w{16}\)", {"model": gebd(**MOSS)}),
        (r"dtype was torch.float32, is torch.bfloat16\)", {"dtype": torch.bfloat16}),
        (r"protocol.size_px was 32, is 48\)", {"clips": ClipSettings(20, 48)}),
        (r"protocol.sliced was False, is True\)", {"clips": dataclasses.replace(CLIPS, sliced=True)}),
        (r"questions was 3, is 1, data was \w{16}, is \w{16}\)", {"split": later}),
    ):
        given = {"model": plain, "split": split, **how}
        with pytest.raises(ValueError, match=rf"another run \({told}"):
            run(given.pop("model"), given.pop("split"), tmp_path, **given)


@pytest.fixture
def copy(root, tmp_path):
    """The split on a copy of its clips, and their folder."""
    shutil.copytree(root, tmp_path / "copy")
    return read_boundaries("kinetics_gebd", tmp_path / "copy", "test"), tmp_path / "copy" / "images" / "val"


def test_a_replaced_clip_is_noticed(plain, copy, tmp_path):
    split, clips = copy
    run(plain, split, tmp_path / "out")
    (clips / f"{TEST[0]}_000003_000013" / "00100.jpg").unlink()
    with pytest.raises(ValueError, match=rf"changed since .*: 1\n  {TEST[0]}: "):
        run(plain, split, tmp_path / "out")


# ---- what cannot be tested


def test_clips_that_cannot_be_read_are_named_and_missed(plain, copy, tmp_path, capsys):
    split, clips = copy
    video = clips / f"{TEST[1]}_000003_000013.mp4"
    video.write_bytes(video.read_bytes()[:3000])
    (clips / f"{TEST[2]}_000003_000013" / "00050.jpg").unlink()
    for _ in range(2):  # the second time nothing is left to do
        assert run(plain, split, tmp_path / "out") == 0
        scores = score_test(tmp_path / "out", split, {}, threshold=0.1)
        failed = json.loads((tmp_path / "out" / "result.json").read_text())["failed"]
        assert list(failed) == [TEST[1], TEST[2]] and "no frame 50" in failed[TEST[2]]
        assert scores.matches.missing == (TEST[2],)  # the raters of the other one disagree
        assert scores.notes[1] == f"clips that could not be read: 2 ({TEST[1]}, {TEST[2]})"
    told = capsys.readouterr().err
    assert told.count(f"clip {TEST[1]} not tested: ") == 1 and told.count("not tested") == 2


def test_a_clip_that_breaks_in_a_later_slice_has_no_scores(plain, split, tmp_path):
    source = split.videos[0]
    broken = shutil.copytree(source.path, tmp_path / "broken")
    (broken / "00061.jpg").write_bytes(b"no picture")
    videos = (dataclasses.replace(source, path=str(broken)), *split.videos[1:])
    damaged = dataclasses.replace(split, videos=videos)
    run(plain, damaged, tmp_path / "out", clips=SLICES)
    run(plain, split, tmp_path / "whole", clips=SLICES)
    found, whole = (own_lines(tmp_path / name) for name in ("out", "whole"))
    assert json.loads(found.pop(TEST[0]))["failed"].startswith(f"{broken}/00061.jpg: the image is no JPEG")
    whole.pop(TEST[0])
    assert found == whole


def test_outputs_that_are_not_finite_end_the_test(split, tmp_path):
    other = gebd(**WITHOUT)
    with torch.no_grad():
        other.head.classifier.out.bias[0] = float("nan")
    with pytest.raises(ValueError, match=rf"{TEST[0]}, slice 0: the model's outputs are NaN or infinite"):
        run(other, split, tmp_path)
    assert own_lines(tmp_path) == {}


def test_errors_of_memory_and_of_workers_are_named(plain, split, tmp_path):
    class Full(nn.Module):
        def forward(self, clips):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RunStopped, match="no memory for a clip of 20 frames of 32 x 32; test on another"):
        run(Full(), split, tmp_path / "memory")
    with pytest.raises(RunStopped, match=rf"died .status 3. while it read {split.videos[0].path}; "):
        run(plain, split, tmp_path / "workers", read=lambda *_, **__: os._exit(3), workers=1)
