"""Owns: the recipe as users start it - its settings, its files, and on two processes."""

import pytest
from launching import ROOT, launch, logged

from moss_vllm.config import parse
from moss_vllm.vlm import checkpoint

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def flags(tiny_base, world, tmp_path):
    """Flags of a short run on the tiny base and world; `out` is below the test's own folder."""

    def make(out, *more, **settings):
        settings = {"steps": 2, "batch_size": 2, "workers": 0, "lora_rank": 4, **settings}
        given = {"model": tiny_base, "data": world / "FAVOR", "out": tmp_path / out, **settings}
        pairs = [
            text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))
        ]
        return [*pairs, *more]

    return make


def weights(folder):
    return checkpoint.trained_state(checkpoint.load(folder).model)


# ---- one process


@pytest.mark.parametrize("with_moss", [True, False])
def test_it_trains_and_writes_a_checkpoint_that_loads(recipe, flags, tmp_path, moss, with_moss, capsys):
    lines = recipe.main(flags("run", "--use-moss" if with_moss else "--no-use-moss"))
    assert [line["step"] for line in lines] == [1, 2] and lines == logged(tmp_path / "run")
    names = ["moss", "projector", "llm lora"] if with_moss else ["projector", "llm lora"]
    # moss's biases and norms share its row: a weight decay of 0 leaves one group a row.
    assert list(lines[0]["lr"]) == names
    loaded = checkpoint.load(tmp_path / "run" / "step-000002")
    every = {"moss_after_layer": 6, "moss_orders": [1, 2], "moss_input_fc": True, **moss}
    assert loaded.name == "run" and loaded.run["moss"] == (every if with_moss else None)
    assert loaded.run["step"] == 2 and loaded.run["processes"] == 1
    assert loaded.run["settings"]["lora_rank"] == 4 and loaded.run["command"].startswith(
        "recipes/favor_lora.py"
    )
    assert loaded.run["protocol"] == {
        "sample_fps": 2.0,
        "short_side_px": 84,
        "max_frames": 180,
        "compress_tokens": False,
    }
    moved = {name.split(".lora_B")[0] for name, value in weights(tmp_path / "run" / "step-000002").items()
             if ".lora_B." in name and value.any()}  # fmt: skip
    assert len(moved) == 4 * 7
    shown = capsys.readouterr().out
    assert (
        "one process x1 on cpu, precision fp32" in shown
        and f"checkpoint {tmp_path}/run/step-000002" in shown.replace("\n", "")
    )


def test_a_dry_run_shows_everything_and_writes_nothing(recipe, flags, tmp_path, capsys):
    assert recipe.main([*flags("run"), "--dry-run"]) == []
    assert not (tmp_path / "run").exists()
    shown = capsys.readouterr().out
    data = ("kept 12 of 12 rows: 0 too long, 0 bad, 0 missing", "tokens per clip: ")
    for text in (*data, "2 steps of 2 clips x 1 processes", "what trains", "llm lora", "0.001", "frozen"):
        assert text in shown
    # The resolved settings, and the first conversation with each frame's tokens shown as one.
    assert "short_side_px" in shown and "84" in shown and "lora_rank" in shown
    assert "input_ids: (2, " in shown and "video_grid_thw: (2, 3)" in shown
    assert "<|im_start|>user\nTime 0.0s:<|video_pad|>,Time 0.5s:<|video_pad|>," in shown
    assert "Describe what is happening in the video.<|im_end|>\n<|im_start|>assistant\n" in shown


def test_recomputing_the_llm_changes_no_loss(recipe, flags):
    kept = recipe.main(flags("kept", lr_llm=1e-3))
    recomputed = recipe.main(flags("recomputed", "--checkpoint-llm", lr_llm=1e-3))
    assert [line["loss"] for line in recomputed] == pytest.approx([line["loss"] for line in kept], rel=1e-6)
    assert recomputed[0]["grad_norm"] == pytest.approx(kept[0]["grad_norm"], rel=1e-6)


