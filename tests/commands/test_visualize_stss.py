"""Owns: scripts/visualize_stss.py draws what was computed and leaves whole files, or says why not."""

import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from launching import as_flags
from PIL import Image

from moss_vllm.commands.scripts import visualize_stss
from moss_vllm.data.rows import Turn
from moss_vllm.report.stss_features import load_vit, vit_features
from moss_vllm.report.stss_maps import TOY_GRID, pick_query
from moss_vllm.video.clip import Clip, Sampling, read_clip
from moss_vllm.video.write import write_clip
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.adapter import attach_lora
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.video_llama3.chat import encode


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


def test_the_picked_query_is_on_what_moves():
    frames = sliding_square()
    query = pick_query(Clip(frames, np.arange(8) / 4), (16, 16), 5)
    assert 2 <= query.t <= 5  # its window of five frames is inside the clip
    assert 7 <= query.y <= 9 and 2 + query.t <= query.x <= 4 + query.t
    assert pick_query(Clip(frames[:2], np.arange(2) / 4), (16, 16), 5).t in (0, 1)
    with pytest.raises(ValueError, match="two frames or more, got one"):
        pick_query(Clip(frames[:1], np.zeros(1)), (16, 16), 5)


def check_png(path, height=None):
    with Image.open(path) as image:
        assert image.width == 1600 and (height is None or abs(image.height - height) <= 2)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 100


@pytest.mark.slow
def test_toy_png_and_gif(tmp_path, capsys):
    out, gif = tmp_path / "new" / "toy.png", tmp_path / "toy.gif"
    sheet = visualize_stss.main(["--toy", "--orders", "1", "--out", str(out), "--animate", str(gif)])
    assert (
        "order 1, brown query: query 0.91, own set 0.09, twin 0.91, other set 0.09" in capsys.readouterr().out
    )
    assert (sheet.grid, len(sheet.titles), len(sheet.groups)) == (TOY_GRID, 5, 2)
    check_png(out)
    with Image.open(gif) as image:
        assert (image.n_frames, image.info["loop"], image.info["duration"]) == (5, 0, 500)


@pytest.mark.slow
def test_each_source_has_a_default_name_of_its_own_and_a_replaced_picture_is_named(
    mp4, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    commands = {
        "runs/stss.png": ["--toy"],
        "runs/stss_square.png": ["--video", str(mp4)],
        "runs/stss_square_moss-step-000360.png": ["--video", str(mp4), "--ckpt", "runs/moss/step-000360"],
    }
    for out, command in commands.items():
        assert visualize_stss.parse(command).out == Path(out)
    for replaced in ("", ", in place of an earlier one"):
        visualize_stss.main(["--toy", "--orders", "1"])
        assert f"wrote runs/stss.png{replaced}\n" in capsys.readouterr().out


def test_video_png_and_mp4_from_pixels_and_the_query_it_picks(mp4, tmp_path, capsys):
    out, movie = tmp_path / "a.png", tmp_path / "a.mp4"
    command = ["--video", str(mp4), "--encoder", "raw", "--window", "3,5,5", "--orders", "1", "2"]
    sheet = visualize_stss.main([*command, "--out", str(out), "--animate", str(movie)])
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
        assert sum(1 for _ in container.decode(video=0)) == 3 * visualize_stss.MP4_ROUNDS


@pytest.mark.slow
def test_video_through_a_timm_vit_with_weights_of_a_file(mp4, tmp_path):
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224")
    weights = tmp_path / "vit.safetensors"
    save_file(model.state_dict(), weights)
    loaded = load_vit("vit_tiny_patch16_224", str(weights))
    assert torch.equal(loaded.blocks[1].attn.qkv.weight, model.blocks[1].attn.qkv.weight)
    clip, features = vit_features(loaded, Clip(sliding_square(2)[:, :112], np.arange(2) / 4), 2)
    assert features.shape == (1, 2, 7, 14, 192) and clip.frames.shape == (2, 112, 224, 3)
    tokens = model.forward_intermediates(
        torch.from_numpy(sliding_square(1)).permute(0, 3, 1, 2) / 127.5 - 1,
        indices=[1],
        intermediates_only=True,
    )[0]
    full = vit_features(loaded, Clip(sliding_square(1), np.zeros(1)), 2)[1]
    assert torch.allclose(full[0], tokens.permute(0, 2, 3, 1), atol=1e-3)

    command = ["--video", str(mp4), "--encoder", "vit_tiny_patch16_224", "--out", str(tmp_path / "a.png")]
    command += ["--window", "3,3,3", "--max-frames", "4", "--orders", "1", "--weights", str(weights)]
    sheet = visualize_stss.main([*command, "--after-layer", "2", "--query", "1,7,3", "--query", "1,0,0"])
    assert sheet.grid == (14, 14) and [one.query for one in sheet.marked] == [(1, 7, 3), (1, 0, 0)]
    assert "vit_tiny_patch16_224 after layer 2" in sheet.title
    check_png(tmp_path / "a.png")
    for wrong, message in (
        (["--after-layer", "13"], "--after-layer 13: this encoder has layers 1 to 12"),
        (["--weights", str(tmp_path / "no.bin")], r"--weights .*no\.bin: no such file"),
        (["--weights", str(mp4)], "no weights for encoder 'vit_tiny_patch16_224' in .*--weights random"),
        (["--encoder", "vit_tinny"], "'vit_tinny' is neither 'raw' nor in timm"),
        (["--encoder", "resnet18", "--weights", "random"], "'resnet18' is no plain ViT"),
        (["--encoder", "swin_tiny_patch4_window7_224", "--weights", "random"], "_224' is no plain ViT"),
        (["--encoder", "vit_tiny_r_s16_p8_224", "--weights", "random"], "_p8_224' is no plain ViT"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            visualize_stss.main([*command, *wrong])


@pytest.fixture(scope="module")
def vit_weights():
    timm = pytest.importorskip("timm")
    return timm.create_model("vit_tiny_patch16_224").state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"conv.weight": torch.ones(3)}, "150 of 150 weights of this encoder are missing"),
        (lambda s: {k: v for k, v in s.items() if "blocks.3." not in k}, "12 of 150 .*blocks.3.norm1.weight"),
        (lambda s: s | {"norm.bias": torch.ones(3)}, "1 of 150 .* of another shape .norm.bias"),
        (lambda s: s | {"blocks.12.norm1.bias": torch.ones(192)}, "1 weights of its blocks are none of this"),
    ],
)
def test_weights_of_another_encoder_are_refused(vit_weights, change, message, tmp_path):
    file = tmp_path / "vit.pth"
    torch.save({"state_dict": change(vit_weights)}, file)
    with pytest.raises(
        ValueError, match=rf"^--weights .*vit\.pth: {message}.*take a file made for 'vit_tiny"
    ):
        load_vit("vit_tiny_patch16_224", str(file))


