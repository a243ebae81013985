"""Owns: a detector's test - every video once, whatever kills it, by any number of processes."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch
from detection_layouts import CLASSES, TEST
from stored_environments import edit_environment
from tiny_detector import MOSS, PIXELS, WINDOWS, WITHOUT, detector
from torch import nn

from moss_vllm.data.detection.datasets import read_detection
from moss_vllm.detection import testing
from moss_vllm.detection.decoding import DecodeSettings, decode_windows, merge_windows
from moss_vllm.detection.pixels import PixelSettings, fill_up, read_window
from moss_vllm.detection.points import pyramid_points
from moss_vllm.detection.predictions import read_predictions
from moss_vllm.detection.schema import collect_detections
from moss_vllm.detection.scores import class_table, score_detections, score_test
from moss_vllm.detection.windows import windows_to_test
from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.line_store import Shard
from moss_vllm.runtime.versions import versions
from moss_vllm.video.clip import read_frames

HEADER = {"checkpoint": "step 1"}


@pytest.fixture(scope="module", params=[MOSS, WITHOUT], ids=["MOSS", "none"])
def model(request, encoder):
    return detector(encoder, **request.param)


@pytest.fixture(scope="module")
def plain(encoder):
    return detector(encoder, **WITHOUT)


def run(model, split, folder, **how):
    given = {"header": HEADER, "workers": 0, "quiet": True, **how}
    pixels, windows = given.pop("pixels", PIXELS), given.pop("windows", WINDOWS)
    return testing.detect_videos(model, split, windows, pixels, folder, **given)


def same(one, other):
    """Whether detections by video are equal to the last bit, in the same order."""
    return list(one) == list(other) and all(
        np.array_equal(getattr(one[name], part), getattr(other[name], part))
        for name in one
        for part in ("segments_s", "scores", "labels")
    )


def own_lines(folder):
    """The lines of all processes, without headers, as text by video."""
    files = sorted((folder / "answers").glob("*.jsonl"))
    lines = [line for file in files for line in file.read_text().splitlines()[1:]]
    return {json.loads(line)["video_id"]: line for line in lines}


def test_a_videos_detections_are_those_of_its_windows(model, split, tmp_path):
    assert run(model, split, tmp_path) == 0
    found = collect_detections(tmp_path, split)
    assert list(found) == list(TEST)
    video = split.videos[0]
    windows = []
    for window in windows_to_test(video, video.frames, WINDOWS):
        frames = np.ascontiguousarray(read_window(video, window, short_side_px=32)[:, :, 5:37])
        with torch.no_grad():
            levels = model(fill_up(frames, window)[None], torch.from_numpy(window.mask)[None])
        points = pyramid_points([mask.shape[1] for *_, mask in levels])
        windows += decode_windows(levels, points, [(video, window.start_frame)], DecodeSettings(), stride=2)
    expected = merge_windows(windows, DecodeSettings())
    assert same({"v": found[video.video_id]}, {"v": expected}) and len(expected) > 500
    assert len(np.unique(expected.scores)) > 50 and set(expected.labels) == {0, 1, 2}


def test_predictions_written_and_read_back_score_the_same(model, split, tmp_path):
    run(model, split, tmp_path)
    scores = score_test(tmp_path, split, {"step": 1})
    found = read_predictions(tmp_path / "predictions.json", CLASSES)
    assert same(found, collect_detections(tmp_path, split))
    assert score_detections(split, found) == scores
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["mAP"] == scores.mean and result["failed"] == {} and result["step"] == 1
    assert result["actions"] == split.actions == 5 and result["videos"] == 3
    table = class_table(scores, CLASSES)
    assert list(table.rows) == list(CLASSES)
    assert table.rows["Diving"]["classes"]["actions"] == 2
    assert table.rows["Diving"]["classes"]["0.3"] == scores.classes[2][0]


def test_a_result_says_what_made_it_and_what_changed_in_between(plain, split, tmp_path):
    run(plain, split, tmp_path)
    now = edit_environment(tmp_path, lambda header: header["environment"].update(av="17.0.0"))
    assert versions().items() < now.items() and (now["device"], now["dtype"]) == ("cpu", "float32")
    assert run(plain, split, tmp_path) == 0
    score_test(tmp_path, split, {})
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["environment"] == {**now, "av": "17.0.0"}
    assert result["notes"][-1] == f"not everything was computed with the same: av 17.0.0 and {now['av']}"
    edit_environment(tmp_path, lambda header: header.pop("environment"))  # as earlier versions wrote it
    assert run(plain, split, tmp_path) == 0
    score_test(tmp_path, split, {})
    assert json.loads((tmp_path / "result.json").read_text())["environment"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [2, 100])
def test_how_many_windows_at_once_changes_next_to_nothing(model, split, tmp_path, batch_size):
    run(model, split, tmp_path / "one")
    run(model, split, tmp_path / "more", batch_size=batch_size)
    one, other = (
        score_detections(split, collect_detections(tmp_path / name, split)) for name in ("one", "more")
    )
    assert one.mean == pytest.approx(other.mean, abs=0.5)  # ties may fall another way


def test_no_batch_has_windows_of_two_videos(split):
    dataset = testing.DetectionTestSet(split.videos, WINDOWS, PIXELS)
    assert dataset.batches(4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8], [9, 10, 11, 12], [13], [14]]
    assert dataset.name(9) == split.videos[1].path and len(dataset) == 15


# ---- nothing twice, nothing lost


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_killed_test_goes_on_with_the_videos_that_are_left(model, split, tmp_path, batch_size):
    run(model, split, tmp_path / "whole", batch_size=batch_size)
    run(model, split, tmp_path / "out", batch_size=batch_size)
    (file,) = (tmp_path / "out" / "answers").glob("*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    file.write_text("".join(lines[:2]) + lines[2][:1000])  # killed while it wrote the second video
    read = []

    def counted(path, *how, **more):
        read.append(path)
        return read_frames(path, *how, **more)

    assert run(model, split, tmp_path / "out", batch_size=batch_size, read=counted) == 0
    assert set(read) == {video.path for video in split.videos[1:]} and len(read) == 5 + 1
    assert own_lines(tmp_path / "out") == own_lines(tmp_path / "whole")
    run(model, split, tmp_path / "out", read=counted)
    assert len(read) == 6
    run(model, split, tmp_path / "out", read=counted, overwrite=True)
    assert len(read) == 6 + 15


def test_two_processes_share_the_videos(model, split, tmp_path):
    run(model, split, tmp_path / "whole")
    assert run(model, split, tmp_path / "out", shard=Shard(1, 2)) == 2
    assert list(collect_detections(tmp_path / "out", split)) == [TEST[1]]
    assert run(model, split, tmp_path / "out", shard=Shard(0, 2)) == 0
    assert own_lines(tmp_path / "out") == own_lines(tmp_path / "whole")
    assert same(collect_detections(tmp_path / "out", split), collect_detections(tmp_path / "whole", split))
    assert run(nn.Identity(), split, tmp_path / "none", shard=Shard(5, 6)) == 3  # no video is its own


def test_workers_read_the_same(plain, split, tmp_path):
    run(plain, split, tmp_path / "here")
    run(plain, split, tmp_path / "there", workers=2, batch_size=1)
    assert own_lines(tmp_path / "here") == own_lines(tmp_path / "there")


def test_a_store_of_another_test_is_refused(plain, encoder, split, tmp_path):
    run(plain, split, tmp_path)
    other = detector(encoder, **WITHOUT)
    with torch.no_grad():
        other.detector.head.cls_out.bias += 1
    later = dataclasses.replace(split, videos=(dataclasses.replace(split.videos[0], duration_s=15.1),))
    for told, how in (
        (r"checkpoint was step 1, is step 2\)", {"header": {"checkpoint": "step 2"}}),
        (r"weights was \w{16}, is \w{16}\)", {"model": other}),
        (r"dtype was torch.float32, is torch.bfloat16\)", {"dtype": torch.bfloat16}),
        (r"protocol.size_px was 32, is 48\)", {"pixels": PixelSettings(48)}),
        (r"protocol.stride was 2, is 3\)", {"windows": dataclasses.replace(WINDOWS, stride=3)}),
        (r"protocol.sigma was 0.7, is 0.5\)", {"decode": DecodeSettings(sigma=0.5)}),
        (r"questions was 3, is 1, data was \w{16}, is \w{16}\)", {"split": later}),
    ):
        given = {"model": plain, "split": split, **how}
        with pytest.raises(ValueError, match=rf"another run \({told}"):
            run(given.pop("model"), given.pop("split"), tmp_path, **given)
    training_alone = dataclasses.replace(WINDOWS, kept_share=0.5, validation_overlap=0.5)
    assert run(plain, split, tmp_path, windows=training_alone) == 0


def test_what_a_process_counts_for_its_loss_is_no_other_test(plain, encoder, split, tmp_path):
    run(plain, split, tmp_path)
    other = detector(encoder, **WITHOUT)
    for statistic in other.loss.buffers():
        statistic += 1
    assert run(other, split, tmp_path) == 0


@pytest.fixture
def copy(split, thumos_root, tmp_path):
    """The split on a copy of its videos, and their folder."""
    shutil.copytree(thumos_root, tmp_path / "copy")
    return read_detection("thumos14", tmp_path / "copy", "test"), tmp_path / "copy" / "raw_data" / "video"


def test_a_replaced_video_is_noticed(plain, copy, tmp_path):
    split, videos = copy
    run(plain, split, tmp_path / "out")
    shutil.copy(videos / f"{TEST[2]}.mp4", videos / "same.mp4")
    (videos / "same.mp4").replace(videos / f"{TEST[2]}.mp4")  # a copy is no other video
    assert run(plain, split, tmp_path / "out") == 0
    shutil.copy(videos / f"{TEST[0]}.mp4", videos / f"{TEST[2]}.mp4")
    (videos / TEST[1] / "00007.jpg").unlink()
    with pytest.raises(ValueError, match=rf"changed since .*: 2\n  {TEST[1]}: .*\n  {TEST[2]}: .* bytes"):
        run(plain, split, tmp_path / "out")


# ---- what cannot be tested


def test_videos_that_cannot_be_read_are_named_and_their_actions_count_as_missed(
    plain, copy, tmp_path, capsys
):
    split, videos = copy
    whole = (videos / f"{TEST[0]}.mp4").read_bytes()
    (videos / f"{TEST[0]}.mp4").write_bytes(whole[: len(whole) // 2])
    for number in range(60, 95):
        (videos / TEST[1] / f"{number:05d}.jpg").unlink()
    for _ in range(2):  # the second time nothing is left to do
        assert run(plain, split, tmp_path / "out") == 0
        scores = score_test(tmp_path / "out", split, {})
        failed = json.loads((tmp_path / "out" / "result.json").read_text())["failed"]
        assert list(failed) == [TEST[0], TEST[1]] and scores.videos == 3 and sum(scores.actions.values()) == 5
        assert failed[TEST[1]].startswith(f"{videos / TEST[1]}: 59 frames are there, the annotation of ")
        assert scores.classes[2] == (0.0,) * 5  # both dives
        note = f"videos that could not be read, whose actions count as missed: 2 ({TEST[0]}, {TEST[1]})"
        assert scores.notes[0] == note
    told = capsys.readouterr().err
    assert told.count(f"video {TEST[0]} not tested: ") == 1 and "59 frames are there" in told


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("image", ["00061.jpg", "00093.jpg"])  # shown by the third window, and by the last
def test_a_video_that_breaks_on_the_way_has_no_detections(plain, split, tmp_path, image, batch_size):
    """The windows before the damage are good; a video is tested whole or not at all."""
    _, folder, _ = split.videos
    broken = shutil.copytree(folder.path, tmp_path / "broken")
    (broken / image).write_bytes(b"no picture")
    videos = (split.videos[0], dataclasses.replace(folder, path=str(broken)), split.videos[2])
    run(plain, split, tmp_path / "whole", batch_size=batch_size)
    damaged = dataclasses.replace(split, videos=videos)
    run(plain, damaged, tmp_path / "out", batch_size=batch_size)
    found, whole = (own_lines(tmp_path / name) for name in ("out", "whole"))
    assert json.loads(found.pop(TEST[1]))["failed"].startswith(f"{broken}/{image}: the image is no JPEG")
    whole.pop(TEST[1])
    assert found == whole


def test_outputs_that_are_not_finite_end_the_test(plain, encoder, split, tmp_path):
    other = detector(encoder, **WITHOUT)
    with torch.no_grad():
        other.detector.head.cls_out.bias[0] = float("nan")
    with pytest.raises(ValueError, match=rf"{TEST[0]}, window at frame 0: the detector's outputs are NaN"):
        run(other, split, tmp_path)
    assert own_lines(tmp_path) == {}


def test_errors_of_memory_and_of_workers_are_named(plain, split, tmp_path):
    class Full(nn.Module):
        def forward(self, clips, mask):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RunStopped, match="no memory for 4 windows at once; lower --batch-size;"):
        run(Full(), split, tmp_path / "memory", batch_size=4)
    with pytest.raises(RunStopped, match=rf"died .status 3. while it read {split.videos[0].path}; "):
        run(plain, split, tmp_path / "workers", read=lambda *_, **__: os._exit(3), workers=1)


def test_a_line_whose_columns_do_not_fit_is_named(plain, split, tmp_path):
    run(plain, split, tmp_path)
    (file,) = (tmp_path / "answers").glob("*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    row = json.loads(lines[2])
    row["answers"][0]["labels"].pop()
    file.write_text("".join([*lines[:2], json.dumps(row) + "\n", lines[3]]))
    with pytest.raises(ValueError, match=r"jsonl: line 3 is no line of an answer store .*scores and"):
        collect_detections(tmp_path, split)
