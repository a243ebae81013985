"""Owns: the docs name files, functions, commands, flags, links and numbers that are there."""

import ast
import contextlib
import importlib
import io
import json
import re
import shlex
from itertools import dropwhile

import pytest
import reproduce_page
import yaml
from command_lines import parser_of, parsers
from launching import ROOT

import moss_vllm
from moss_vllm.commands.moss import COMMANDS
from moss_vllm.runtime.tables import format_cell

ROOMS = ("moss_vllm", "recipes", "eval", "scripts", "experiments")
FOLDERS = (*ROOMS, "docs", "tests", "benchmarks")
WRITTEN = {"faults.md", "motion.md"}  # by tests/end_to_end/test_faults.py, by `make docs`
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name not in WRITTEN]
README = (ROOT / "README.md").read_text()
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "miniature.json").read_text())
OTHERS = {"--mixed_precision", "--model_args", "--use_cache", "--batch_size", "--verbosity"}  # of other tools
OWN = {"MotionBench-Dev": "letter", "FAVOR-Bench": "favor_official"}  # protocols
TASKS = {"MotionBench-Dev": "MR LM CM MO AO RC", "FAVOR-Bench": "AS CM HAC MAD NSM SAD"}


def tree_faults(text, files):
    """Files missing from the tree, named twice, or not there; `text` holds the tree's code block."""
    block = next(block for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) if "  core/" in block)
    lines = [(len(line) - len(line.lstrip()), line.split()[0]) for line in block.splitlines()]
    named, folders = [], []
    for place, (indent, name) in enumerate(lines):
        folders[indent // 2 :] = [name]
        deeper = place + 1 < len(lines) and lines[place + 1][0] > indent
        if not deeper:
            named.append("".join(folders))
    covered = {file: [name for name in named if is_in(file, name)] for file in files}
    used = {name for names in covered.values() for name in names}
    return [
        *(f"missing: {file}" for file, names in covered.items() if not names),
        *(f"twice: {name}" for name in dict.fromkeys(named) if named.count(name) > 1),
        *(f"not there: {name}" for name in named if name not in used),
    ]


def is_in(file, name):
    return file == name or (name.endswith("/") and file.startswith(name))


def commands(text):
    """The commands of bash blocks and of inline code, as words."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    starts = r"(?:\S*python|accelerate launch|sbatch|bash|make|moss)"
    lines += re.findall(rf"`((?:[A-Z]+=\S+ )?{starts} [^`]+)`", text)
    words = [shlex.split(line, comments=True) for line in lines]
    return [list(dropwhile(re.compile(r"\w+=").match, line)) for line in words if line]


def command_faults(words):
    """What is wrong with a command: a file that is not there, an unknown flag, missing or wrong arguments."""
    if words[:1] == ["make"]:
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return [f"no target {word}" for word in words[1:] if word not in targets and "=" not in word]
    by_module = " ".join(words).partition(" -m moss_vllm ")[2].split()
    if words[:1] == ["moss"] or by_module:
        return word_faults(by_module or words[1:])
    paths = [word for word in words if word.startswith(tuple(f"{name}/" for name in FOLDERS))]
    if absent := [word for word in paths if not (ROOT / word).exists()]:
        return [f"no file {word}" for word in absent]
    if "pytest" in words:
        return [f"no test {name}" for name in chosen_tests(words) if not is_chosen(name, words)]
    place = next((i for i, word in enumerate(words) if is_script(word)), None)
    return [] if place is None else argument_faults(words[place], words[place + 1 :])


def word_faults(words):
    """As `command_faults`, of the words after `moss`; a command may be named without its arguments."""
    name = next((name for name in (" ".join(words[:2]), *words[:1]) if name in COMMANDS), None)
    if name is None:
        return [] if words in (["--help"], ["--version"]) else [f"moss has no {' '.join(words)}"]
    given = words[len(name.split()) :] or ["..."]
    return [] if given == ["--help"] else argument_faults(f"{COMMANDS[name][0].replace('.', '/')}.py", given)


def chosen_tests(words):
    """The names that -k is given."""
    place = words.index("-k") + 1 if "-k" in words else len(words)
    return [name for name in words[place : place + 1] for name in name.split(" or ")]


def is_chosen(name, words):
    """Whether a test of that name is in the files that are given."""
    files = [ROOT / word for word in words if word.startswith("tests/") and word.endswith(".py")]
    return any(re.search(rf"def test_\w*{name}", file.read_text()) for file in files if file.exists())


def is_script(word):
    return word.endswith(".py") and word.split("/")[0] in ROOMS[1:]


def argument_faults(script, words):
    """As `command_faults`; what follows `--` is for the recipe that experiments/ablate.py runs."""
    place = words.index("--") if "--" in words else len(words)
    words, of_recipe = words[:place], words[place + 1 :]
    faults = argument_faults("recipes/action_recog.py", of_recipe) if of_recipe else []
    parser, flags = parser_of(script), [word.split("=")[0] for word in words if word.startswith("--")]
    if unknown := [flag for flag in flags if flag not in parser._option_string_actions]:
        return [f"{script} has no {flag}" for flag in unknown] + faults
    if "..." in words:
        return faults
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            parser.parse_args(words)
    except SystemExit:
        return [message.getvalue().splitlines()[-1], *faults]
    return faults


def flag_faults(text):
    """Flags alone in inline code that no command has."""
    flags = set(re.findall(r"`(--[a-z][\w-]*)", text)) - OTHERS
    return sorted(flags.difference(*(parser._option_string_actions for parser in parsers().values())))


def path_faults(text):
    """Paths of this repository in inline code that are not there."""
    prefix = "|".join(FOLDERS)
    paths = re.findall(rf"`((?:{prefix})/[\w./*-]*)`", text)
    return [path for path in paths if not list(ROOT.glob(path.rstrip("/")))]


def link_faults(text, page):
    """Relative links whose file or heading is not there; `text` stands in for what `page` holds."""
    faults = []
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text)
    for link in links:
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            faults.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(text if target == page else target.read_text()):
            faults.append(f"{link}: no such heading")
    return faults


def anchors(text):
    """GitHub's names for the headings."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def walk_faults(text):
    """Functions in the tables of walks that their file does not define."""
    rows = re.findall(r"^\| \d+ \| `([\w/]+\.py)` \| (.+?) \|", text, re.MULTILINE)
    faults = []
    for file, cell in rows:
        path = ROOT / "moss_vllm" / file
        body = ast.parse(path.read_text()).body if path.is_file() else []
        defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        faults += [f"{file}: no {name}" for name in re.findall(r"`(\w+)`", cell) if name not in defined]
    return faults if rows else ["no walk"]


def number_faults(text, columns, rows):
    """Lines of a table that differ from the miniature's `RESULTS`; `columns`: (head, arguments of `cell`)."""
    lines = text.splitlines()
    wanted = [["method", *(head for head, *_ in columns)]]
    wanted += [[row, *(cell(row, *of) for _, *of in columns)] for row in rows]
    return [line for cells in wanted if (line := f"| {' | '.join(cells)} |") not in lines]


def cell(row, benchmark, protocol, task):
    """As in the tables that reproduce_miniature.py writes; without a protocol the share of answers read."""
    if row == "chance":
        return f"{RESULTS['chance'][benchmark][task]:.1f}" if protocol else "-"
    of = (
        RESULTS["mean_and_spread"][row][benchmark][protocol] if protocol else RESULTS["named"][row][benchmark]
    )
    return format_cell(tuple(of[task]) if isinstance(of[task], list) else of[task])


def nav_faults(nav, pages):
    """Pages that the site's navigation lacks, has twice, or has and are not there."""
    listed = [page for item in nav for page in listed_pages(item)]
    return [
        *(f"missing: {page}" for page in sorted(pages - set(listed))),
        *(f"not there: {page}" for page in sorted(set(listed) - pages)),
        *(f"twice: {page}" for page in dict.fromkeys(listed) if listed.count(page) > 1),
    ]


def listed_pages(item):
    if isinstance(item, str):
        return [item]
    return [
        page for part in (item if isinstance(item, list) else item.values()) for page in listed_pages(part)
    ]


def is_too_long(readme):
    return len(readme.splitlines()) > 120


def files_of_rooms():
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*"))]
    kept = [path for path in paths if path.is_file() and "__pycache__" not in path.parts]
    return [str(path.relative_to(ROOT)) for path in kept if path.name != "__init__.py"]


def test_the_tree_names_every_file_once():
    assert tree_faults((ROOT / "docs" / "architecture.md").read_text(), files_of_rooms()) == []


def test_a_wrong_tree_is_noticed():
    tree = "```\nmoss_vllm/\n  core/\n    stss.py   f\n    stss.py   f\n    gone.py\n  weights/   data\n```"
    files = [f"moss_vllm/{name}" for name in ("core/stss.py", "core/moss.py", "weights/a/b")]
    assert tree_faults(tree, files) == [
        "missing: moss_vllm/core/moss.py",
        "twice: moss_vllm/core/stss.py",
        "not there: moss_vllm/core/gone.py",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_paths_are_there(page):
    text = page.read_text()
    faults = [f"{shlex.join(words)}: {fault}" for words in commands(text) for fault in command_faults(words)]
    assert faults + path_faults(text) + flag_faults(text) == []


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("python scripts/gone.py", "no file scripts/gone.py"),
        ("python scripts/ask.py a.mp4 --colour red", "scripts/ask.py has no --colour"),
        ("accelerate launch --multi_gpu eval/motionbench.py --short-side 84 ...", "has no --short-side"),
        ("python eval/motionbench.py --protocol none", "it must be one of letter"),
        ("python scripts/merge.py CKPT", "the following arguments are required: OUT"),
        ("python recipes/favor_lora.py --stepz 3", "recipes/favor_lora.py has no --stepz"),
        ("python experiments/ablate.py table4a -- --stepz 3", "recipes/action_recog.py has no --stepz"),
        ("make tea", "no target tea"),
        ("python -m pytest tests/gone.py", "no file tests/gone.py"),
        ("python -m pytest tests/test_docs.py -k a_wrong_tea", "no test a_wrong_tea"),
        ("moss merge CKPT", "the following arguments are required: OUT"),
        ("moss train favor_lora --stepz 3", "recipes/favor_lora.py has no --stepz"),
        ("moss train tea", "moss has no train tea"),
        ("accelerate launch --multi_gpu -m moss_vllm eval tea", "moss has no eval tea"),
    ],
)
def test_a_wrong_command_is_noticed(command, fault):
    for text in (f"```bash\n{command}   # a comment\n```", f"Type `{command}`."):
        [faults] = [command_faults(words) for words in commands(text)]
        assert len(faults) == 1 and fault in faults[0]


