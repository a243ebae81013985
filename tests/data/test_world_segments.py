"""Owns: no frame of the motion segments tells the class, and what the class says is what moves alike."""

import numpy as np
import pytest

from moss_vllm.data.world import segments
from moss_vllm.data.world.segments import (
    PATCH_SQUARES,
    SEGMENT_CLASSES,
    SEGMENT_FRAME_PX,
    SEGMENT_FRAMES,
    SEGMENT_GRID,
    SQUARE_PX,
    draw_segments,
    render_segments,
)

PATCH_PX = PATCH_SQUARES * SQUARE_PX


def scenes(name, count=40):
    rng = np.random.default_rng(3)
    return [draw_segments(rng, name) for _ in range(count)]


@pytest.mark.parametrize("name", SEGMENT_CLASSES)
def test_each_frame_is_a_picture_of_independent_squares(name):
    """Neighbours are uncorrelated, also across the edge of a shape, and every brightness is as frequent."""
    clips = np.stack([render_segments(scene) for scene in scenes(name, 20)])
    assert clips.shape[1:] == (SEGMENT_FRAMES, SEGMENT_FRAME_PX, SEGMENT_FRAME_PX, 3)
    for moment in (0, -1):
        squares = clips[:, moment, ::SQUARE_PX, ::SQUARE_PX].astype(float) - 127.5
        spread = 127.5**2 / 3
        assert abs(squares.mean()) < 5 * (spread / squares.size) ** 0.5
        for beside in (squares[:, 1:] * squares[:, :-1], squares[:, :, 1:] * squares[:, :, :-1]):
            assert abs(beside.mean()) < 5 * spread / beside.size**0.5


@pytest.mark.parametrize("name", SEGMENT_CLASSES)
def test_squares_go_the_drawn_way_and_the_rest_is_new(name):
    for scene in scenes(name, 6):
        clip = render_segments(scene)
        ways = np.full((SEGMENT_GRID, SEGMENT_GRID, 2), scene.wall_way)
        for segment in scene.segments:
            ways[segment.mask] = segment.way
        patches = clip.reshape(SEGMENT_FRAMES, SEGMENT_GRID, PATCH_PX, SEGMENT_GRID, PATCH_PX, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5)
        followed = 0
        for y, x in np.ndindex(SEGMENT_GRID, SEGMENT_GRID):
            to_y, to_x = np.array((y, x)) + ways[y, x]
            if 0 <= to_y < SEGMENT_GRID and 0 <= to_x < SEGMENT_GRID:
                same = (patches[0, y, x] == patches[1, to_y, to_x]).all()
                together = (ways[y, x] == ways[to_y, to_x]).all()
                assert same or not together
                followed += same
        assert followed > 30


def test_the_class_is_which_places_move_alike():
    for name in SEGMENT_CLASSES:
        for scene in scenes(name):
            ways = [tuple(scene.wall_way), *(tuple(segment.way) for segment in scene.segments)]
            assert all(way != ways[0] for way in ways[1:])
            if SEGMENT_CLASSES[name] == "pair":
                assert (ways[1] == ways[2]) is name.endswith(", alike")
                first, second = (np.argwhere(segment.mask) for segment in scene.segments)
                axis = 0 if name.startswith("one above") else 1
                assert first[:, axis].max() < second[:, axis].min()
    sizes = {kind: scenes(f"a {kind} shape", 1)[0].segments[0].mask for kind in segments.SEGMENT_SHAPES}
    spans = {kind: np.ptp(np.argwhere(mask), axis=0) + 1 for kind, mask in sizes.items()}
    assert spans["tall"].tolist() == [6, 2] and spans["wide"].tolist() == [2, 6]
    assert spans["hollow"].tolist() == [4, 4] and sizes["hollow"].sum() == 12


def test_ways_of_walls_and_shapes_are_as_frequent_in_every_class():
    for name in [name for name, group in SEGMENT_CLASSES.items() if group != "direction"]:
        drawn = [tuple(way) for s in scenes(name, 900) for way in (s.wall_way, s.segments[0].way)]
        counts = [drawn.count(tuple(way)) for way in segments.WAYS]
        assert sum(counts) == 1800 and all(abs(count - 200) < 70 for count in counts)


def test_one_seed_gives_one_clip_and_an_unknown_class_is_refused():
    first, second = (draw_segments(np.random.default_rng(1), "a tall shape") for _ in range(2))
    assert (render_segments(first) == render_segments(second)).all()
    with pytest.raises(ValueError, match="unknown class 'a round shape'; known are the wall moves left"):
        draw_segments(np.random.default_rng(1), "a round shape")
