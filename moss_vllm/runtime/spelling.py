"""How a command is written for the user: by its file in a clone, by words where `moss` was started.

`moss` puts its words in place of its own path: sys.argv[0] is then "moss train favor_lora".
"""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import moss_vllm

RECIPE_CONFIGS = Path(moss_vllm.__file__).parent / "commands" / "recipes" / "configs"
BY_WORDS = re.compile(r"(moss|python -m moss_vllm) ")
LAUNCHER = r"(?P<before>python +|accelerate launch (?:\S+ )*?)?"
BY_FILE = re.compile(LAUNCHER + r"(?<![\w/.-])(?P<folder>recipes|eval|scripts)/(?P<name>\w+)\.py")
FOLDER_WORDS = {"recipes": "train ", "eval": "eval ", "scripts": ""}


def spelled(text: str) -> str:
    """The text with the files of a clone as words, if the user started this by words.

    `python recipes/favor_lora.py` becomes `moss train favor_lora`, recipes/configs/ the package's folder.
    """
    if not (by_words := BY_WORDS.match(sys.argv[0])):
        return text

    def words(file: re.Match[str]) -> str:
        name = "compare" if file["name"] == "compare" else FOLDER_WORDS[file["folder"]] + file["name"]
        launched = (file["before"] or "").startswith("accelerate")
        return f"{file['before']}-m moss_vllm {name}" if launched else f"{by_words[1]} {name}"

    text = text.replace("a script in recipes/ or eval/", f"{by_words[1]} train or eval")
    return BY_FILE.sub(words, re.sub(r"(?<![\w/.-])recipes/configs/", f"{RECIPE_CONFIGS.as_posix()}/", text))


def command(file: str, *words: object) -> str:
    """The command line of a file of a clone, such as scripts/report.py, as a shell reads it."""
    return f"{spelled(f'python {file}')} {shlex.join(map(str, words))}"


def script_of(line: str) -> str:
    """The script that a recorded command line started, by its path or by words; empty if neither."""
    if by_words := re.match(rf"{BY_WORDS.pattern}train (\w+)", line):
        return f"recipes/{by_words[2]}.py"
    try:
        script, *_ = [*shlex.split(line), ""]
    except ValueError:  # a quote without its end
        return ""
    return script if script.endswith(".py") else ""


def program() -> list[str]:
    """The words that started the program under way, or its file."""
    return sys.argv[0].split() if BY_WORDS.match(sys.argv[0]) else [sys.argv[0]]


def again(words: Sequence[str]) -> str:
    """The command line that starts the program under way with these words."""
    by_file = not BY_WORDS.match(sys.argv[0])
    return shlex.join([*(["python"] * by_file), *program(), *words])
