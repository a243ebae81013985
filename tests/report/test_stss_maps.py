"""Owns: the numbers behind the STSS pictures bear out the paper and stand at their place in the figure."""

import numpy as np
import pytest
import torch

from moss_vllm.core import MOSS, stss
from moss_vllm.core.moss import OrderMaps
from moss_vllm.report.stss_figure import Marked, lay_out
from moss_vllm.report.stss_maps import (
    TOY_CELL_PX,
    TOY_GRID,
    TOY_WINDOW,
    OrderView,
    Query,
    flattened_orders,
    largest_window,
    learned_orders,
    patch_pixels,
    pick_query,
    query_map,
    toy_clip,
    toy_similarity,
)
from moss_vllm.video.clip import Clip

GROUPS = ["query", "own set", "twin", "other set", "background"]


@pytest.fixture(scope="module")
def toy():
    return toy_clip()


@pytest.fixture(scope="module")
def toy_views(toy):
    return flattened_orders(patch_pixels(toy.clip.frames, TOY_CELL_PX), TOY_WINDOW, (1, 2, 3))


def test_toy_clip_has_two_sets_of_three_that_move_as_the_paper_says(toy):
    assert toy.clip.frames.shape == (7, 20 * TOY_CELL_PX, 24 * TOY_CELL_PX, 3)
    assert toy.clip.frames.dtype == np.uint8
    place = np.array([[np.argwhere(cells == i).mean(0) for i in range(1, 7)] for cells in toy.cells])
    steps = np.diff(place, axis=0)  # (T-1, 6, 2) as (y, x): all objects stay whole and never hide another
    assert np.allclose(steps[:, :3], (0, 2)) and np.allclose(steps[:, 3:], (2, 0))
    assert [toy.cells[query] for query in toy.queries.values()] == [3, 6]
    middle = toy.clip.frames[3].reshape(20, TOY_CELL_PX, 24, TOY_CELL_PX, 3).mean((1, 3))
    strongest = [middle[toy.cells[3] == i].mean(0).argmax() for i in range(1, 7)]
    assert strongest == [2, 0, 1, 2, 0, 1]  # blue circle, red heart, green cube, twice
    assert (middle[toy.cells[3] == 0] == 0).all()


@pytest.mark.parametrize("name", ["brown", "yellow"])
def test_order_1_follows_the_look_order_2_the_motion_and_order_3_shows_both_sets(toy, toy_views, name):
    found = [toy_similarity(toy, view, toy.queries[name]) for view in toy_views]
    assert [list(means) for means in found] == [GROUPS] * 3
    first, second, third = found
    # Order 1 cannot tell the twin from the query, and sees nothing of the rest.
    assert first["twin"] == pytest.approx(first["query"], abs=0.01) and first["query"] > 0.8
    assert max(first["own set"], first["other set"]) < 0.15
    # Order 2 follows the motion: the query's set, not its twin.
    assert min(second["query"], second["own set"]) > 2.5 * max(second["twin"], second["other set"])
    assert second["own set"] > 0.25
    # Order 3 shows all six objects with nearly even strength, none of the background.
    own, other = third["own set"], (third["twin"] + 2 * third["other set"]) / 3
    assert 0.7 < other / own < 1
    assert min(third["twin"], third["other set"]) > 2 * max(second["twin"], second["other set"])
    assert [means["background"] for means in found] == [0, 0, 0]


