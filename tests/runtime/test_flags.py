"""Owns: one spelling per flag in all commands, old ones understood, --help quick, every default told."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moss_vllm.evaluation.options import add_options
from moss_vllm.evaluation.protocols import MOTIONBENCH
from moss_vllm.runtime.flags import OLD_NAMES, Flags
from moss_vllm.runtime.ranges import FROM_ONE, POSITIVE, SHARE_BELOW_1, Range

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
    str(file.relative_to(ROOT))
    for folder in ("recipes", "eval", "scripts", "experiments")
    for file in (ROOT / folder).glob("*.py")
    if '__name__ == "__main__"' in (text := file.read_text())
    and "not a command" not in text
    and file.name != "step_parts.py"  # a process of benchmark_training.py, with its positions
)


@pytest.fixture
def parser():
    flags = Flags("About.\n\n    as written")
    flags.add_argument("--short-side-px", type=int, default=224, help="pixels")
    flags.add_argument("--compress-tokens", action=argparse.BooleanOptionalAction, help="drop patches")
    flags.add_argument("--frames", type=int, help="of its own (default: all)")
    flags.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="format")
    flags.add_argument("--merge", action="store_true", help="merge")
    return flags


@pytest.mark.parametrize("old", [["--short-side", "84"], ["--short-side=84"]])
def test_an_old_name_is_understood_and_the_new_one_said(parser, old, capsys):
    args = parser.parse_args([*old, "--no-compress", "--dtype", "bf16", "--frames", "3"])
    assert (args.short_side_px, args.compress_tokens, args.precision, args.frames) == (84, False, "bf16", 3)
    assert capsys.readouterr().err.splitlines() == [
        "--short-side is called --short-side-px now",
        "--no-compress is called --no-compress-tokens now",
        "--dtype is called --precision now",
    ]


def test_flags_without_effect_are_refused_by_name(parser, capsys):
    parser.parse_args(["--merge", "--frames", "3"])
    parser.refuse_given(["compress_tokens", "precision", "short_side_px"], "with --merge")
    parser.parse_args(["--merge", "--short-side=224", "--precision", "fp32"])  # defaults, given
    with pytest.raises(SystemExit) as stopped:
        parser.refuse_given(["compress_tokens", "precision", "short_side_px"], "with --merge")
    told = "error: --precision, --short-side-px have no effect with --merge; leave them out\n"
    assert stopped.value.code == 2 and capsys.readouterr().err.endswith(told)
    parser.parse_args(["--no-compress-tokens"])
    with pytest.raises(SystemExit):
        parser.refuse_given(["compress_tokens"], "here")
    assert capsys.readouterr().err.endswith("error: --compress-tokens has no effect here; leave it out\n")


def test_the_clip_settings_of_an_evaluation_were_called_clips(capsys):
    flags = Flags("About.")
    add_options(flags, MOTIONBENCH)
    for words in (["--clips", "paper"], ["--clips=favor_official", "--clips=paper"]):
        assert flags.parse_args(words).clip_settings == "paper"
        assert capsys.readouterr().err == "--clips is called --clip-settings now\n"
    assert flags.parse_args(["--clip-settings", "paper"]).clip_settings == "paper"
    assert capsys.readouterr().err == ""
    flags = Flags("About.")
    flags.add_argument("--clips", type=int)  # of eval/action_recog.py: clips of a video
    assert flags.parse_args(["--clips", "2"]).clips == 2 and capsys.readouterr().err == ""


def test_help_tells_defaults_once_and_none_where_there_is_none(parser):
    text = parser.format_help()
    assert "    as written" in text
    assert "pixels (default: 224)" in text and "format (default: fp32)" in text
    assert "of its own (default: all)" in text
    assert "None" not in text and "merge (default" not in text


@pytest.mark.parametrize(
    "words, told",
    [
        ("--n 0", "--n is 0; it must be at least 1"),
        ("--n nothing", "argument --n: invalid int value: 'nothing'"),
        ("--share 1", "--share is 1.0; it must be at least 0 and below 1"),
        ("--share nan", "--share is nan; it must be at least 0 and below 1"),
        ("--gib 0", "--gib is 0.0; it must be above 0"),
        ("--layers 1 7", "--layers is 7; it must be from 1 to 6"),
        ("--crops 2", "--crops is 2; it must be one of 1, 3"),
    ],
)
def test_a_number_out_of_range_and_no_choice_are_told_as_in_the_help(words, told, capsys):
    flags = Flags("About.")
    flags.add_argument("--n", type=FROM_ONE, default=5, help="clips")
    flags.add_argument("--share", type=SHARE_BELOW_1, help="of them")
    flags.add_argument("--gib", type=POSITIVE, help="size (default: no limit)")
    flags.add_argument("--layers", type=Range(int, 1, 6), nargs="+", help="which (paper: 6)")
    flags.add_argument("--crops", type=int, choices=(1, 3), help="views")
    assert vars(flags.parse_args("--n 1 --share 0 --gib 1e-9 --layers 1 6 --crops 3".split())) == {
        **{"n": 1, "share": 0.0, "gib": 1e-9},
        **{"layers": [1, 6], "crops": 3},
    }
    with pytest.raises(SystemExit) as ended:
        flags.parse_args(words.split())
    assert ended.value.code == 2 and capsys.readouterr().err.endswith(f"error: {told}\n")
    text = " ".join(flags.format_help().split())
    assert "clips (at least 1; default: 5)" in text and "of them (at least 0 and below 1)" in text
    assert "size (above 0; default: no limit)" in text and "which (paper: 6) (from 1 to 6)" in text


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_that_takes_seconds_and_spells_every_flag_alike(command):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", command, "--help"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and all(line.startswith("import time:") for line in lines)
    imported = {line.split("|")[-1].strip().split(".")[0] for line in lines}
    assert not imported & {"torch", "transformers", "peft", "accelerate", "timm", "matplotlib"}
    options = done.stdout[done.stdout.index("options:") :]
    assert "default: None" not in options and " STR" not in done.stdout
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", re.sub(r"(?m)^ {20,}.*$", "", options)))
    # Frames that the encoder or MOSS sees, and clips of a video or a benchmark.
    video_models = ("action_recog.py", "benchmark_action.py", "detection.py", "boundaries.py", "_memory.py")
    own = {"--frames", "--clips"} if command.endswith(video_models) else set()
    assert not shown & (set(OLD_NAMES) - own)


def test_the_beginning_of_a_flag_is_no_flag(capsys):
    parser = Flags("About.")
    parser.add_argument("--limit-s", type=float)
    with pytest.raises(SystemExit):
        parser.parse_args(["--limit", "2"])
    assert "unrecognized arguments: --limit 2" in capsys.readouterr().err
