"""Owns: impossible settings are named all at once, accumulation comes nearest, --help has headings."""

import sys
from dataclasses import dataclass
from typing import Literal

import pytest

from moss_vllm.training.settings import (
    Count,
    FromZero,
    Share,
    accumulate_for,
    begin,
    ignored,
    options,
    parse,
    refuse,
    setting,
)


@dataclass(frozen=True)
class Settings:
    """Of a recipe."""

    data: str = setting("world", "folder of the data", heading="data")
    cache: str | None = setting(None, "folder of decoded clips")
    out: str | None = setting(None, "folder of the run")
    steps: Count = setting(10, "optimizer steps", heading="training")
    keep: Count | None = setting(None, "newest checkpoints to keep (default: all)")
    floor: Share = setting(0.5, "rate at the end")
    workers: FromZero = setting(0, "processes that read")
    crops: Literal[1, 3] | None = setting(None, "views of a clip")
    precision: Literal["fp32", "bf16"] = setting("fp32", "number format", old={"no": "fp32"})


def parsed(*words):
    return parse(Settings, words, "About.")[0]


def test_possible_values_pass_and_none_is_possible(tmp_path, capsys):
    assert parsed() == Settings()
    words = "--steps 1 --keep 1 --floor 0 --crops 3 --precision no".split()
    assert parsed(*words) == Settings(steps=1, keep=1, floor=0.0, crops=3)
    assert capsys.readouterr().err == "precision no is called fp32 now\n"
    refuse(Settings(cache=str(tmp_path / "new")), [])
    assert not (tmp_path / "new").exists()


IMPOSSIBLE = [
    *("data is empty", "give a value, or leave it out"),
    *("steps is 0", "it must be at least 1", "keep is -1", "it must be at least 1"),
    *("floor is nan", "it must be from 0 to 1", "workers is -1", "it must be at least 0"),
    *("crops is 2", "it must be one of 1, 3", "precision is 'half'", "it must be one of fp32, bf16"),
]


def test_every_impossible_value_of_flags_and_file_is_named_at_once(tmp_path, monkeypatch):
    file = tmp_path / "settings.yaml"
    file.write_text("steps: 0\nkeep: -1\nfloor: .nan\ndata: ''\nworkers: 3\n")
    words = ["--config", str(file), "--workers", "-1", "--crops", "2", "--precision", "half"]
    with pytest.raises(ValueError) as refused:
        parsed(*words)
    assert str(refused.value).split("; ") == IMPOSSIBLE
    monkeypatch.setattr(sys, "argv", ["recipe.py", *words])
    with pytest.raises(SystemExit) as ended:  # before the imports
        begin(Settings, "About.")
    assert ended.value.code == f"error: {'; '.join(IMPOSSIBLE)}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"floor: 1{'0' * 400}", "floor has 401 digits; give a smaller number"),
        (f"steps: 1{'0' * 5000}", "cannot be read as YAML: Exceeds the limit"),
        ("data: 2026-99-99", "cannot be read as YAML: month must be in 1..12"),
        ("steps: true", "steps is True, expected int"),
    ],
    ids=["401 digits", "5001 digits", "date", "truth"],
)
def test_what_yaml_cannot_hold_is_refused_with_the_name_of_the_file(tmp_path, text, reason):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"^{file}: {reason}"):
        parsed("--config", str(file))


def test_what_a_recipe_finds_and_folders_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^cache .*/file/below is not a folder .*/file is a file"):
        refuse(Settings(cache=str(tmp_path / "file" / "below")), [])
    with pytest.raises(ValueError, match="^a; b$"):
        refuse(Settings(), ["a", "b"])


@dataclass(frozen=True)
class Recipe:
    """What `begin` looks at."""

    out: str = setting("runs/recipe", "folder of the run")
    resume: str | None = setting(None, "checkpoint")
    cache: str | None = setting(None, "folder of decoded clips")
    model: str = setting("miniature", "what is trained")


def test_a_recipe_looks_at_its_folders_before_its_imports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def start(*words, **how):
        monkeypatch.setattr(sys, "argv", ["recipe.py", *words])
        begin(Recipe, "About.", **how)

    start("--resume", "auto")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs" / "recipe" / "step-000002").mkdir(parents=True)
    there = "^error: runs/recipe/step-000002 is there already; resume with --resume auto"
    with pytest.raises(SystemExit, match=there):
        start()
    with pytest.raises(SystemExit, match="^error: runs/recipe/step-000002: no step-NNNNNN folder with"):
        start("--resume", "auto")
    (tmp_path / "settings.yaml").write_text("out: runs/recipe\n")
    with pytest.raises(SystemExit, match=there):
        start("--config", "settings.yaml", "--model", "other", out_depends_on="model")
    start("--model", "other", out_depends_on="model")
    start("--dry-run")
    start("--config", "settings.yaml", "--out", "runs/other")
    for name in ("out", "cache"):
        with pytest.raises(SystemExit, match=f"^error: {name} /proc/x is not a folder that can be"):
            start("--out=runs/other", f"--{name}=/proc/x")
    with pytest.raises(SystemExit) as stopped:
        start("--ouut", "x")
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    "clips_a_step, at_once, expected", [(128, 16, 8), (15, 8, 2), (15, 16, 1), (3, 16, 1), (40, 16, 2)]
)
def test_accumulation_comes_nearest_to_the_clips_of_a_step(clips_a_step, at_once, expected):
    assert accumulate_for(clips_a_step, at_once) == expected


def test_a_setting_without_effect_is_named_unless_a_later_layer_switched_it_off():
    keeping = Settings(keep=3)
    needs = {"keep": "cache"}
    (fault,) = ignored(keeping, {"a.yaml": {"keep": 3}}, needs)
    assert fault == "keep is 3 and has no effect without cache; give both, or leave it out"
    assert ignored(keeping, {"a.yaml": {"keep": 3}, "flag": {"cache": None}}, needs) == []
    assert ignored(keeping, {}, needs) == []


def test_help_has_the_fields_below_their_headings():
    text = options(Settings, "About.").format_help()
    general, data, training = (text.index(word) for word in ("--dry-run", "\ndata:\n", "\ntraining:\n"))
    assert (
        general < data < text.index("--cache STR" if "--cache STR" in text else "--cache ", data) < training
    )
    assert training < text.index("--steps N", training) < text.index("--precision", training)
    plain = " ".join(text.split())
    assert "--steps N optimizer steps (at least 1; default: 10)" in plain
    assert "--keep N newest checkpoints to keep (at least 1; default: all)" in plain
    assert "--floor X rate at the end (from 0 to 1; default: 0.5)" in plain
    assert "--crops {1,3} views" in plain and "--precision {fp32,bf16} number" in plain
