"""Owns: a command is written as the user started the program - by its file, or by the words of `moss`."""

import sys
from pathlib import Path

import pytest

from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.spelling import RECIPE_CONFIGS, again, command, script_of, spelled
from moss_vllm.training.start import command_line

TEXTS = {
    "python recipes/favor_lora.py --dry-run": "moss train favor_lora --dry-run",
    "    python  eval/compare.py A B": "    moss compare A B",
    "test with eval/detection.py, or `scripts/merge.py`": "test with moss eval detection, or `moss merge`",
    "accelerate launch eval/boundaries.py": "accelerate launch -m moss_vllm eval boundaries",
    "accelerate launch --multi_gpu recipes/detection.py --root x": (
        "accelerate launch --multi_gpu -m moss_vllm train detection --root x"
    ),
    "accelerate launch --multi_gpu ...\npython scripts/ask.py": "accelerate launch --multi_gpu ...\nmoss ask",
    "the --out of a script in recipes/ or eval/": "the --out of moss train or eval",
    "--config recipes/configs/x.yaml": f"--config {RECIPE_CONFIGS.as_posix()}/x.yaml",
    "/home/me/recipes/mine.py my-eval/a.py runs/eval/a experiments/demo.py": None,
}


SCRIPTS = {
    "recipes/boundaries.py --steps 3": "recipes/boundaries.py",
    "moss train boundaries --out a": "recipes/boundaries.py",
    "python -m moss_vllm train boundaries": "recipes/boundaries.py",
    "'my clone/recipes/boundaries.py' --out a": "my clone/recipes/boundaries.py",
    "moss ask": "",
    "'no end": "",
    "": "",
}


@pytest.mark.parametrize("line", SCRIPTS)
def test_a_recorded_command_tells_its_script(line):
    assert script_of(line) == SCRIPTS[line]


@pytest.mark.parametrize("text", TEXTS)
def test_files_become_words_where_moss_was_started(text, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipes/favor_lora.py"])
    assert spelled(text) == text
    monkeypatch.setattr(sys, "argv", ["moss train favor_lora"])
    assert spelled(text) == (TEXTS[text] or text)
    monkeypatch.setattr(sys, "argv", ["python -m moss_vllm ask"])
    if text.startswith("python "):
        assert spelled(text) == "python -m " + TEXTS[text].replace("moss ", "moss_vllm ", 1)


@pytest.mark.parametrize(
    "by, starts, recorded",
    [
        ("moss report", "moss report", "moss report"),
        ("python -m moss_vllm report", "python -m moss_vllm report", "python -m moss_vllm report"),
        ("my scripts/report.py", "python 'my scripts/report.py'", "'my scripts/report.py'"),
    ],
)
def test_next_commands_start_as_this_one(by, starts, recorded, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [by, "--out", "a b"])
    assert again(["--merge", "c d"]) == f"{starts} --merge 'c d'"
    assert command_line("recipes/x.py", None) == f"{recorded} --out 'a b'"
    assert command_line("recipes/x.py", ["--out", "a b"]) == "recipes/x.py --out 'a b'"
    first = starts.removesuffix(" report") if "moss" in by else "python scripts/report.py"
    assert command("scripts/report.py", Path("a b")) == f"{first}{' report' * ('moss' in by)} 'a b'"
    with pytest.raises(SystemExit), errors_in_one_line():
        raise KeyboardInterrupt
    assert capsys.readouterr().err == f"stopped; to go on: {starts} --out 'a b'\n"


def test_an_error_names_commands_as_they_are_started(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["moss ask"])
    with pytest.raises(SystemExit, match="^error: x; moss merge writes one$"), errors_in_one_line():
        raise ValueError("x; scripts/merge.py writes one")


def test_the_folder_of_configs_is_there():
    assert (RECIPE_CONFIGS / "favor_videollama3_2b.yaml").is_file()