@pytest.mark.slow
def test_order_2_tells_the_twin_apart_over_a_textured_wall_too(toy):
    height, width = (side * TOY_CELL_PX for side in TOY_GRID)
    wall = np.random.default_rng(0).integers(0, 160, (1, height // 8, width // 8, 3), np.uint8)
    empty = toy.clip.frames.max(-1, keepdims=True) == 0
    features = patch_pixels(np.where(empty, wall.repeat(8, 1).repeat(8, 2), toy.clip.frames), TOY_CELL_PX)
    view = flattened_orders(features - features.mean((1, 2, 3), keepdim=True), TOY_WINDOW, [2])[0]
    for query in toy.queries.values():
        means = toy_similarity(toy, view, query)
        others = [means[group] for group in ("twin", "other set", "background")]
        assert min(means["query"], means["own set"]) > 2 * max(others)


def test_flattened_orders_are_the_papers_recursion_and_their_strength_is_change():
    torch.manual_seed(0)
    features = torch.randn(1, 4, 5, 6, 3)
    one, three = flattened_orders(features, (3, 3, 5), [3, 1])
    by_hand = features
    for _ in range(3):
        by_hand = stss(by_hand.flatten(4), (3, 3, 5))
    assert (one.order, three.order) == (1, 3)
    assert torch.allclose(one.similarity, stss(features, (3, 3, 5))[0])
    assert torch.allclose(three.similarity, by_hand[0], atol=1e-6)
    in_clip = one.similarity[0, 2, 3, 1:]  # frame 0 has no past: two of its three offsets are in the clip
    assert one.strength[0, 2, 3] == pytest.approx(float(in_clip.var(0, correction=0).mean().sqrt()), rel=1e-4)
    still = flattened_orders(features[:, :1].expand(-1, 4, -1, -1, -1), (3, 3, 3), [1])[0]
    assert still.strength.abs().max() < 1e-6


def test_learned_orders_are_what_moss_computes():
    torch.manual_seed(0)
    moss = MOSS(6, 6, orders=(1, 2), window=(3, 3, 5), d_hidden=4, d_similarity=4).eval()
    maps = moss.maps(torch.randn(1, 3, 4, 5, 6))
    views = learned_orders(maps, None)
    assert [view.order for view in views] == [1, 2]
    assert views[1].similarity.shape == (3, 4, 5, 3, 3, 5)
    assert torch.allclose(views[1].strength, maps[1].motion[0].square().sum(-1).sqrt())
    assert [view.order for view in learned_orders(maps, [2])] == [2]
    assert isinstance(maps[0], OrderMaps)
    with pytest.raises(ValueError, match=r"this MOSS has orders \[1, 2\], not \[3\]"):
        learned_orders(maps, [1, 3])


def test_a_query_map_lies_where_it_belongs():
    similarity = torch.zeros(3, 4, 5, 3, 5, 5)
    similarity[1, 0, 4, 2, 3, 1] = 7.0  # from (0, 4), one down and one left, one frame later
    found = query_map(similarity, Query(1, 0, 4), 1)
    assert (found.values.shape, found.top, found.left) == ((3, 3), 0, 2)
    assert np.argwhere(found.values == 7).tolist() == [[1, 3 - found.left]]


def test_a_window_past_all_of_the_clip_is_refused_before_memory_is_taken():
    features = torch.randn(1, 2, 3, 4, 5)
    assert largest_window(features) == (3, 5, 7)
    found = flattened_orders(features, (3, 5, 7), [1])[0].similarity
    assert found[0, 0, 0, 2, 4, 6] == pytest.approx(
        float(torch.cosine_similarity(features[0, 0, 0, 0], features[0, 1, 2, 3], dim=0)), abs=1e-5
    )
    for wrong in ((5, 5, 7), (3, 7, 7), (3, 5, 9), (999, 31, 31)):
        with pytest.raises(ValueError, match=r"the largest useful one for 2 x 3 x 4 \(T x H x W\) is 3,5,7"):
            flattened_orders(features, wrong, [1])
    with pytest.raises(ValueError, match=r"window \(L, U, V\) needs three positive odd sizes"):
        flattened_orders(features, (-3, 5, 7), [1])
    with pytest.raises(ValueError, match="window 999999, 999999, 999999 has more than 1,048,576 cells"):
        flattened_orders(features, (999999, 999999, 999999), [1])


def test_a_clip_in_which_nothing_moves_has_no_query_to_pick():
    rng = np.random.default_rng(0)
    wall = rng.integers(90, 130, (1, 56, 56, 3), np.uint8).repeat(4, 0)
    clip = Clip(wall + rng.integers(0, 2, wall.shape, np.uint8), np.arange(4) / 4)  # noise of compression
    with pytest.raises(ValueError, match="nothing moves in the 4 frames read; give --query T,Y,X"):
        pick_query(clip, (4, 4), 3)


def test_rows_and_columns_of_the_figure():
    clip = Clip(np.zeros((4, 28, 42, 3), np.uint8), np.arange(4) / 2)
    similarity = torch.linspace(-1, 1, 4 * 2 * 3 * 5 * 3 * 3).view(4, 2, 3, 5, 3, 3)
    views = [OrderView(n, similarity, torch.arange(24.0).view(4, 2, 3)) for n in (1, 2)]
    marked = [Marked("a", Query(1, 0, 0), "red"), Marked("b", Query(1, 1, 2), "blue")]
    sheet = lay_out(clip, views, marked, title="T", strength="change")
    assert sheet.titles == [
        "$l$ = -2",
        "$l$ = -1   0.00 s",
        "$l$ = 0   0.50 s",
        "$l$ = +1   1.00 s",
        "$l$ = +2   1.50 s",
    ]
    assert [picture is None for picture in sheet.pictures] == [True] + [False] * 4
    assert [[(row.label, row.note) for row in group] for group in sheet.groups] == [
        [("order 1", note), ("order 2", note)] for note in ("a", "b", "change")
    ]
    row = sheet.groups[1][0]
    assert row.maps[0] is None and all(found.values.shape == (2, 2) for found in row.maps[1:])
    assert row.scale == sheet.groups[0][0].scale  # one scale per order, whatever the query
    shown = np.concatenate([g[0].maps[i].values.ravel() for g in sheet.groups[:2] for i in (1, 3, 4)])
    assert shown.min() <= row.scale[0] < row.scale[1] <= shown.max()
    strength = sheet.groups[2][0]
    assert strength.maps[1].values.shape == (2, 3) and strength.scale[0] == 0
    assert lay_out(clip, views, marked, title="", strength=None, scale=(0, 1)).groups[0][0].scale == (0, 1)
    with pytest.raises(
        ValueError, match="a 1,2,0 is outside this clip's grid: t is 0 to 3, y 0 to 1, x 0 to 2"
    ):
        lay_out(clip, views, [Marked("a", Query(1, 2, 0), "red")], title="", strength=None)
    with pytest.raises(ValueError, match=r"share their frame, got t = \[1, 2\]"):
        lay_out(clip, views, [*marked, Marked("c", Query(2, 0, 0), "red")], title="", strength=None)
