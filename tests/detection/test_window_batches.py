"""Owns: a training window depends on seed, place and index alone, and every row is used or named."""

import dataclasses

import numpy as np
import pytest
import torch
from detection_layouts import VALIDATION
from tiny_detector import PIXELS, WINDOWS, detector
from torch.utils.data import DataLoader

from moss_vllm.data.detection.datasets import read_detection
from moss_vllm.data.rows import Rejected
from moss_vllm.detection.augment import change_frames
from moss_vllm.detection.batches import NO_ACTION, DetectionTrainingSet
from moss_vllm.detection.pixels import PixelSettings, fill_up, read_placed
from moss_vllm.detection.windows import draw_window
from moss_vllm.training.row_order import PlacedRow, RowOrder, StepBatches
from moss_vllm.video.clip import read_frames

LEVELS = 3


@pytest.fixture(scope="module")
def train(thumos_root):
    return read_detection("thumos14", thumos_root, "train")


@pytest.fixture(scope="module")
def dataset(train):
    return DetectionTrainingSet(train, WINDOWS, PIXELS, seed=7, levels=LEVELS)


def test_a_row_is_what_its_parts_give(dataset, train):
    row, video = dataset[PlacedRow(1, 12)], train.videos[1]
    drawn, changed = (np.random.default_rng([7, 12, 1, number]) for number in range(2))
    window, frames = read_placed(video, lambda n: draw_window(video, n, WINDOWS, drawn), short_side_px=40)
    assert row.video_id == VALIDATION[1] and frames.shape == (16, 40, 53, 3)
    assert torch.equal(row.clip, fill_up(change_frames(frames, 32, changed), window))
    assert row.clip.shape == (16, 3, 32, 32) and row.clip.dtype == torch.uint8
    assert (row.window.frame_indices == window.frame_indices).all() and row.window.accepted
    assert dataset.shares == [(2, 1.0)] and len(dataset) == 2


def test_without_augmentation_a_row_is_what_a_test_shows(train):
    plain = PixelSettings(32, 32, augment=False)
    row = DetectionTrainingSet(train, WINDOWS, plain, seed=7, levels=LEVELS)[PlacedRow(1, 12)]
    window, frames = read_placed(train.videos[1], lambda _: row.window, short_side_px=32)
    assert frames.shape == (16, 32, 42, 3)
    assert torch.equal(row.clip, fill_up(frames[:, :, 5:37], window))


def test_a_row_depends_on_seed_place_and_index_alone(dataset, train):
    one = dataset[PlacedRow(1, 40)].clip
    for index in (0, PlacedRow(1, 41)):
        assert not torch.equal(dataset[index].clip, one)
    np.random.seed(5)
    torch.manual_seed(5)
    assert torch.equal(dataset[PlacedRow(1, 40)].clip, one)
    other = DetectionTrainingSet(train, WINDOWS, PIXELS, seed=8, levels=LEVELS)
    assert not torch.equal(other[PlacedRow(1, 40)].clip, one)


def test_a_short_video_repeats_its_last_frame_as_it_was_changed(train):
    long = dataclasses.replace(WINDOWS, steps=64)
    row = DetectionTrainingSet(train, long, PIXELS, seed=0)[0]
    assert 54 <= row.window.valid <= 60 and row.clip.shape == (64, 3, 32, 32)
    last = row.clip[row.window.valid - 1]
    assert all(torch.equal(frame, last) for frame in row.clip[row.window.valid :])


def test_a_reader_that_asks_twice_gets_the_same_window(dataset, train):
    asked = []

    def read(path, choose, **how):
        def ask(n_frames):
            asked.extend(choose(n_frames).tolist() for _ in range(2))
            return np.array(asked[-1])

        return read_frames(path, ask, **how)

    twice = DetectionTrainingSet(train, WINDOWS, PIXELS, seed=7, levels=LEVELS, read=read)
    assert torch.equal(twice[PlacedRow(0, 5)].clip, dataset[PlacedRow(0, 5)].clip)
    assert len(asked) == 2 and asked[0] == asked[1]


