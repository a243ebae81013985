"""Owns: a test's scores - views averaged, every clip counted, nothing scored twice."""

import csv
import json
import os
from functools import partial

import pytest
import torch
from stored_environments import edit_environment
from torch import nn

from moss_vllm.data.actions.datasets import ActionClip, ActionSplit
from moss_vllm.recognition.batches import ActionTestSet
from moss_vllm.recognition.scores import Accuracy, collect_clips, save_accuracy
from moss_vllm.recognition.testing import score_clips
from moss_vllm.recognition.views import ViewSettings
from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.line_store import Shard
from moss_vllm.runtime.versions import versions
from moss_vllm.video.clip import read_frames

VIEWS = ViewSettings(frames=2, size_px=16, train_scale=24, test_scale=24, clips=2, crops=3, repeats=2)
HEADER = {"checkpoint": "step 1"}


class Colours(nn.Module):
    """Scores that differ from view to view, and a count of the clips' views seen."""

    def __init__(self, classes=7):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, classes, generator=torch.Generator().manual_seed(0)))
        self.seen = 0

    def forward(self, video):
        self.seen += len(video)
        half = video.shape[-1] // 2
        means = [part.mean((1, 3, 4)) for part in (video[..., :half], video[..., half:])]
        return torch.cat(means, dim=1) @ self.weight


def score(split, folder, model=None, **how):
    given = {"header": HEADER, "workers": 0, "quiet": True, "batch_size": 3, **how}
    return score_clips(model or Colours(), split, VIEWS, folder, **given)


def test_a_clips_scores_are_the_mean_of_its_views_softmax(split, tmp_path):
    model = Colours()
    found = score(split, tmp_path / "out", model)
    assert model.seen == 7 * 6 and found.pending == 0 and not found.failed
    assert [row["uid"] for row in found.rows] == [f"clip {index}" for index in range(7)]
    dataset = ActionTestSet(split, VIEWS)
    for index, row in enumerate(found.rows):
        _, views, label = dataset[index]
        assert views.shape == (6, 2, 3, 16, 16)
        each = Colours()(views).softmax(-1)
        likely = sum(each) / 6
        assert not torch.allclose(each[0], likely, atol=1e-3)  # the views do not say the same
        order = likely.argsort(descending=True)[:5].tolist()
        assert [name for name, _ in row["top5"]] == [split.classes[place] for place in order]
        assert [share for _, share in row["top5"]] == pytest.approx(likely[order].tolist(), abs=1e-6)
        assert row["answer"] == row["task"] == split.classes[label]
        assert row["output"] == row["parsed"] == split.classes[order[0]]
        assert (row["correct"], row["in_top5"]) == (order[0] == label, label in order)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_how_many_clips_at_once_changes_nothing(split, tmp_path, batch_size):
    expected = score(split, tmp_path / "three").rows
    rows = score(split, tmp_path / "other", batch_size=batch_size).rows
    assert [(row["uid"], row["output"], row["correct"]) for row in rows] == [
        (row["uid"], row["output"], row["correct"]) for row in expected
    ]
    for row, other in zip(rows, expected, strict=True):
        shares = [[share for _, share in one["top5"]] for one in (row, other)]
        assert shares[0] == pytest.approx(shares[1], abs=2e-6)


def test_few_classes_have_fewer_likely_ones(split, tmp_path):
    three = ActionSplit("list", "test", split.classes[:3], split.clips[:4], (), None, "list.txt")
    found = score(three, tmp_path, Colours(classes=3))
    assert all(len(row["top5"]) == 3 and row["in_top5"] for row in found.rows) and found.top5 == 100


def row(label, correct, in_top5=True, name="a, b"):
    """Of a class; all share one name."""
    return {"uid": "x", "label": label, "answer": name, "correct": correct, "in_top5": in_top5}