# ---- settings


def test_flags_win_over_yaml_and_yaml_over_defaults(recipe, tmp_path):
    (tmp_path / "run.yaml").write_text("steps: 7\nlr_moss: 1.0e-2\nuse_moss: false\nlora_dropout: 1\n")
    config = ["--config", str(tmp_path / "run.yaml")]
    settings, flags = parse(recipe.FavorLora, [*config, "--steps", "9", "--use-moss"], "")
    assert (settings.steps, settings.lr_moss, settings.use_moss) == (9, 0.01, True)
    assert (settings.lora_dropout, settings.batch_size, settings.revision) == (1.0, 16, None)
    assert isinstance(settings.lora_dropout, float) and not flags.dry_run
    assert parse(recipe.FavorLora, config, "")[0].use_moss is False


@pytest.mark.parametrize(
    "text, message",
    [
        ("stesp: 3", r"unknown settings \['stesp'\]; known are .*'steps'"),
        ("steps: many", r"steps is 'many', expected int"),
        ("steps: 1.5", r"steps is 1.5, expected int"),
        ("steps: true", r"steps is True, expected int"),
        ("use_moss: 1", r"use_moss is 1, expected bool"),
        ("lr_moss: 1e-3", r"lr_moss is '1e-3', expected float"),
        ("model: null", r"model is None, expected str"),
        ("- steps", r"expected 'name: value' lines, got list"),
        ("", r"expected 'name: value' lines, got NoneType"),
        ("steps: [", r"cannot be read as YAML"),
    ],
)
def test_wrong_yaml_is_named(recipe, tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"run\.yaml: {message}"):
        parse(recipe.FavorLora, ["--config", str(tmp_path / "run.yaml")], "")


def test_a_missing_yaml_is_named(recipe, tmp_path):
    with pytest.raises(ValueError, match=r"gone\.yaml: cannot be read"):
        parse(recipe.FavorLora, ["--config", str(tmp_path / "gone.yaml")], "")


@pytest.mark.parametrize("argv", [["--stesp", "3"], ["--steps", "many"]])
def test_wrong_flags_are_named(recipe, argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(recipe.FavorLora, argv, "")
    assert stopped.value.code == 2 and argv[0] in capsys.readouterr().err


def test_the_papers_config_is_valid(recipe):
    paper = ROOT / "recipes" / "configs" / "favor_videollama3_2b.yaml"
    settings, _ = parse(recipe.FavorLora, ["--config", str(paper)], "")
    assert (settings.steps, settings.sample_fps, settings.short_side_px) == (1000, 2.0, 224)  # Sec. 4.5
    assert (settings.lr_moss, settings.lr_projector, settings.lr_llm) == (1e-3, 1e-4, 1e-5)


# ---- two processes


@pytest.mark.slow
@pytest.mark.parametrize("with_moss", [False, True])
def test_two_processes_equal_one_at_twice_the_batch(recipe, flags, tmp_path, with_moss):
    arm = "--use-moss" if with_moss else "--no-use-moss"
    alone = recipe.main(flags("alone", arm, steps=4, batch_size=4))
    printed = launch("DDP", flags("pair", arm, steps=4, batch_size=2), tmp_path)
    # Without --multi_gpu, accelerate starts one process in silence: this is what really ran.
    assert "DDP x2 on cpu" in printed
    assert checkpoint.load(tmp_path / "pair" / "step-000004").run["processes"] == 2
    pair = logged(tmp_path / "pair")
    assert [line["clips"] for line in pair] == [line["clips"] for line in alone] == [4] * 4
    # BatchNorm normalises each process's 2 clips by themselves instead of all 4. MOSS starts as zero, so the
    # first loss is equal; the later ones feel it through MOSS's first steps (measured: 6e-5, 6e-5, 1e-2, and
    # 7e-8 without MOSS).
    assert pair[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-5)
    tolerance = 2e-2 if with_moss else 1e-4
    for one, two in zip(alone, pair, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=tolerance)
