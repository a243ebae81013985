"""Owns: the shape of the code - what may import what, what an import costs, names, sizes and flags.

Each rule is a function of a root folder that returns what breaks it, in words. `BROKEN` has a small tree for
each of them that does.
"""

import argparse
import ast
import functools
import graphlib
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from command_lines import parsers
from launching import ROOT, as_flags, environment

from moss_vllm.boundaries.settings import OPTIMIZERS
from moss_vllm.core.boundary_presets import BOUNDARIES
from moss_vllm.core.detection_presets import DETECTORS
from moss_vllm.core.presets import TEMPORAL_NAMES
from moss_vllm.data.actions.datasets import DATASETS
from moss_vllm.data.boundaries.datasets import BOUNDARY_DATASETS
from moss_vllm.data.detection.datasets import DETECTION_DATASETS
from moss_vllm.recognition.build import HOSTS
from moss_vllm.recognition.frame_choice import SAMPLINGS
from moss_vllm.runtime.ranges import FROM_ONE, Range
from moss_vllm.video.decoders import DECODERS

PACKAGE = "moss_vllm"
# The rooms, bottom up: an import goes down, or stays within its room.
FLOORS = (
    ("core", "runtime"),
    ("video", "encoders"),
    ("data",),
    ("training",),
    ("vlm", "recognition", "detection", "boundaries"),
    ("evaluation",),
    ("report",),
    ("commands",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODELS = ("vlm", "recognition", "detection", "boundaries")
FILES = (("recipes", "eval", "scripts"), ("experiments",))  # above the package, bottom up
CORE_NEEDS = {"torch", "einops", "triton", *sys.stdlib_module_names}
MOST_LINES = 350

# What may break a rule, each with its reason.
LONG: dict[str, str] = {}
NAMES_OF_TWO: dict[str, str] = {}
FLAGS_OF_TWO: dict[str, str] = {}


# ---- reading the code


@functools.cache
def trees(root):
    """Each file below the package with its syntax tree."""
    return {path: ast.parse(path.read_text()) for path in sorted((root / PACKAGE).rglob("*.py"))}


def module(root, path):
    """vlm.base of moss_vllm/vlm/base.py."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree, here, is_package):
    """Every module that an import names, lazy ones too, with its line; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = here.split(".")[: len(here.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def arrows(root):
    """(importing module, imported module of the package, line) of all."""
    modules = {module(root, path) for path in trees(root)}
    for path, tree in trees(root).items():
        here = module(root, path)
        for name, line in imports(tree, here, path.name == "__init__.py"):
            found = name if name in modules else name.rpartition(".")[0]
            if found in modules and found != here:
                yield here, found, line


def room(name):
    return (*name.split("."), "")[1]


# ---- the rules


def core_needs_torch_einops_and_triton_alone(root):
    return [
        f"{here}:{line} imports {name}"
        for path, tree in trees(root).items()
        if room(here := module(root, path)) == "core"
        for name, line in imports(tree, here, path.name == "__init__.py")
        if name.split(".")[0] not in CORE_NEEDS and not name.startswith(f"{PACKAGE}.core")
    ]


def imports_go_down(root):
    """Also not to a room beside: so no task imports another, and training no model."""
    return wrong_arrows(root, lambda one, other: other and FLOOR[one] <= FLOOR[other])


def tasks_are_apart_and_training_knows_no_model(root):
    return wrong_arrows(root, lambda one, other: one in ("training", *MODELS) and other in MODELS)


def wrong_arrows(root, is_wrong):
    """Imports from one room to another that are wrong by the names of both."""
    return [
        f"{one}:{line} imports {other}"
        for one, other, line in arrows(root)
        if room(one) != room(other) and is_wrong(room(one), room(other))
    ]


def imports_make_no_circle(root):
    graph = defaultdict(set)
    for one, other, _ in arrows(root):
        graph[one].add(other)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" imports ".join(reversed(error.args[1]))]
    return []


def every_room_has_a_floor(root):
    found = [f"{path.name} lies in {PACKAGE}/" for path in (root / PACKAGE).glob("*.py")]
    rooms = {path.relative_to(root / PACKAGE).parts[0] for path in trees(root)}
    return [one for one in found if not one.startswith(("__init__.py", "__main__.py"))] + [
        f"{name}/ has no floor" for name in sorted(rooms - FLOOR.keys()) if not name.endswith(".py")
    ]


def programs_are_apart(root):
    """A recipe or evaluation is imported by none; scripts may share among themselves."""
    return [
        f"{one}:{line} imports {other}"
        for one, other, line in arrows(root)
        if is_program(other)
        and not (is_program(one) and other.split(".")[2] == "scripts" == one.split(".")[2])
    ]


def is_program(name):
    """Whether a module is one that starts, such as commands.recipes.favor_lora."""
    return room(name) == "commands" and name.count(".") == 3


def files_import_no_file_above_them(root):
    """The package imports none of them; the thin files that start programs none of experiments."""
    found, levels = [], [[PACKAGE], *FILES]
    for number, folders in enumerate(levels):
        above = {name for names in levels[number + 1 :] for name in names}
        above |= {path.stem for name in above for path in root.glob(f"{name}/*.py")}
        for path in sorted(path for name in folders for path in (root / name).rglob("*.py")):
            for name, line in imports(ast.parse(path.read_text()), path.stem, False):
                if name.split(".")[0] in above:
                    found.append(f"{path.relative_to(root)}:{line} imports {name}")
    return found


def files_are_short(root):
    sizes = {path.relative_to(root).as_posix(): len(path.read_text().splitlines()) for path in trees(root)}
    return [
        f"{name} has {size} lines" for name, size in sizes.items() if size > MOST_LINES and name not in LONG
    ]


def public_names(tree):
    """Functions, classes and constants defined at the top, without what is imported or begins with _."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [
            one.id for target in targets if target for one in ast.walk(target) if isinstance(one, ast.Name)
        ]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif not isinstance(node, ast.Assign | ast.AnnAssign) or "TypeVar" in ast.dump(node):
            continue
        yield from (name for name in names if not name.startswith("_"))


def a_name_means_one_thing(root):
    """But for the tasks' own modules of one name: `load` of vlm/checkpoint and of recognition/checkpoint.

    A program's names are its own: `main`, `options`.
    """
    where = defaultdict(list)
    for path, tree in trees(root).items():
        if is_program(module(root, path)):
            continue
        for name in dict.fromkeys(public_names(tree)):
            where[name].append(module(root, path))
    return [
        f"{name} is defined in {', '.join(modules)}"
        for name, modules in where.items()
        if len({one.split(".", 2)[2] if room(one) in MODELS else one for one in modules}) > 1
        if name not in NAMES_OF_TWO
    ]


RULES = (
    core_needs_torch_einops_and_triton_alone,
    imports_go_down,
    tasks_are_apart_and_training_knows_no_model,
    imports_make_no_circle,
    every_room_has_a_floor,
    programs_are_apart,
    files_import_no_file_above_them,
    files_are_short,
    a_name_means_one_thing,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_code_keeps(rule):
    assert rule(ROOT) == []


@pytest.mark.parametrize(
    "rule, exceptions", [(files_are_short, LONG), (a_name_means_one_thing, NAMES_OF_TWO)]
)
def test_an_exception_is_still_one(rule, exceptions, monkeypatch):
    names = list(exceptions)
    for name in names:
        monkeypatch.delitem(exceptions, name)
    told = rule(ROOT)
    assert [name for name in names if not any(one.startswith(f"{name} ") for one in told)] == []


BROKEN = [  # a rule, files of the package's tree, and what is told
    (RULES[0], {"core/moss.py": "import torch\nimport numpy"}, "core.moss:2 imports numpy"),
    (RULES[0], {"core/moss.py": "def f():\n    import timm"}, "core.moss:2 imports timm"),
    (RULES[0], {"core/moss.py": "from ..runtime import errors"}, "imports moss_vllm.runtime.errors"),
    (RULES[1], {"data/rows.py": "from moss_vllm.report import page"}, "imports moss_vllm.report.page"),
    (RULES[1], {"data/rows.py": "def f():\n    import moss_vllm.report.page"}, "rows:2 imports moss_vllm"),
    (RULES[1], {"video/clip.py": "from moss_vllm.encoders.image import x"}, "moss_vllm.encoders.image"),
    (RULES[1], {"core/moss.py": "from ..runtime import errors"}, "core.moss:1 imports moss_vllm.runtime"),
    (RULES[2], {"training/loop.py": "from moss_vllm.vlm import base"}, "loop:1 imports moss_vllm.vlm.base"),
    (RULES[2], {"vlm/base.py": "from moss_vllm.recognition.build import f"}, "moss_vllm.recognition.build"),
    (RULES[2], {"detection/a.py": "from moss_vllm.recognition.build import f"}, "detection.a:1 imports"),
    (RULES[3], {"vlm/base.py": "from .chat import x", "vlm/chat.py": "def f():\n    from .base import y"},
     "moss_vllm.vlm.base imports"),
    (RULES[4], {"stray.py": ""}, "stray.py lies in moss_vllm/"),
    (RULES[4], {"utils/a.py": ""}, "utils/ has no floor"),
    (RULES[5], {"commands/eval/b.py": "from ..scripts import a"}, "b:1 imports moss_vllm.commands.scripts.a"),
    (RULES[5], {"commands/scripts/b.py": "from ..recipes import a"}, "moss_vllm.commands.recipes.a"),
    (RULES[5], {"commands/recipes/b.py": "from .a import x"}, "imports moss_vllm.commands.recipes.a"),
    (RULES[5], {"commands/moss.py": "from .recipes import a"}, "moss:1 imports moss_vllm.commands.recipes.a"),
    (RULES[6], {"../experiments/demo.py": "", "../scripts/b.py": "import demo"}, "b.py:1 imports demo"),
    (RULES[6], {"data/rows.py": "import recipes.favor"}, "data/rows.py:1 imports recipes.favor"),
    (RULES[7], {"data/rows.py": "\n" * 351}, "moss_vllm/data/rows.py has 351 lines"),
    (RULES[8], {"data/a.py": "def read(): ...", "vlm/b.py": "class read: ..."}, "read is defined in "),
    (RULES[8], {"recognition/base.py": "x = 1", "vlm/base.py": "x = 1", "vlm/b.py": "x = 1"}, "x is defined"),
    (RULES[8], {"data/a.py": "A, B = 1, 2", "vlm/b.py": "B: int = 2"}, "B is defined in moss_vllm.data.a, "),
    (RULES[8], {"commands/a.py": "x = 1", "vlm/b.py": "x = 2"}, "x is defined in moss_vllm.commands.a, "),
]  # fmt: skip


@pytest.mark.parametrize("rule, files, told", BROKEN)
def test_a_tree_that_breaks_a_rule_is_told(tmp_path, rule, files, told):
    whole = {name: "" for rooms in FLOORS[:-1] for name in (f"{room}/__init__.py" for room in rooms)}
    whole |= {"__init__.py": "", "report/page.py": "", "encoders/image.py": "", "recognition/build.py": ""}
    whole |= {"runtime/errors.py": "", "vlm/base.py": "load = 1", "recognition/base.py": "load = 2"}
    whole |= {f"commands/{name}.py": "main = 1" for name in ("recipes/a", "scripts/a")}
    whole |= {"commands/scripts/c.py": "from .a import main"}
    for name, text in {**whole, "data/fine.py": "from moss_vllm.core import moss"}.items():
        write(tmp_path / PACKAGE / name, text)
    assert [one for every in RULES for one in every(tmp_path)] == []
    trees.cache_clear()
    for name, text in files.items():
        write(tmp_path / PACKAGE / name, text)
    assert [told in one for one in rule(tmp_path)] == [True]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# ---- tasks alike

OF_EVERY_TASK = {"batches", "loss", "checkpoint"}  # and `build` or `base`, the model
OF_OWN_TESTS = {"in_training", "schema", "scores", "settings"}  # beside `testing`; else in evaluation/
SHARED = {  # what the four tasks share, and who of each has to use it
    "training.loop": [
        f"{PACKAGE}/commands/recipes/{name}.py"
        for name in ("favor_lora", "action_recog", "detection", "boundaries")
    ],
    "runtime.line_store": [
        f"{PACKAGE}/{name}.py"
        for name in ("evaluation/asking", "recognition/testing", "detection/testing", "boundaries/testing")
    ],
    "report.html": [
        f"{PACKAGE}/report/{name}_page.py" for name in ("run", "answers", "detection", "boundary")
    ],
    "faults.engine": [
        f"tests/end_to_end/faults/of_{name}.py"
        for name in ("training", "actions", "detection_training", "boundary_training")
    ],
}


def furniture_missing(room):
    """The files that the room of a task should have and has not."""
    has = {path.stem for path in room.glob("*.py")}
    wanted = OF_EVERY_TASK | (OF_OWN_TESTS if "testing" in has else set())
    return sorted(wanted - has) + ([] if {"build", "base"} & has else ["build or base"])


def test_the_rooms_of_tasks_have_the_same_furniture(tmp_path):
    assert {name: furniture_missing(ROOT / PACKAGE / name) for name in MODELS} == dict.fromkeys(MODELS, [])
    assert [name for name in MODELS if not (ROOT / PACKAGE / name / "testing.py").is_file()] == ["vlm"]
    for name in ("batches", "testing", "scores"):
        write(tmp_path / f"{name}.py", "")
    told = ["checkpoint", "in_training", "loss", "schema", "settings", "build or base"]
    assert furniture_missing(tmp_path) == told


@pytest.mark.parametrize("shared", SHARED)
def test_tasks_share_loop_store_page_and_faults(shared):
    for file in SHARED[shared]:
        named = {name for name, _ in imports(ast.parse((ROOT / file).read_text()), "", False)}
        assert any(f"{shared}." in f"{name}." for name in named), f"{file} does not use {shared}"


# ---- dependencies

INSTALLED_AS = {"PIL": "pillow", "yaml": "pyyaml"}
NOT_OURS = {"triton": "comes with torch", "lmms_eval": "imports this package's plugin"}


def undeclared(root, declared):
    """Third-party packages that the package imports, lazily too, of which none is declared by its name."""
    named = {one.lower().replace("-", "_") for one in declared}
    found = {name.split(".")[0] for tree in trees(root).values() for name, _ in imports(tree, "", False)}
    found -= {PACKAGE, "", *sys.stdlib_module_names, *NOT_OURS}
    return sorted(name for name in found if INSTALLED_AS.get(name, name) not in named)


def test_every_package_that_is_imported_is_declared():
    text = (ROOT / "pyproject.toml").read_text()
    section = text[text.index("\ndependencies = [") : text.index("[project.scripts]")]
    declared = set(re.findall(r'"([\w.-]+)', section))
    assert undeclared(ROOT, declared) == []
    assert undeclared(ROOT, declared - {"huggingface_hub", "pyyaml"}) == ["huggingface_hub", "yaml"]


# ---- what an import costs


COSTS = """
import builtins, importlib, json, os, signal, sys, types

really_import = builtins.__import__
as_on_windows = {module.__name__: types.ModuleType(module.__name__) for module in (os, signal)}
for module in (os, signal):
    has = {name: value for name, value in vars(module).items() if name not in POSIX_NAMES}
    vars(as_on_windows[module.__name__]).update(has)

def import_as_on_windows(name, globals=None, *others, **named):
    if not (globals or {}).get("__name__", "").startswith("moss_vllm"):  # others look at the platform
        return really_import(name, globals, *others, **named)
    if name in POSIX:
        raise ImportError(f"Windows has no {name}")
    return as_on_windows.get(name) or really_import(name, globals, *others, **named)

builtins.__import__ = import_as_on_windows

def loaded(*names):
    return [name for name in sys.modules if name.startswith(names)]

found = {}
others = ("transformers", "peft", "accelerate", "timm")
for name in others:
    sys.modules[name] = None  # an import of it fails
import moss_vllm.core
found["core"] = loaded("moss_vllm.vlm", "moss_vllm.runtime")
try:
    import moss_vllm.vlm.base
except ImportError as error:
    found["halted"] = str(error)
for name in [*others, *loaded("moss_vllm.vlm")]:
    sys.modules.pop(name, None)
from moss_vllm.commands.eval import action_recog
action_recog.main(ARGV)
found["classifier"] = loaded("moss_vllm.vlm", "moss_vllm.report", "peft", VIDEO_LLM)
for name in MODULES:
    importlib.import_module(name)
found["evaluation"] = loaded("matplotlib")
found["not on Windows"] = []
for name in EVERY:
    try:
        importlib.import_module(name)
    except Exception as error:
        found["not on Windows"].append(f"{name}: {error}")
try:
    exec("import fcntl", {"__name__": "moss_vllm.x"})
except ImportError as error:
    found["posix"] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    """What one new process, without what Windows lacks, has loaded after each thing that it does."""
    every = [module(ROOT, path) for path in trees(ROOT)]
    every.remove("moss_vllm.evaluation.lmms_eval")  # loads lmms_eval itself, which is not installed here
    modules = [name for name in every if room(name) == "evaluation"]
    assert len(modules) > 9
    out = tmp_path_factory.mktemp("tested") / "out"
    given = {
        "ARGV": as_flags({"ckpt": "classes/step-000002", "out": out, "workers": 0, "device": "cpu"}),
        "VIDEO_LLM": "transformers.models.video_llama_3",
        "MODULES": modules,
        "EVERY": every,
        "POSIX": ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"),
        "POSIX_NAMES": "SIGUSR1 SIGALRM SIGKILL SIGBUS setitimer register_at_fork fork killpg".split(),
    }
    code = "".join(f"{name} = {value!r}\n" for name, value in given.items()) + COSTS
    folder = ROOT / "tests" / "data_of_earlier"
    how = {"env": environment(), "cwd": folder, "capture_output": True, "text": True, "timeout": 200}
    done = subprocess.run([sys.executable, "-c", code], **how)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_core_imports_where_nothing_but_torch_is_installed(costs):
    assert costs["core"] == [] and "import of transformers halted" in costs["halted"]


@pytest.mark.slow
def test_testing_a_classifier_loads_no_video_llm(costs):
    """In all of a real test of one, lazy imports too."""
    assert costs["classifier"] == []


@pytest.mark.slow
def test_an_evaluation_loads_no_matplotlib(costs):
    assert costs["evaluation"] == []


@pytest.mark.slow
def test_every_module_is_imported_where_there_is_nothing_of_posix(costs):
    assert costs["not on Windows"] == [] and costs["posix"] == "Windows has no fcntl"


# ---- flags


def meaning(action):
    """Where a flag's value goes and what it is: paths are texts, and store_true is half of a yes or no."""
    kind = "yes or no" if action.nargs == 0 else "text" if action.type in (None, str, Path) else action.type
    many = action.nargs not in (0, None) or isinstance(action, argparse._AppendAction)
    return action.dest, getattr(kind, "__name__", kind), many


def flags_that_mean_two_things(parsers):
    """Of parsers by name."""
    meanings = defaultdict(lambda: defaultdict(list))
    for name, parser in parsers.items():
        for action in parser._actions:
            for flag in action.option_strings:
                meanings[flag][meaning(action)].append(name)
    return [
        f"{flag} is " + " and ".join(f"{what} in {', '.join(names)}" for what, names in found.items())
        for flag, found in meanings.items()
        if len(found) > 1 and flag not in FLAGS_OF_TWO
    ]


def test_a_flag_means_the_same_in_every_command():
    assert len(parsers()) > 20 and flags_that_mean_two_things(parsers()) == []


def numbers_without_a_range(parsers):
    """Of parsers by name; a number with choices has none."""
    return [
        f"{name}: {flag}"
        for name, parser in parsers.items()
        for action in parser._actions
        for flag in action.option_strings[:1]
        if action.type in (int, float) and not (action.choices or (action.metavar or "").startswith("{"))
    ]


def test_every_number_of_every_command_has_a_range_in_its_help():
    assert numbers_without_a_range(parsers()) == []
    one = argparse.ArgumentParser()
    for flag, given in (("--a", {"choices": (1, 3)}), ("--b", {"type": FROM_ONE}), ("--c", {})):
        one.add_argument(flag, **{"type": int, **given})
    assert numbers_without_a_range({"one": one}) == ["one: --c"]
    for name, parser in parsers().items():
        told = " ".join(parser.format_help().split())
        ranges = {str(action.type) for action in parser._actions if isinstance(action.type, Range)}
        assert [one for one in ranges if f"({one}" not in told] == [], name


def test_the_choices_of_recipes_are_those_of_the_code():
    found = {
        name: {action.dest: action.metavar for action in parsers()[f"recipes/{name}.py"]._actions}
        for name in ("action_recog", "detection", "boundaries")
    }
    wanted = {
        "action_recog": {"data": (*DATASETS, "mini"), "host": HOSTS, "sampling": SAMPLINGS},
        "detection": {"data": DETECTION_DATASETS, "variant": DETECTORS},
        "boundaries": {"data": BOUNDARY_DATASETS, "variant": BOUNDARIES, "optimizer": OPTIMIZERS},
    }
    for name, choices in wanted.items():
        for dest, allowed in {**choices, "temporal": TEMPORAL_NAMES, "decoder": DECODERS}.items():
            assert found[name][dest] == f"{{{','.join(allowed)}}}", (name, dest)


@pytest.mark.parametrize(
    "given, told",
    [
        ({"type": int}, "--a is ('a', 'text', False) in one and ('a', 'int', False) in other"),
        ({"dest": "b"}, "('b', 'text', False) in other"),
        ({"action": "store_true"}, "('a', 'yes or no', False) in other"),
        ({"nargs": "+"}, "('a', 'text', True) in other"),
    ],
)
def test_a_flag_of_two_meanings_is_told(given, told):
    one, same, other = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    one.add_argument("--a")
    same.add_argument("--a", type=Path)
    other.add_argument("--a", **given)
    assert flags_that_mean_two_things({"one": one, "same": same}) == []
    (found,) = flags_that_mean_two_things({"one": one, "other": other})
    assert told in found