def test_the_mean_over_classes_counts_each_class_alike_and_is_finegyms_score(tmp_path):
    rows = [row(9, True), row(9, True), row(9, False), row(10, False, False), row(2, True, name='"c"')]
    found = Accuracy(rows, pending=2, failed={"y": "is broken"})
    assert (found.top1, found.top5) == (60.0, 80.0)
    assert found.class_mean == pytest.approx((200 / 3 + 0 + 100) / 3)
    assert found.by("label") == {2: (100.0, 1), 9: (pytest.approx(200 / 3), 3), 10: (0.0, 1)}
    assert [found.main(data) for data in ("gym99", "gym288")] == [found.class_mean] * 2
    assert {found.main(data) for data in ("ssv1", "ssv2", "diving48", "k400", "list", "mini")} == {60.0}
    save_accuracy(found, tmp_path, {"data": "list"})
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "data": "list",
        "top1": 60.0,
        "top5": 80.0,
        "class_mean": found.class_mean,
        "clips": 5,
        "failed": 1,
        "pending": 2,
        "environment": {},
        "notes": [],
    }
    with (tmp_path / "per_class.csv").open(newline="") as file:
        told = list(csv.reader(file))
    assert told[:2] == [["id", "class", "top1", "clips"], ["2", '"c"', "100.00", "1"]]
    assert told[2:] == [["9", "a, b", "66.67", "3"], ["10", "a, b", "0.00", "1"]]
    assert str(found).startswith("top-1 60.00, top-5 80.00, mean over classes 55.56 of 5 clips, 1 of which")
    assert (Accuracy().top1, Accuracy().class_mean, str(Accuracy())[-8:]) == (0.0, 0.0, " 0 clips")


def test_classes_of_one_name_are_counted_apart(split, tmp_path):
    """gym99 with the authors' two repeated names: a clip of each class, all called the 59th."""
    classes = [f"(VT) {number}" for number in range(99)]
    classes[58] = classes[70] = "(BB) salto backward tucked"
    clips = tuple(ActionClip(f"{n:02d}", split.clips[0].path, n) for n in range(99))
    gym = ActionSplit("gym99", "test", tuple(classes), clips, (), None, "gym99_val_element.txt")
    model = Colours(classes=99)
    model.weight.data.zero_()
    model.weight.data[:, 58] = 1.0
    model.weight.data[:, 70] = 0.5
    views = ViewSettings(frames=2, size_px=16, test_scale=24, clips=1, crops=1, mean=(-1,) * 3)
    found = score_clips(model, gym, views, tmp_path, header=HEADER, workers=0, quiet=True)
    assert list(found.by("label")) == list(range(99)) and found.by("label")[70] == (0.0, 1)
    assert found.main("gym99") == found.class_mean == pytest.approx(100 / 99)
    assert {tuple(row["guesses"][:2]) for row in found.rows} == {(58, 70)}
    assert [row["label"] for row in found.rows if row["correct"]] == [58]
    save_accuracy(found, tmp_path, {})
    told = (tmp_path / "per_class.csv").read_text().splitlines()
    assert len(told) == 100 and told[59] == "58,(BB) salto backward tucked,100.00,1"
    assert told[71] == "70,(BB) salto backward tucked,0.00,1"


def test_lines_of_earlier_versions_get_their_class_from_the_split_and_others_are_refused(split, tmp_path):
    whole = score(split, tmp_path)
    file = tmp_path / "answers" / "00-of-01.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]

    def write(**change):
        for line in lines[1:]:
            (answer,) = line["answers"]
            answer |= change
            for key in ("label", "guesses"):
                answer.pop(key, None) if not change else None
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    write()
    old = score(split, tmp_path)
    assert [row["label"] for row in old.rows] == [
        clip.label for clip in split.clips
    ] and old.class_mean == whole.class_mean
    write(label=3)
    with pytest.raises(
        ValueError, match=r"clip clip 0 has label 3, list.txt says class 0 \('left'\); evaluate"
    ):
        collect_clips(tmp_path, split)


def test_a_result_says_what_made_it_and_what_changed_in_between(split, tmp_path):
    score(split, tmp_path)
    now = edit_environment(tmp_path, lambda header: header["environment"].update(av="17.0.0"))
    assert versions().items() < now.items() and (now["device"], now["dtype"]) == ("cpu", "float32")
    save_accuracy(score(split, tmp_path), tmp_path, {})
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["environment"] == {**now, "av": "17.0.0"}
    assert result["notes"][-1] == f"not everything was computed with the same: av 17.0.0 and {now['av']}"
    edit_environment(tmp_path, lambda header: header.pop("environment"))  # as earlier versions wrote it
    save_accuracy(score(split, tmp_path), tmp_path, {})
    assert json.loads((tmp_path / "result.json").read_text())["environment"] == {}


# ---- nothing twice, nothing lost