def test_weights_may_have_another_head_and_names_that_timm_knows_to_convert(vit_weights, tmp_path):
    file = tmp_path / "vit.pth"
    headless = {key: value for key, value in vit_weights.items() if not key.startswith("head.")}
    for state in (headless, headless | {"head.weight": torch.ones(7, 192), "classifier.bias": torch.ones(7)}):
        torch.save({f"visual.trunk.{key}": value for key, value in state.items()}, file)
        found = load_vit("vit_tiny_patch16_224", str(file)).state_dict()
        assert len(found) == 150 and all(torch.equal(found[key], headless[key]) for key in found)


def test_weights_in_a_pickle_with_code_are_refused(tmp_path):
    file = tmp_path / "vit.pth"
    torch.save({"state_dict": Path("a_class_that_is_no_weight")}, file)
    with pytest.raises(ValueError, match=r"no weights for encoder .* in .*vit\.pth \((?i:weights.only)"):
        load_vit("vit_tiny_patch16_224", str(file))


def test_weights_that_are_not_finite_are_an_error(vit_weights, mp4, tmp_path):
    torch.save(vit_weights | {"blocks.0.mlp.fc1.bias": torch.full((768,), torch.nan)}, tmp_path / "vit.pth")
    given = {"video": mp4, "encoder": "vit_tiny_patch16_224", "after_layer": 1, "max_frames": 3}
    given |= {"weights": tmp_path / "vit.pth", "query": "1,0,0"}
    with pytest.raises(
        SystemExit, match=r"error: vit_tiny_.* after layer 1: order 1 is not finite \(NaN or inf"
    ):
        visualize_stss.main(as_flags(given))


