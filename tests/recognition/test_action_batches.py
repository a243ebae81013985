"""Owns: a clip's row depends on seed, place and index alone, and every row of a batch is used or named."""

import dataclasses
import pickle
import random

import numpy as np
import pytest
import torch
from action_layouts import moving_square, write_frames, write_layout
from drawing import RAND
from torch.utils.data import DataLoader

from moss_vllm.data.actions.datasets import ActionClip, ActionSplit, read_action
from moss_vllm.data.rows import Rejected
from moss_vllm.recognition import batches
from moss_vllm.recognition.batches import ActionTestSet, ActionTrainingSet
from moss_vllm.recognition.dataset_views import DATASET_VIEWS
from moss_vllm.recognition.frame_choice import draw_indices
from moss_vllm.recognition.views import ViewSettings, evaluation_views, training_views
from moss_vllm.training.row_order import PlacedRow, RowOrder, StepBatches
from moss_vllm.video.cache import FrameCache
from moss_vllm.video.clip import read_frames
from moss_vllm.video.rand_augment import ClipRandAugment

PLAIN = ViewSettings(frames=4, size_px=16, train_scale=24, test_scale=16, flip=0.0)


@pytest.fixture(scope="module")
def ssv2(tmp_path_factory):
    root = tmp_path_factory.mktemp("views") / "ssv2"
    write_layout("ssv2", root)
    return root


@pytest.fixture(scope="module")
def dataset(ssv2):
    return ActionTrainingSet(
        read_action("ssv2", ssv2, "train"), DATASET_VIEWS["ssv2"]["paper"].at_size(32), seed=7
    )


def test_a_row_has_its_views_and_labels(dataset):
    row_id, shown, labels = dataset[1]
    assert row_id == "46" and shown.shape == (2, 8, 3, 32, 32) and shown.dtype == torch.float32
    assert labels.dtype == torch.int64 and set(labels.tolist()) <= {2, 3}  # turning left, or mirrored
    assert dataset.shares == [(4, 1.0)] and len(dataset) == 4


def test_mirrored_clips_of_left_and_right_exchange_their_labels(dataset, monkeypatch):
    drawn = training_views
    monkeypatch.setattr(batches, "training_views", lambda *a: (drawn(*a)[0], np.array([True, False])))
    assert [dataset[i][2].tolist() for i in range(4)] == [[2, 3], [3, 2], [1, 1], [0, 0]]


def test_mirrored_clips_of_finegym_keep_their_labels_where_names_repeat(tmp_path):
    write_layout("gym99", tmp_path)
    split = read_action("gym99", tmp_path, "train")
    for label in (58, 70, 75, 97, 98):
        one = dataclasses.replace(split, clips=(dataclasses.replace(split.clips[0], label=label),))
        training = ActionTrainingSet(one, dataclasses.replace(PLAIN, flip=1.0, repeats=40), seed=0)
        assert training[0][2].tolist() == [label] * 40


def test_the_whole_row_is_what_its_parts_give(dataset, ssv2):
    split, settings = read_action("ssv2", ssv2, "train"), dataset.settings
    generator = np.random.default_rng([7, 12, 2])
    frames = read_frames(split.clips[2].path, lambda n: draw_indices(n, generator, frames=8))  # of full size
    wanted, _ = training_views(frames, settings, generator, ClipRandAugment(RAND))
    assert torch.equal(dataset[PlacedRow(2, 12)][1], wanted)


def test_a_row_depends_on_seed_place_and_index_alone(dataset, ssv2):
    one = dataset[PlacedRow(1, 40)][1]
    for index in (0, 3, PlacedRow(1, 41)):
        dataset[index]
    random.seed(5)
    np.random.seed(5)
    assert torch.equal(dataset[PlacedRow(1, 40)][1], one)
    assert not torch.equal(dataset[PlacedRow(1, 41)][1], one)
    other = ActionTrainingSet(read_action("ssv2", ssv2, "train"), dataset.settings, seed=8)
    assert not torch.equal(other[PlacedRow(1, 40)][1], one)


def draw_batches(dataset, batch_size, steps=range(3), rank=0, processes=1, workers=0):
    order = StepBatches(
        RowOrder(dataset.shares, 7),
        steps,
        batch_size=batch_size,
        accumulate=1,
        rank=rank,
        processes=processes,
    )
    return list(DataLoader(dataset, batch_sampler=order, collate_fn=dataset.collate, num_workers=workers))


def test_two_processes_see_what_one_sees_with_twice_the_batch(dataset):
    whole = draw_batches(dataset, 4)
    halves = [draw_batches(dataset, 2, rank=rank, processes=2) for rank in range(2)]
    for step in range(3):
        for key in ("video", "labels"):
            assert torch.equal(whole[step][key], torch.cat([half[step][key] for half in halves]))
        assert whole[step]["row_ids"] == halves[0][step]["row_ids"] + halves[1][step]["row_ids"]
    assert whole[0]["video"].shape == (8, 8, 3, 32, 32)
    # The same clips come again in the next epoch, in other views.
    assert sorted(whole[0]["row_ids"]) == sorted(whole[1]["row_ids"])
    views_seen = {view.numpy().tobytes() for batch in whole for view in batch["video"]}
    assert len(views_seen) == 24