def test_a_command_on_two_lines_is_one_and_a_wrong_path_or_flag_is_noticed():
    assert commands("```bash\nx=1\npython a.py \\\n    --b c\n```") == [[], ["python", "a.py", "--b", "c"]]
    assert flag_faults("`--ckpt`, `--stepz 3`, `--multi-gpu`") == ["--multi-gpu", "--stepz"]
    assert path_faults("`docs/data.md`, `tests/gone.py`, `eval/*.py`, `tests/golden/`") == ["tests/gone.py"]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert link_faults(page.read_text(), page) == []


def test_a_wrong_link_is_noticed():
    text = '## A b, c\n[x](#a-b-c) [x](#a) [x](docs/gone.md) [x](https://a.b) <img src="gone.png">'
    wrong = ["#a: no such heading", "docs/gone.md: no such file", "gone.png: no such file"]
    assert link_faults(text, ROOT / "README.md") == wrong
    assert link_faults("[x](docs/data.md#nothing)", ROOT / "README.md")
    assert link_faults("[x](docs/data.md#several-sources)", ROOT / "README.md") == []


def test_an_index_can_show_the_long_description():
    """It shows no other file of the repository."""
    file = re.search(r'^readme = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    relative = re.compile(r"\]\((?!https?:)|<img src=\"(?!https?:)")
    assert not relative.search((ROOT / file).read_text()) and relative.search(README)


def import_faults(text):
    """What the Python examples of a page import from this package that is not there."""
    faults = []
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("moss_vllm"):
                module = importlib.import_module(node.module)
                names = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                faults += [f"{node.module}: no {name}" for name in names]
    return faults


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_import_what_is_there(page):
    assert import_faults(page.read_text()) == []


def test_a_wrong_import_is_noticed():
    text = "```python\nfrom moss_vllm.core import MOSS, gone\n```"
    assert import_faults(text) == ["moss_vllm.core: no gone"]


def test_walks_name_functions_that_are_there():
    assert walk_faults((ROOT / "docs" / "architecture.md").read_text()) == []
    assert walk_faults("| 1 | `core/moss.py` | `MOSS`, `gone` | x |") == ["core/moss.py: no gone"]
    assert walk_faults("| 1 | `core/gone.py` | `MOSS` | x |") == ["core/gone.py: no MOSS"]


def test_the_miniatures_tables_are_those_measured():
    """There is one for each protocol; with how many answers name an option, if that was counted."""
    rows, there = ["chance", *RESULTS["mean_and_spread"]], RESULTS["mean_and_spread"]["+ train + MOSS"]
    shown = [row for row in rows if not row.endswith("one frame")]
    columns = [
        (
            f"{name.removesuffix('-Dev')}'s format" + f", {protocol}" * (protocol != OWN[name]),
            name,
            protocol,
            "all",
        )
        for name in TASKS
        for protocol in there[name]
    ]
    assert not number_faults(README, columns, shown)
    page = (ROOT / "docs" / "miniature.md").read_text()
    for benchmark, tasks in TASKS.items():
        for protocol in there[benchmark]:
            heads = [(task, benchmark, protocol, task) for task in ["all", *tasks.split()]]
            if "named" in RESULTS and protocol == OWN[benchmark]:
                heads.append(("names an option", benchmark, None, "all"))
            assert not number_faults(page, heads, rows)
    row = f"| + train + MOSS | {cell('+ train + MOSS', 'MotionBench-Dev', 'letter', 'all')} |"
    assert len(number_faults(README.replace(row, "| + train + MOSS | 99.9 |"), columns, shown)) == 1
    assert len(number_faults(README, columns[::-1], shown)) == 5


def test_the_navigation_lists_every_page_once_and_nothing_else():
    docs = ROOT / "docs"
    pages = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")} | {"motion.md"}
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert nav_faults(nav, pages) == []
    wrong = ["missing: b.md", "not there: c.md", "twice: a.md"]
    assert nav_faults([{"A": "a.md"}, {"B": [{"C": "c.md"}, "a.md"]}], {"a.md", "b.md"}) == wrong


def test_the_papers_rows_are_as_measured():
    assert reproduce_page.PAGE.read_text() == reproduce_page.page(), (
        "run python experiments/reproduce_page.py"
    )


def test_the_citation_names_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == moss_vllm.__version__


def test_the_readme_is_short():
    assert not is_too_long(README)
    assert is_too_long("a line\n" * 121) and not is_too_long("a line\n" * 120)
