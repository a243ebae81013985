"""`moss`: every program of the package by a word or two; `moss train favor_lora` is recipes/favor_lora.py.

Its help comes from the table below and imports nothing that takes time.
"""

import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

import moss_vllm
from moss_vllm.commands import start_program
from moss_vllm.runtime.screen import say

# Words: the program, and what it does.
COMMANDS = {
    "train favor_lora": ("recipes.favor_lora", "a Video-LLM on captions, with LoRA and MOSS"),
    "train action_recog": ("recipes.action_recog", "a video classifier"),
    "train detection": ("recipes.detection", "a detector of actions in long videos"),
    "train boundaries": ("recipes.boundaries", "a detector of event boundaries"),
    "eval motionbench": ("eval.motionbench", "MotionBench's questions"),
    "eval favor_bench": ("eval.favor_bench", "FAVOR-Bench's questions"),
    "eval favor_captions": ("eval.favor_captions", "captions for FAVOR-Bench's open-ended half"),
    "eval action_recog": ("eval.action_recog", "a classifier, from other views"),
    "eval detection": ("eval.detection", "a detector, or a file of predictions"),
    "eval boundaries": ("eval.boundaries", "a boundary model, or a file of predictions"),
    "compare": ("eval.compare", "two results or more, with intervals"),
    "ask": ("scripts.ask", "a model about a video"),
    "report": ("scripts.report", "a run, an evaluation or a test as an HTML page"),
    "timeline": ("scripts.timeline", "one video of a test as a picture"),
    "attach": ("scripts.attach", "a new MOSS to a Video-LLM of transformers' own classes"),
    "merge": ("scripts.merge", "a checkpoint into one full model"),
    "push": ("scripts.push", "a checkpoint to the Hugging Face hub, with a model card"),
    "visualize_stss": ("scripts.visualize_stss", "pictures of self-similarity"),
    "action_groups": ("scripts.action_groups", "what one test gains over another, by group of actions"),
    "prepare_favor": ("scripts.prepare_favor", "cut FAVOR-Train's clips, list what is missing"),
    "download": ("scripts.download", "fetch what the hub holds of the data, and count it"),
    "check_videos": ("scripts.check_videos", "decode every clip under a time limit, before training"),
    "cache_frames": ("scripts.cache_frames", "decode every clip once for all later runs"),
    "convert_videollama3": ("scripts.convert_videollama3", "the authors' release to transformers' format"),
}
FIRST_WORDS = {name.split()[0] for name in COMMANDS if " " in name}
HELP = ("-h", "--help")


def main() -> None:
    """Start the program that the first words name, or list the programs."""
    words = sys.argv[1:]
    moss = "python -m moss_vllm" if Path(sys.argv[0]).name == "__main__.py" else "moss"
    for name in (" ".join(words[:2]), *words[:1]):
        if name in COMMANDS:
            sys.argv = [f"{moss} {name}", *words[len(name.split()) :]]
            start_program(COMMANDS[name][0])
            return
    if words[:1] == ["--version"]:
        say(f"moss_vllm {moss_vllm.__version__}")
    elif not words or words[0] in HELP:
        show(moss, COMMANDS)
    elif words[0] in FIRST_WORDS and (len(words) == 1 or words[1] in HELP):
        show(moss, [name for name in COMMANDS if name.startswith(f"{words[0]} ")])
    else:
        given = " ".join(words[: 1 + (words[0] in FIRST_WORDS)])
        near = get_close_matches(given, COMMANDS)
        remedy = f"did you mean {' or '.join(near)}? " if near else ""
        say(f"error: {moss} has no {given}; {remedy}{moss} --help lists all", file=sys.stderr)
        sys.exit(2)


def show(moss: str, names: Iterable[str]) -> None:
    """Print what each command does."""
    width = max(map(len, COMMANDS))
    lines = [f"  {moss} {name:{width}}  {COMMANDS[name][1]}" for name in names]
    say(*lines, "", f"{moss} COMMAND --help explains a command and its flags.", sep="\n")