def test_a_resumed_run_sees_what_it_would_have_seen(dataset):
    for before, after in zip(
        draw_batches(dataset, 2)[1:], draw_batches(dataset, 2, range(1, 3)), strict=True
    ):
        assert torch.equal(before["video"], after["video"]) and torch.equal(before["labels"], after["labels"])


def test_workers_draw_the_same(dataset):
    for one, other in zip(draw_batches(dataset, 2), draw_batches(dataset, 2, workers=2), strict=True):
        assert torch.equal(one["video"], other["video"]) and one["row_ids"] == other["row_ids"]


def test_a_placed_row_is_an_int_that_pickles():
    row = pickle.loads(pickle.dumps(PlacedRow(3, 1027)))
    assert row == 3 and row.place == 1027 and isinstance(row, int) and [10, 11, 12, 13][row] == 13


def test_frames_are_scaled_as_they_are_read_unless_randaugment_comes_first(ssv2):
    asked = []

    def read(path, choose, *, scale):
        asked.append(scale)
        return read_frames(path, choose, scale=scale)

    split = read_action("ssv2", ssv2, "train")
    settings = DATASET_VIEWS["ssv2"]["paper"].at_size(32)
    plain = ViewSettings(**{**vars(settings), "randaugment": None})
    ActionTrainingSet(split, settings, seed=0, read=read)[0]
    ActionTrainingSet(split, plain, seed=0, read=read)[0]
    ActionTestSet(split, settings, read=read)[0]
    assert asked == [None, (37, 46), (37, 46)]


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video")
    return ActionSplit("list", "train", ("a", "b"), (ActionClip("x", str(path), 1),) * 2, (), None, "")


def test_a_broken_video_is_rejected_by_name(broken):
    for row in (ActionTrainingSet(broken, PLAIN, seed=0)[0], ActionTestSet(broken, PLAIN)[0]):
        assert isinstance(row, Rejected) and row.row_id == "x" and "not a video" in row.reason


@pytest.mark.parametrize("cached", [False, True])
def test_a_folder_with_another_number_of_images_than_its_line_says_is_refused(tmp_path, cached):
    """`list_flow`: 8 frames with 14 pictures of optical flow beside them, which sort first."""
    write_frames(tmp_path / "clip", moving_square(0, 8), "img_{:05d}.jpg")
    read = FrameCache(tmp_path / "cache").read_frames if cached else read_frames

    def rows(frames):
        clips = (ActionClip("x", str(tmp_path / "clip"), 1, frames),)
        split = ActionSplit("list", "train", ("a", "b"), clips, (), None, "")
        return ActionTrainingSet(split, PLAIN, seed=0, read=read)[0], ActionTestSet(split, PLAIN, read=read)[
            0
        ]

    assert not any(isinstance(row, Rejected) for _ in range(2) for row in (*rows(8), *rows(None)))
    for row in rows(22):
        assert row == Rejected(
            "x",
            f"{tmp_path}/clip: 8 frames are there, its line in the list says 22 (remedy: keep only the "
            "clip's own frames in the folder, or correct the line)",
        )


def test_a_batch_counts_its_usable_rows(dataset):
    batch = dataset.collate([dataset[0], Rejected("y", "gone"), dataset[2]])
    assert batch["video"].shape == (4, 8, 3, 32, 32) and batch["labels"].tolist()[2:] == [1, 1]
    assert batch["row_ids"] == ["45", "47"] and batch["rejected"] == [Rejected("y", "gone")]
    assert (batch["count"], batch["read"]) == (4, 32)


def test_a_batch_without_a_usable_row_still_has_a_shape(broken):
    training = ActionTrainingSet(broken, PLAIN, seed=0)
    batch = training.collate([training[0], training[1]])
    assert batch["video"].shape == (1, 4, 3, 16, 16) and (batch["count"], batch["read"]) == (0, 0)
    assert batch["row_ids"] == [] and [row.row_id for row in batch["rejected"]] == ["x", "x"]


def test_test_views_of_a_clip(ssv2):
    split = read_action("ssv2", ssv2, "test")
    settings = DATASET_VIEWS["ssv2"]["paper"].at_size(32)
    clip_id, shown, label = ActionTestSet(split, settings)[1]
    assert (clip_id, label) == ("50", 2) and shown.shape == (6, 8, 3, 32, 32)
    # 10 frames: seg = 9 / 8, shifts int(seg / 3) and int(2 seg / 3) are 0: both clips are the same.
    chosen = [0, 1, 2, 3, 4, 6, 7, 8]
    frames = read_frames(split.clips[1].path, lambda n: np.array(chosen * 2), scale=(37, 46))
    torch.testing.assert_close(shown, evaluation_views(frames, settings))
    torch.testing.assert_close(shown[:3], shown[3:])
    again = ActionTestSet(split, settings)[1]
    assert torch.equal(again[1], shown)
