"""Owns: a row is a clip or slice with one rater's labels, the same wherever it is read, and none is lost."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from boundary_layouts import INSTANCES, TRAIN, write_tapos
from tiny_boundaries import CLIPS, SLICES, write_moving

from moss_vllm.boundaries.batches import (
    BoundaryTrainingSet,
    ClipSettings,
    LabelSettings,
    count_slices,
    note_other_counts,
    read_slice,
)
from moss_vllm.boundaries.targets import clip_targets, slice_targets
from moss_vllm.data.boundaries.datasets import read_boundaries
from moss_vllm.data.rows import Rejected
from moss_vllm.training.row_order import PlacedRow
from moss_vllm.video.cache import FrameCache
from moss_vllm.video.clip import read_frames


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinetics")
    write_moving(folder)
    return folder


@pytest.fixture(scope="module")
def train(root):
    return read_boundaries("kinetics_gebd", root, "train")


@pytest.fixture(scope="module")
def tapos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tapos")
    write_tapos(folder)
    return read_boundaries("tapos", folder, "train")


def rows_of(split, clips=CLIPS, mirror=False, seed=7, **labels):
    return BoundaryTrainingSet(split, clips, LabelSettings(**labels), mirror=mirror, seed=seed)


def test_a_clip_is_a_row_for_each_rater_and_its_frames_those_of_the_targets(train):
    dataset = rows_of(train)
    assert [(video.video_id, rater) for video, rater, _ in dataset.rows] == [
        (TRAIN[0], 1), (TRAIN[0], 2), (TRAIN[1], 0)
    ]  # fmt: skip
    assert dataset.shares == [(3, 1.0)] and len(rows_of(train, raters=1)) == 2
    for index, (video, rater, _) in enumerate(dataset.rows):
        targets = clip_targets(video, rater, 100, length=20)
        frames = read_frames(video.path, lambda count, at=targets: at.files - 1, scale=(32, 32))
        row = dataset[index]
        assert torch.equal(row.pixels, torch.from_numpy(frames).permute(0, 3, 1, 2)) and row.mask.all()
        assert row.pixels.shape == (20, 3, 32, 32) and row.pixels.dtype == torch.uint8
        assert row.labels.tolist() == targets.gaussian.tolist()
        for kind in ("hard", "cut"):
            assert rows_of(train, kind=kind)[index].labels.tolist() == getattr(targets, kind).tolist()
    a_frame, the_same = (read_slice(train.videos[1], 0, CLIPS), dataset[2])
    assert torch.equal(a_frame.pixels, the_same.pixels) and a_frame.numbers[0] == 1.0


def test_a_test_reads_the_same_through_the_frame_cache(train, tmp_path):
    cache = FrameCache(tmp_path)
    for video in train.videos:
        plain = read_slice(video, 0, CLIPS)
        for _ in range(2):
            kept = read_slice(video, 0, CLIPS, read=cache.read_frames)
            assert torch.equal(plain.pixels, kept.pixels)


def test_an_instance_of_tapos_is_cut_in_slices_the_last_filled_and_masked(tapos):
    dataset = rows_of(tapos, SLICES, raters=1, kind="cut")  # of 7.831 and 12.5 s
    assert [(video.video_id, number) for video, _, number in dataset.rows] == [
        *((INSTANCES["train"][0], number) for number in range(4)),
        *((INSTANCES["train"][1], number) for number in range(5)),
    ]
    for index, (video, rater, number) in enumerate(dataset.rows):
        targets = slice_targets(video, rater, 20, length=25)[number]
        assert dataset[index].mask.tolist() == targets.mask.tolist()
        assert dataset[index].labels.tolist() == targets.cut.tolist()
        assert read_slice(video, number, SLICES).numbers.tolist() == targets.numbers.tolist()
    last = dataset[3]
    assert last.mask.sum() == 3 and not last.labels[3:].any()
    assert all(torch.equal(frame, last.pixels[2]) for frame in last.pixels[3:])
    assert rows_of(tapos, SLICES, mask=False)[3].mask.all()  # as EfficientGEBD


def test_a_slice_without_a_frame_of_its_own_is_none(tapos):
    video = tapos.videos[0]
    for duration_s, slices in ((2.5, 1), (2.59, 1), (2.6, 2), (7.5, 3), (0.05, 1), (8.0, 4)):
        of_length = dataclasses.replace(video, duration_s=duration_s)
        assert count_slices(of_length, SLICES) == slices
        found = slice_targets(of_length, 0, 20, length=25)
        assert all(one.mask.any() for one in found[:slices])
        assert not any(one.mask.any() for one in found[slices:])
    assert count_slices(video, CLIPS) == 1


def test_a_clip_is_mirrored_whole_by_seed_place_and_index_alone(train):
    plain, mirrored = rows_of(train), rows_of(train, mirror=True)
    seen = []
    for place in range(12):
        row = mirrored[PlacedRow(1, place)]
        seen.append(not torch.equal(row.pixels, plain[1].pixels))
        assert torch.equal(row.pixels.flip(-1) if seen[-1] else row.pixels, plain[1].pixels)
        assert row.labels.tolist() == plain[1].labels.tolist()
    assert 2 < sum(seen) < 10
    np.random.seed(3)
    again = rows_of(train, mirror=True)
    assert all(
        torch.equal(again[PlacedRow(1, place)].pixels, mirrored[PlacedRow(1, place)].pixels)
        for place in range(12)
    )
    others = [rows_of(train, mirror=True, seed=8)[PlacedRow(1, place)].pixels for place in range(12)]
    assert [not torch.equal(one, plain[1].pixels) for one in others] != seen


def test_a_batch_counts_the_frames_that_its_loss_sums_over(tapos):
    dataset = rows_of(tapos, SLICES)
    rows = [dataset[0], Rejected("x", "torn"), dataset[3]]
    batch = dataset.collate(rows)
    assert batch["clips"].shape == (2, 25, 3, 32, 32) and batch["labels"].dtype == torch.float32
    assert batch["count"] == int(batch["mask"].sum()) == 28 and batch["read"] == 50
    assert batch["row_ids"] == [INSTANCES["train"][0]] * 2 and batch["rejected"] == rows[1:2]
    none = dataset.collate(rows[1:2])
    assert none["clips"].shape == (1, 25, 3, 32, 32) and not none["mask"].any()
    assert (none["count"], none["read"], none["row_ids"]) == (0, 0, [])


def test_a_clip_that_cannot_be_read_is_rejected_by_name(train, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    gap = shutil.copytree(train.videos[0].path, tmp_path / "gap")
    sorted(gap.iterdir())[40].unlink()
    videos = tuple(dataclasses.replace(train.videos[1], path=str(path)) for path in (broken, gap))
    dataset = rows_of(dataclasses.replace(train, videos=videos))
    rows = [dataset[0], dataset[1]]
    assert [row.row_id for row in rows] == [TRAIN[1]] * 2 and dataset.name(1) == str(gap)
    assert "not a video" in rows[0].reason and "has 99 frames up to number 100" in rows[1].reason


def test_clips_with_another_number_of_frames_are_counted_and_named(train, tmp_path):
    assert note_other_counts(train) == ()
    other, broken = (dataclasses.replace(train.videos[0], frames=one) for one in (94, 96))
    broken = dataclasses.replace(broken, path=str(tmp_path / "gone.mp4"))
    near = dataclasses.replace(train.videos[1], frames=96)
    told = note_other_counts(dataclasses.replace(train, videos=(other, broken, near)))
    assert told[0] == (
        f"clips with over 5 % more or fewer frames than annotated, placed by time: 1 ({TRAIN[0]} 100 of 94)"
    )
    assert told[1].startswith("clips whose frames cannot be counted: 1 (") and "gone.mp4" in told[1]


@pytest.mark.parametrize("name", ["frames", "size_px"])
def test_a_size_below_one_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        ClipSettings(**{name: 0})
