"""Owns: the numbers behind the STSS pictures bear out the paper; the script draws, or says why not."""

import importlib.util
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from moss_vllm.core import MOSS, stss
from moss_vllm.core.moss import OrderMaps
from moss_vllm.data.chat import Turn, encode
from moss_vllm.data.motion_world import write_clip
from moss_vllm.data.video import Clip, read_clip
from moss_vllm.stss_maps import (
    TOY_CELL_PX,
    TOY_GRID,
    TOY_WINDOW,
    Marked,
    OrderView,
    Query,
    flattened_orders,
    lay_out,
    learned_orders,
    patch_pixels,
    pick_query,
    query_map,
    toy_clip,
    toy_similarity,
)
from moss_vllm.vlm import checkpoint

SCRIPT = Path(__file__).parents[1] / "scripts" / "visualize_stss.py"
GROUPS = ["query", "own set", "twin", "other set", "background"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("visualize_stss", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def toy():
    return toy_clip()


@pytest.fixture(scope="module")
def toy_views(toy):
    return flattened_orders(patch_pixels(toy.clip.frames, TOY_CELL_PX), TOY_WINDOW, (1, 2, 3))


def sliding_square(frames=8, size=224, step=14):
    """A textured square of 42 pixels that moves right over a static checked wall."""
    rng = np.random.default_rng(0)
    wall = rng.integers(90, 130, (size // 7, size // 7, 3), np.uint8).repeat(7, 0).repeat(7, 1)
    square = rng.integers(0, 256, (6, 6, 3), np.uint8).repeat(7, 0).repeat(7, 1)
    clip = np.stack([wall] * frames)
    for t in range(frames):
        clip[t, 98:140, 28 + step * t : 70 + step * t] = square
    return clip


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "square.mp4"
    write_clip(sliding_square(), path, fps=4)
    return path


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


def test_the_picked_query_is_on_what_moves():
    frames = sliding_square()
    query = pick_query(Clip(frames, np.arange(8) / 4), (16, 16), 5)
    assert 2 <= query.t <= 5  # its window of five frames is inside the clip
    assert 7 <= query.y <= 9 and 2 + query.t <= query.x <= 4 + query.t
    assert pick_query(Clip(frames[:2], np.arange(2) / 4), (16, 16), 5).t in (0, 1)
    with pytest.raises(ValueError, match="one was read; raise --fps or --frames"):
        pick_query(Clip(frames[:1], np.zeros(1)), (16, 16), 5)


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


def check_png(path, height=None):
    with Image.open(path) as image:
        assert image.width == 1600 and (height is None or abs(image.height - height) <= 2)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 100


def test_toy_png_and_gif(script, tmp_path, capsys):
    out, gif = tmp_path / "new" / "toy.png", tmp_path / "toy.gif"
    sheet = script.main(["--toy", "--orders", "1", "--out", str(out), "--animate", str(gif)])
    assert (
        "order 1, brown query: query 0.91, own set 0.09, twin 0.91, other set 0.09" in capsys.readouterr().out
    )
    assert (sheet.grid, len(sheet.titles), len(sheet.groups)) == (TOY_GRID, 5, 2)
    check_png(out)
    with Image.open(gif) as image:
        assert (image.n_frames, image.info["loop"], image.info["duration"]) == (5, 0, 500)


def test_video_png_and_mp4_from_pixels_and_the_query_it_picks(script, mp4, tmp_path, capsys):
    out, movie = tmp_path / "a.png", tmp_path / "a.mp4"
    command = ["--video", str(mp4), "--encoder", "raw", "--window", "3,5,5", "--orders", "1", "2"]
    sheet = script.main([*command, "--out", str(out), "--animate", str(movie)])
    said = capsys.readouterr().out
    assert (sheet.grid, len(sheet.titles), [len(group) for group in sheet.groups]) == ((16, 16), 3, [2, 2])
    t, y, x = map(int, re.search(r"query (\d+),(\d+),(\d+) ", said).groups())
    assert 7 <= y <= 9 and 2 + t <= x <= 4 + t
    # The match one frame later is one cell to the right, where the square went.
    found = sheet.groups[0][0].maps[2]
    best = np.unravel_index(found.values.argmax(), found.values.shape)
    assert (best[0] + found.top, best[1] + found.left) == (y, x + 1)
    # What moves stands out from the wall in what each order makes of the frame.
    for row in sheet.groups[1]:
        strength = row.maps[1].values
        assert strength[7:10, 2 + t : 5 + t].mean() > 3 * np.median(strength)
    check_png(out)
    with av.open(str(movie)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3 * script.MP4_ROUNDS


def test_video_through_a_timm_vit_with_weights_of_a_file(script, mp4, tmp_path):
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224")
    weights = tmp_path / "vit.safetensors"
    save_file(model.state_dict(), weights)
    loaded = script.load_vit("vit_tiny_patch16_224", str(weights))
    assert torch.equal(loaded.blocks[1].attn.qkv.weight, model.blocks[1].attn.qkv.weight)
    clip, features = script.vit_features(loaded, Clip(sliding_square(2)[:, :112], np.arange(2) / 4), 2)
    assert features.shape == (1, 2, 7, 14, 192) and clip.frames.shape == (2, 112, 224, 3)
    tokens = model.forward_intermediates(
        torch.from_numpy(sliding_square(1)).permute(0, 3, 1, 2) / 127.5 - 1,
        indices=[1],
        intermediates_only=True,
    )[0]
    full = script.vit_features(loaded, Clip(sliding_square(1), np.zeros(1)), 2)[1]
    assert torch.allclose(full[0], tokens.permute(0, 2, 3, 1), atol=1e-3)

    command = ["--video", str(mp4), "--encoder", "vit_tiny_patch16_224", "--out", str(tmp_path / "a.png")]
    command += ["--window", "3,3,3", "--frames", "4", "--orders", "1", "--weights", str(weights)]
    sheet = script.main([*command, "--after-layer", "2", "--query", "1,7,3", "--query", "1,0,0"])
    assert sheet.grid == (14, 14) and [one.query for one in sheet.marked] == [(1, 7, 3), (1, 0, 0)]
    assert "vit_tiny_patch16_224 after layer 2" in sheet.title
    check_png(tmp_path / "a.png")
    for wrong, message in (
        (["--after-layer", "13"], "--after-layer 13: this encoder has layers 1 to 12"),
        (["--weights", str(tmp_path / "no.bin")], r"--weights .*no\.bin: no such file"),
        (["--weights", str(mp4)], "no weights for encoder 'vit_tiny_patch16_224' in .*--weights random"),
        (["--encoder", "vit_tinny"], "'vit_tinny' is neither 'raw' nor in timm"),
        (["--encoder", "resnet18", "--weights", "random"], "'resnet18' is no plain ViT"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            script.main([*command, *wrong])


def test_video_through_a_checkpoint_shows_the_trained_moss(script, mp4, tiny_base, moss, processor, tmp_path):
    model = checkpoint.attach_lora(checkpoint.load_base(tiny_base, moss=moss), rank=4, alpha=8, dropout=0.0)
    tower = model.get_submodule("base_model.model.model.vision_model")
    trained = tower.moss.modules_to_save["default"]
    with torch.no_grad():
        trained.get_submodule("order1").in_proj.weight.mul_(3).add_(0.2)  # now unlike the untrained copy
    run = {"base_model": str(tiny_base), "base_revision": None, "moss": moss}
    run["protocol"] = {"sample_fps": 4.0, "short_side_px": 84}
    folder = tmp_path / "a_run" / "step-000001"
    checkpoint.save(folder, model, processor, run)
    out, movie = tmp_path / "a.png", tmp_path / "a.mp4"
    command = ["--video", str(mp4), "--ckpt", str(folder), "--query", "3,2,2", "--out", str(out)]
    sheet = script.main([*command, "--animate", str(movie)])
    assert sheet.grid == (6, 6) and "a_run, MOSS after layer 6" in sheet.title
    assert [[row.label for row in group] for group in sheet.groups] == [["order 1", "order 2"]] * 2
    assert [row.note for row in sheet.groups[1]] == ["norm of M"] * 2
    check_png(out)
    assert movie.stat().st_size > 0

    read = []
    trained.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    clip = read_clip(mp4, sample_fps=4.0, short_side_px=84)
    inputs = encode(processor, clip, [Turn("?")], compress=False)
    with torch.inference_mode():
        tower.eval()(*(inputs[key] for key in ("pixel_values_videos", "video_grid_thw", "video_merge_sizes")))
        maps = trained.maps(read[0])
    for row, order in zip(sheet.groups[0], maps, strict=True):
        assert np.allclose(row.maps[0].values, order.similarity[0, 3, 2, 2, 0], atol=1e-5)
    for row, order in zip(sheet.groups[1], maps, strict=True):
        assert np.allclose(row.maps[1].values, order.motion[0, 3].norm(dim=-1), rtol=1e-4, atol=1e-5)

    with pytest.raises(SystemExit, match=r"error: this MOSS has orders \[1, 2\], not \[3\]"):
        script.main([*command, "--orders", "3"])
    with pytest.raises(SystemExit, match="MOSS takes two frames, one was read"):
        script.main([*command, "--frames", "1"])
    with pytest.raises(SystemExit, match="has no MOSS; give a checkpoint of recipes/favor_lora.py"):
        script.main(["--video", str(mp4), "--ckpt", str(tiny_base)])
    with pytest.raises(SystemExit, match="no config.json there"):
        script.main(["--video", str(mp4), "--ckpt", str(tmp_path / "nothing")])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            ["--query", "1,16,0"],
            "query 1,16,0 is outside this clip's grid: t is 0 to 7, y 0 to 15, x 0 to 15",
        ),
        (["--query", "1,0,0", "--query", "2,0,0"], r"share their frame, got t = \[1, 2\]"),
        (["--window", "5,9,8"], r"window \(L, U, V\) needs three positive odd sizes"),
        (["--frames", "0"], "max_frames is 0; it must be between 1 and"),
        (["--frames", "1"], "two frames or more, one was read; raise --fps or --frames"),
    ],
)
def test_errors_in_one_line(script, mp4, tmp_path, wrong, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        script.main(["--video", str(mp4), "--out", str(tmp_path / "a.png"), "--orders", "1", *wrong])
    assert not (tmp_path / "a.png").exists()


def test_a_missing_video_is_named(script, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .*none\.mp4: No such file"):
        script.main(["--video", str(tmp_path / "none.mp4")])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "one of the arguments --toy --video is required"),
        (["--toy", "--window", "3,3,3"], "--window goes with --video, not with --toy"),
        (["--video", "a.mp4", "--after-layer", "0"], "--after-layer goes with --encoder"),
        (["--video", "a.mp4", "--ckpt", "c", "--window", "3,3,3"], "--window does not go with --ckpt"),
        (["--video", "a.mp4", "--query", "1,2"], "takes three integers such as 5,9,9, got '1,2'"),
        (["--toy", "--orders", "0"], "--orders counts from 1, got 0"),
        (["--toy", "--out", "a.jpg"], "--out takes a name that ends in .png, got a.jpg"),
        (["--toy", "--animate", "a.avi"], "--animate takes a name that ends in .gif or .mp4, got a.avi"),
    ],
)
def test_options_that_do_not_go_together(script, wrong, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.parse(wrong)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