def test_a_killed_test_scores_what_is_left(split, tmp_path):
    whole = score(split, tmp_path / "whole")
    score(split, tmp_path / "out")
    file = tmp_path / "out" / "answers" / "00-of-01.jsonl"
    written = file.read_text().splitlines(keepends=True)
    assert len(written) == 8
    file.write_text("".join(written[:4]) + written[4][:30])  # three clips, and a part of the fourth
    read, model = [], Colours()

    def counted(path, *how, **more):
        read.append(path)
        return read_frames(path, *how, **more)

    assert score(split, tmp_path / "out", model, read=counted).rows == whole.rows
    assert read == [clip.path for clip in split.clips[3:]] and model.seen == 4 * 6
    assert len(file.read_text().splitlines()) == 8
    assert score(split, tmp_path / "out", model, read=counted).rows == whole.rows and len(read) == 4
    score(split, tmp_path / "out", model, read=counted, overwrite=True)
    assert len(read) == 4 + 7


def test_two_processes_share_the_clips(split, tmp_path):
    whole = score(split, tmp_path / "whole")
    first = score(split, tmp_path / "out", shard=Shard(0, 2))
    assert [row["uid"] for row in first.rows] == [f"clip {index}" for index in (0, 2, 4, 6)]
    assert first.pending == 3 and first.summary()["pending"] == 3
    assert score(split, tmp_path / "out", shard=Shard(1, 2)).rows == whole.rows
    assert collect_clips(tmp_path / "out", split).rows == whole.rows
    # Goes on with another number of processes: all is done.
    model = Colours()
    assert score(split, tmp_path / "out", model, shard=Shard(0, 3)).rows == whole.rows and model.seen == 0


def test_a_store_of_another_test_is_refused(split, tmp_path):
    score(split, tmp_path)
    with pytest.raises(
        ValueError, match=r"another run \(checkpoint was step 1, is step 2\); evaluate again with"
    ):
        score(split, tmp_path, header={"checkpoint": "step 2"})
    trained = Colours()
    trained.weight.data[0, 0] += 1  # under the name of the first
    with pytest.raises(ValueError, match=r"another run \(weights was \w{16}, is \w{16}\)"):
        score(split, tmp_path, trained)
    with pytest.raises(ValueError, match=r"another run \(dtype was torch.float32, is torch.bfloat16\)"):
        score(split, tmp_path, dtype=torch.bfloat16)
    other = partial(
        score_clips, Colours(), split, ViewSettings(frames=2, size_px=16, test_scale=24), tmp_path
    )
    with pytest.raises(
        ValueError, match=r"protocol\.train_scale was 24, is 256, protocol\.repeats was 2, is 1"
    ):
        other(header=HEADER, workers=0)


@pytest.fixture
def damaged(split, tmp_path):
    """The clips, two of which cannot be read."""
    clips = list(split.clips)
    for index in (1, 4):
        (tmp_path / f"{index}.mp4").write_bytes(b"no video")
        clips[index] = ActionClip(clips[index].clip_id, str(tmp_path / f"{index}.mp4"), clips[index].label)
    return ActionSplit("list", "test", split.classes, tuple(clips), (), None, "list.txt")


@pytest.mark.parametrize("batch_size", [1, 3])  # of 1: batches of no clip at all
def test_clips_that_cannot_be_read_are_named_and_count_as_wrong(damaged, split, tmp_path, batch_size, capsys):
    model = Colours()
    found = score(damaged, tmp_path / "out", model, batch_size=batch_size)
    assert list(found.failed) == ["clip 1", "clip 4"] and len(found.rows) == 7 and model.seen == 5 * 6
    assert found.failed["clip 1"].startswith(f"{tmp_path}/1.mp4: not a video")
    assert "clip clip 4 not scored: " in capsys.readouterr().err
    right = sum(row["correct"] for row in score(split, tmp_path / "whole").rows if row["uid"][-1] not in "14")
    assert found.top1 == pytest.approx(100 * right / 7)
    assert found.by("label")[5] == (0.0, 1) and found.rows[4]["answer"] == "round"
    assert "7 clips, 2 of which could not be read and count as wrong" in str(found)
    assert score(damaged, tmp_path / "out", model).failed == found.failed and model.seen == 5 * 6


def test_errors_of_memory_and_of_workers_are_named(split, tmp_path):
    class Full(nn.Module):
        def forward(self, video):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RunStopped, match="no memory for 3 clips at once; lower --batch-size;"):
        score(split, tmp_path / "memory", Full())

    with pytest.raises(RunStopped, match=rf"died .status 3. while it read {split.clips[0].path}; "):
        score(split, tmp_path / "workers", read=lambda *_, **__: os._exit(3), workers=1)