@pytest.mark.slow
def test_video_through_a_checkpoint_shows_the_trained_moss(mp4, tiny_base, moss, processor, tmp_path):
    model = attach_lora(load_base(tiny_base, moss=moss), rank=4, alpha=8, dropout=0.0)
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
    sheet = visualize_stss.main([*command, "--animate", str(movie)])
    assert sheet.grid == (6, 6) and "a_run, MOSS after layer 6" in sheet.title
    assert [[row.label for row in group] for group in sheet.groups] == [["order 1", "order 2"]] * 2
    assert [row.note for row in sheet.groups[1]] == ["norm of M"] * 2
    check_png(out)
    assert movie.stat().st_size > 0

    read = []
    trained.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    clip = read_clip(mp4, Sampling(sample_fps=4.0, short_side_px=84))
    inputs = encode(processor, clip, [Turn("?")], compress=False)
    with torch.inference_mode():
        tower.eval()(*(inputs[key] for key in ("pixel_values_videos", "video_grid_thw", "video_merge_sizes")))
        maps = trained.maps(read[0].view(1, *inputs["video_grid_thw"][0], -1))
    for row, order in zip(sheet.groups[0], maps, strict=True):
        assert np.allclose(row.maps[0].values, order.similarity[0, 3, 2, 2, 0], atol=1e-5)
    for row, order in zip(sheet.groups[1], maps, strict=True):
        assert np.allclose(row.maps[1].values, order.motion[0, 3].norm(dim=-1), rtol=1e-4, atol=1e-5)

    with pytest.raises(SystemExit, match=r"error: this MOSS has orders \[1, 2\], not \[3\]"):
        visualize_stss.main([*command, "--orders", "3"])
    with pytest.raises(SystemExit, match="one frame was read, and motion takes two; raise --sample-fps"):
        visualize_stss.main([*command, "--max-frames", "1"])
    with pytest.raises(SystemExit, match="has no MOSS; give a checkpoint of recipes/favor_lora.py"):
        visualize_stss.main(["--video", str(mp4), "--ckpt", str(tiny_base)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            ["--query", "1,16,0"],
            "query 1,16,0 is outside this clip's grid: t is 0 to 7, y 0 to 15, x 0 to 15",
        ),
        (["--video", "none.mp4"], r"none\.mp4: No such file"),
        (["--ckpt", ""], "no config.json there; give a checkpoint folder"),
        (
            ["--max-frames", "1"],
            "one frame was read, and motion takes two; raise --sample-fps or --max-frames; or",
        ),
    ],
)
def test_errors_in_one_line(mp4, tmp_path, wrong, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        visualize_stss.main(["--video", str(mp4), "--out", str(tmp_path / "a.png"), "--orders", "1", *wrong])
    assert not (tmp_path / "a.png").exists()


def test_still_and_short_videos_say_what_helps(mp4, tmp_path):
    command = ["--video", str(tmp_path / "a.mp4"), "--orders", "1", "--out", str(tmp_path / "a.png")]
    write_clip(sliding_square()[[0] * 6], tmp_path / "a.mp4", fps=4)
    with pytest.raises(SystemExit, match="nothing moves in the 6 frames read; give --query"):
        visualize_stss.main(command)
    write_clip(sliding_square(1), tmp_path / "a.mp4", fps=4)
    with pytest.raises(SystemExit, match=r"a\.mp4: the video has one frame, and motion takes two"):
        visualize_stss.main(command)
    sheet = visualize_stss.main([*command, "--query", "0,7,3"])
    assert len(sheet.titles) == 1  # the default window is no longer than the clip allows


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.mp4"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(mp4, monkeypatch, tmp_path, name):
    def fail(self_or_frames, path, *args, **kwargs):
        path.write_bytes(b"half")
        raise OSError("disk full")

    (tmp_path / name).write_bytes(b"old")
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", fail if name == "a.png" else lambda *_, **__: None
    )
    monkeypatch.setattr("PIL.Image.Image.save", fail)
    monkeypatch.setattr(visualize_stss, "write_clip", fail)
    monkeypatch.setattr("os.replace", lambda part, path: None)
    out = tmp_path / name if name == "a.png" else tmp_path / "b.png"
    more = [] if name == "a.png" else ["--animate", str(tmp_path / name)]
    with pytest.raises(SystemExit, match="error: disk full"):
        visualize_stss.main(["--video", str(mp4), "--orders", "1", "--out", str(out), *more])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: b"old"}


@pytest.mark.parametrize(("option", "name"), [("--out", "a.png"), ("--animate", "a.gif")])
def test_a_folder_is_no_file_to_write_to(option, name, tmp_path, capsys):
    (tmp_path / name).mkdir()
    with pytest.raises(SystemExit):
        visualize_stss.parse(["--toy", option, str(tmp_path / name)])
    assert f"{option} takes a file, and {tmp_path / name} is a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "one of the arguments --toy --video is required"),
        (["--toy", "--window", "3,3,3"], "--window goes with --video, not with --toy"),
        (["--video", "a.mp4", "--after-layer", "1"], "--after-layer goes with --encoder"),
        (["--video", "a.mp4", "--ckpt", "c", "--window", "3,3,3"], "--window does not go with --ckpt"),
        (["--video", "a.mp4", "--ckpt", "", "--encoder", "raw"], "--encoder does not go with --ckpt"),
        (["--video", "a.mp4", "--query", "1,2"], "takes three integers such as 5,9,9, got '1,2'"),
        (["--toy", "--orders", "0"], "--orders is 0; it must be at least 1"),
        (["--video", "a.mp4", "--max-frames", "0"], "--max-frames is 0; it must be at least 1"),
        (["--video", "a.mp4", "--sample-fps", "0"], "--sample-fps is 0.0; it must be from 0.001 to 1000"),
        (["--toy", "--out", "a.jpg"], "--out takes a name that ends in .png, got a.jpg"),
        (["--toy", "--animate", "a.avi"], "--animate takes a name that ends in .gif or .mp4, got a.avi"),
    ],
)
def test_options_that_do_not_go_together(wrong, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        visualize_stss.parse(wrong)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
