"""One table of faults: each is really made, then a command is run as a user would run it.

A fault has a title and no message: docs/faults.md has that, under the title, and is written by running them
all. In a message, <tmp> is the test's folder, <base> its base model, <list> its folder of action clips, <n> a
number, <...> words of a library. Written anew, a message keeps the <n> and <...> that still fit; where none
was, what the cause of the error says is taken for a library's words. More of them are put in by hand.
"""

import difflib
import json
import pickle
import re
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from launching import ROOT
from safetensors.torch import load_file, save_file

LIST = ROOT / "docs" / "faults.md"
MEMORY = "run/measured.jsonl"  # of measured videos, which any run may add to
PLANNED = (MEMORY, "run/rejected.jsonl")
STARTED = (*PLANNED, "run/settings.json", "run/train.jsonl")
HEADER = """# Faults

What can be wrong, and what you are told. `<tmp>` stands for your folder, `<base>` for a base model, `<list>`
for a folder of action clips, `<n>` for a number, `<...>` for words of a library. Written by
`python tests/end_to_end/test_faults.py`; the tests make every fault and compare.
"""


class Fault(NamedTuple):
    """`kind` is what the recipe or `load` raises, or a script's exit status; `ground` names a fixture."""

    title: str
    section: str
    ground: str
    start: Callable[[Any], Callable[[], Any]]
    kind: Any
    leaves: tuple[str, ...]
    changes: tuple[str, ...]


FAULTS: list[Fault] = []
written: dict[str, str] | None = None  # the messages by title, where the list is being written


def fault(title, kind, *, ground="ground", leaves=(), changes=()):
    """Add a function that does the damage and returns what the user then runs."""

    def add(start):
        section = sys.modules[start.__module__].__doc__.splitlines()[0].rstrip(".")
        FAULTS.append(Fault(title, section, ground, start, kind, leaves, changes))
        return start

    return add


# ---- damage


def edit_json(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def edit_weights(file, change, pick=0):
    """Apply `change` to one tensor of a file, by its name or number; None takes it out."""
    weights = load_file(file)
    name = pick if isinstance(pick, str) else sorted(weights)[pick]
    changed = change(weights.pop(name))
    weights |= {} if changed is None else {name: changed.contiguous()}
    save_file(weights, file, {"format": "pt"})


def as_settings(flags, folder):
    """Settings by name of a text of flags with values, in which <tmp> stands for the folder."""
    words = [word.replace("<tmp>", str(folder)) for word in shlex.split(flags)]
    return {name[2:].replace("-", "_"): value for name, value in zip(*[iter(words)] * 2, strict=True)}


def to_nan(tensor):
    return torch.full_like(tensor, float("nan"))


def cut(file, count=1):
    file.write_bytes(file.read_bytes()[:-count])


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


def hostile(ground):
    return pickle.dumps(Hostile(ground.tmp / "code-has-run"))


def name_code(ground, folder):
    """Make transformers ask whether to run a Python file of the folder, and a user who answers yes."""
    edit_json(folder / "processor_config.json", processor_class="Own", auto_map={"AutoProcessor": "own.Own"})
    (folder / "own.py").write_text(f"open({str(ground.tmp / 'code-has-run')!r}, 'w')\nclass Own: pass\n")
    ground.patch("builtins.input", lambda *prompt: "y")


# ---- messages


def snapshot(folder):
    """Every file with its content, every folder without."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in found.items()}


def pattern(message, places):
    """A regular expression of a message, with the places' names and <n> and <...> in it."""
    for name, path in places.items():
        message = message.replace(f"<{name}>", str(path))
    return re.escape(message).replace("<n>", r"[\d.]+").replace(re.escape("<...>"), "(.|\n)+")


def read_list():
    """The messages of docs/faults.md by title."""
    parts = re.split(r"^\*\*(.+)\*\*$", LIST.read_text(), flags=re.M)
    texts = (re.findall("^    (.*)$", text, re.M) for text in parts[2::2])
    return dict(zip(parts[1::2], map("\n".join, texts), strict=True))


def as_markdown(messages):
    """docs/faults.md with these messages."""
    lines, section = [HEADER], ""
    for one in FAULTS:
        lines += [f"## {one.section}", ""] if one.section != section else []
        section = one.section
        lines += [f"**{one.title}**", "", *(f"    {line}" for line in messages[one.title].splitlines()), ""]
    return "\n".join(lines)


def template(told, error, places, earlier):
    """What to write for a message: as it was, where that fits."""
    if earlier and re.fullmatch(pattern(earlier, places), told):
        return earlier
    text = told
    for name, path in sorted(places.items(), key=lambda item: -len(str(item[1]))):
        text = text.replace(str(path), f"<{name}>")
    kept = _with_placeholders(earlier or "", text)
    if kept != text and re.fullmatch(pattern(kept, places), told):
        return kept
    for words in _library_words(error):
        text = text.replace(words, "<...>")
    return text


def _with_placeholders(earlier, text):
    """The text with those <n> and <...> of the earlier one that something else stands for now."""
    one, other = (re.findall(r"<\.\.\.>|<n>|\w+|\s+|[^\w\s]", words) for words in (earlier, text))
    kept, matcher = [], difflib.SequenceMatcher(None, one, other, autojunk=False)
    if matcher.ratio() < 0.5:  # another message altogether
        return text
    for kind, i, j, k, end in matcher.get_opcodes():
        holds = kind == "replace" and set(one[i:j]) <= {"<...>", "<n>"}
        kept += one[i:j] if holds else other[k:end]
    return "".join(kept)


def _library_words(error):
    while error := error.__cause__ or error.__context__:
        file = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if not file.is_relative_to(ROOT) or ".venv" in file.parts:
            lines = str(error).splitlines() or [""]
            yield from (
                text for text in (str(error), " ".join(str(error).split()), lines[0]) if len(text) > 7
            )
