"""Owns: impossible settings are named all at once, accumulation comes nearest, --help has headings."""

import sys
from dataclasses import dataclass, replace
from typing import Literal

import pytest

from moss_vllm.training.settings import accumulate_for, begin, ignored, options, refuse, setting


@dataclass(frozen=True)
class Settings:
    """Of a recipe."""

    data: str = setting("world", "folder of the data", heading="data")
    cache: str | None = setting(None, "folder of decoded clips")
    steps: int = setting(10, "optimizer steps", heading="training")
    keep: int | None = setting(None, "newest checkpoints to keep")
    floor: float = setting(0.5, "rate at the end")
    workers: int = setting(0, "processes that read")
    precision: Literal["fp32", "bf16"] = setting("fp32", "number format")


def check(**changed):
    kinds = {"counts": ("steps", "keep"), "shares": ("floor",), "from_zero": ("workers",), "paths": ("data",)}
    refuse(replace(Settings(), **changed), **kinds, written=("cache",), others=changed.pop("others", ()))


def test_possible_values_pass_and_none_is_possible(tmp_path):
    check()
    check(steps=1, keep=1, floor=0.0, cache=str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_every_impossible_value_is_named_at_once():
    with pytest.raises(ValueError) as refused:
        check(steps=0, keep=-1, floor=float("nan"), workers=-1, data="", precision="half")
    assert str(refused.value).split("; ") == [
        *("steps is 0", "it must be at least 1", "keep is -1", "it must be at least 1"),
        *("floor is nan", "it must be a number from 0 to 1", "workers is -1", "it must be at least 0"),
        *("data is empty", "name a folder or a file", "precision is 'half'"),
        "it must be one of fp32, bf16",
    ]


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^cache .*/file/below is not a folder .*/file is a file"):
        check(cache=str(tmp_path / "file" / "below"))


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
