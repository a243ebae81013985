"""Owns: in clips with boundaries motion alone tells where one is; one seed gives one world, whole."""

import json
import pickle
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from test_world_scenes import digests

from moss_vllm.data.boundaries.datasets import read_boundaries
from moss_vllm.data.world import boundaries
from moss_vllm.data.world.actions import Motion, draw_still, render_action
from moss_vllm.data.world.boundaries import (
    CLIP_FPS,
    CLIP_PX,
    CLIP_S,
    HELD_PX,
    JITTER_S,
    MOTION_PX,
    MOTION_S,
    MOTIONS,
    RATERS,
    SEEN_SHARE,
    BoundariesSize,
    annotate_clips,
    draw_boundaries,
    draw_ways,
    plan_clips,
    render_clip,
)

TINY = BoundariesSize(train_clips=3, test_clips=2)
MANY = BoundariesSize(train_clips=300, test_clips=60)
FRAMES = CLIP_S * CLIP_FPS
FILE = "k400_mr345_{}_min_change_duration0.3.pkl"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return draw_boundaries(tmp_path_factory.mktemp("world") / "boundaries", TINY)


def test_drawn_clips_are_called_by_their_own_name(world):
    split = read_boundaries("mini", world, "train")
    assert split.report().startswith("mini train: kept 3 of 3 clips, 0 missing") and split.notes == ()


@pytest.fixture(scope="module")
def clips():
    return plan_clips("train", MANY)


def ways_of(clip):
    return draw_ways(np.random.default_rng(clip.seed), clip)


# ---- nothing but motion tells


def test_each_frame_is_a_first_frame_of_a_clip(clips):
    """Places are drawn uniformly on the torus, so a shift of all of them leaves what is drawn as likely."""
    for clip in clips[:4]:
        frames = render_clip(clip)
        assert frames.shape == (FRAMES, CLIP_PX, CLIP_PX, 3)
        rng = np.random.default_rng((*clip.seed, 1))
        still = draw_still(rng, size_px=CLIP_PX, radius_px=boundaries.LOOK_RADIUS_PX)
        ways = draw_ways(rng, clip)
        shake = rng.integers(-HELD_PX, HELD_PX + 1, ways.shape[1:])
        steps = ways + shake
        for frame in (0, clip.changes[0] - 1, clip.changes[0], clip.changes[0] + 1, FRAMES - 1):
            wall, *objects = steps[:, :frame].sum(axis=1)
            moved = replace(
                still,
                wall_px=(still.wall_px + wall) % CLIP_PX,
                objects_px=(still.objects_px + objects) % CLIP_PX,
            )
            nothing = Motion(*np.zeros((3, 1, 2), np.int64))
            one = render_action(moved, nothing, size_px=CLIP_PX)[0]
            np.testing.assert_array_equal(one, frames[frame])


def test_a_motion_never_follows_itself_and_changes_where_it_is_said(clips):
    kinds = Counter()
    for clip in clips[:60]:
        ways = ways_of(clip)
        assert ways.shape == (3, FRAMES, 2) and set(np.unique(ways)) <= {-MOTION_PX, 0, MOTION_PX}
        changed = np.flatnonzero((ways[:, 1:] != ways[:, :-1]).any(axis=(0, 2))) + 1
        assert tuple(changed.tolist()) == clip.changes
        for start in (0, *clip.changes):
            wall, one, other = ways[:, start]
            kinds[(wall.any(), one.any(), other.any(), (one == -other).all())] += 1
    assert len(kinds) == len(MOTIONS) and min(kinds.values()) > sum(kinds.values()) / 10


def test_motions_last_as_long_as_they_should(clips):
    shortest, longest = (round(CLIP_FPS * one) for one in MOTION_S)
    lengths = [end - start for clip in clips for start, end in pairwise((0, *clip.changes))]
    assert (min(lengths), max(lengths)) == (shortest, longest)
    assert all(shortest <= FRAMES - clip.changes[-1] for clip in clips)
    assert {len(clip.changes) for clip in clips} <= {1, 2, 3, 4, 5, 6} and len(clips) == 300


def test_the_size_of_a_file_tells_nothing(world):
    files = sorted((world / "videos").rglob("*.mp4"))
    sizes = [file.stat().st_size for file in files]
    assert len(files) == 5 and max(sizes) - min(sizes) < 0.01 * max(sizes)


# ---- what raters say


def test_raters_are_near_and_miss_some(clips):
    seen, off = 0, []
    for clip in clips:
        assert len(clip.marks_s) == RATERS and all(clip.marks_s)
        times = np.array(clip.changes) / CLIP_FPS
        for marks in clip.marks_s:
            seen += len(marks)
            off += [time - times[np.abs(times - time).argmin()] for time in marks]
    total = RATERS * sum(len(clip.changes) for clip in clips)
    assert seen / total == pytest.approx(SEEN_SHARE, abs=0.02)
    assert np.std(off) == pytest.approx(JITTER_S, rel=0.05) and abs(np.mean(off)) < 0.01


def test_the_ground_truth_follows_the_notebook(clips):
    records = annotate_clips(clips)
    assert list(records) == [clip.name for clip in clips] and len(clips[0].name) == 11
    for clip in clips:
        record = records[clip.name]
        assert record["num_frames"] == FRAMES and record["path_frame"] == f"mini/{clip.file}"
        for marks, kept, frames in zip(
            clip.marks_s, record["substages_timestamps"], record["substages_myframeidx"], strict=True
        ):
            assert set(kept) <= set(marks) and all(isinstance(frame, np.float64) for frame in frames)
            assert [int(time * CLIP_FPS) for time in kept] == [int(frame) for frame in frames]
        assert 0 <= min(record["f1_consis"]) and max(record["f1_consis"]) <= 1
    assert np.mean([record["f1_consis_avg"] for record in records.values()]) == pytest.approx(0.9, abs=0.05)


# ---- the folder


def test_it_is_read_as_kinetics_gebd(world):
    for split, count in (("train", 3), ("test", 2)):
        found = read_boundaries("kinetics_gebd", world, split)
        assert len(found.videos) == count and all(len(video.raters) == RATERS for video in found.videos)
        assert all(video.path.endswith(".mp4") and video.mean_consistency > 0.3 for video in found.videos)


def test_one_seed_gives_one_world(world, tmp_path):
    again = draw_boundaries(tmp_path / "again", TINY)
    assert digests(again) == digests(world)
    other = draw_boundaries(tmp_path / "other", replace(TINY, seed=1))
    assert digests(other) != digests(world)


def test_what_is_missing_is_drawn_and_a_whole_world_is_left(world, tmp_path):
    root = draw_boundaries(tmp_path / "whole", TINY)
    file = next((root / "videos" / "val").iterdir())
    before = digests(root)
    file.unlink()
    draw_boundaries(root)
    assert not file.exists()  # the ground truth is there, so the world is whole
    (root / FILE.format("train")).unlink()
    draw_boundaries(root)
    assert digests(root) == before
    content = pickle.loads((root / FILE.format("train")).read_bytes())
    assert list(content) == [clip.name for clip in plan_clips("train", TINY)]
    (root / "boundaries.json").write_text(json.dumps({"train_clips": 3, "format": 0}))
    draw_boundaries(root, TINY)
    assert digests(root) == before


def test_another_folder_or_size_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match=r"holds clips with boundaries of .*, not .*; remove it or name"):
        draw_boundaries(world, replace(TINY, seed=3))
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match=r"is no world of clips with boundaries \(no boundaries\.json\)"):
        draw_boundaries(tmp_path)