def draw_batches(dataset, batch_size, *, steps=range(4), rank=0, processes=1, workers=0):
    order = StepBatches(
        RowOrder(dataset.shares, 7),
        steps,
        batch_size=batch_size,
        accumulate=1,
        rank=rank,
        processes=processes,
    )
    return list(DataLoader(dataset, batch_sampler=order, collate_fn=dataset.collate, num_workers=workers))


def test_two_processes_and_a_resumed_run_see_what_one_sees(dataset):
    whole = draw_batches(dataset, 2)
    halves = [draw_batches(dataset, 1, rank=rank, processes=2) for rank in range(2)]
    later = draw_batches(dataset, 2, steps=range(2, 4), workers=1)
    for step, batch in enumerate(whole):
        parts = [half[step] for half in halves]
        for name in ("clips", "mask"):
            assert torch.equal(batch[name], torch.cat([part[name] for part in parts]))
        assert batch["count"] == sum(part["count"] for part in parts)
        assert batch["row_ids"] == [row for part in parts for row in part["row_ids"]]
        assert step < 2 or torch.equal(batch["clips"], later[step - 2]["clips"])
    assert len({clip.numpy().tobytes() for batch in whole for clip in batch["clips"]}) == 8


def test_a_batch_counts_the_positives_that_its_loss_finds(dataset, encoder):
    model, counts = detector(encoder), []
    for place in range(12):
        batch = dataset.collate([dataset[PlacedRow(index, place)] for index in range(2)])
        real = batch["labels"] != NO_ACTION
        actions = ([v[r] for v, r in zip(batch[name], real, strict=True)] for name in ("segments", "labels"))
        with torch.no_grad():
            losses = model.loss(model(batch["clips"], batch["mask"]), *actions)
        counts.append(int(losses.positives))
        assert batch["count"] == counts[-1] and batch["read"] == int(batch["mask"].sum())
    assert len(set(counts)) > 3 and min(counts) > 0
    assert {int(label) for label in batch["labels"].flatten()} <= {NO_ACTION, 0, 1, 2}


def test_windows_of_more_and_less_actions_are_filled_up(dataset, train):
    rows = [dataset[0], dataset[PlacedRow(1, 3)]]
    counts = [len(row.window.labels) for row in rows]
    batch = dataset.collate(rows)
    assert batch["segments"].shape == (2, max(counts), 2) and batch["labels"].shape == (2, max(counts))
    for place, row in enumerate(rows):
        kept = batch["labels"][place] != NO_ACTION
        assert int(kept.sum()) == counts[place]
        assert batch["segments"][place][kept].tolist() == row.window.segments.tolist()


def test_a_video_that_cannot_be_read_is_rejected_by_name(train, tmp_path):
    broken, other = tmp_path / "broken.mp4", dataclasses.replace(train.videos[0], frames=400)
    broken.write_bytes(b"no video")
    videos = (dataclasses.replace(train.videos[0], path=str(broken)), other)
    dataset = DetectionTrainingSet(dataclasses.replace(train, videos=videos), WINDOWS, PIXELS, seed=0)
    rows = [dataset[0], dataset[1]]
    assert all(isinstance(row, Rejected) and row.row_id == VALIDATION[0] for row in rows)
    assert "not a video" in rows[0].reason and "120 frames are there, the annotation" in rows[1].reason
    batch = dataset.collate(rows)
    assert batch["clips"].shape == (1, 16, 3, 32, 32) and not batch["mask"].any()
    assert batch["segments"].shape == (1, 0, 2) and batch["labels"].shape == (1, 0)
    assert (batch["row_ids"], batch["rejected"], batch["count"], batch["read"]) == ([], rows, 0, 0)
