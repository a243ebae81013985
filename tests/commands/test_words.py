"""Owns: `moss` starts every program by its words, lists them at once, and refuses others with near ones."""

import subprocess
import sys

import pytest
from launching import ROOT, environment

from moss_vllm import commands
from moss_vllm.commands import moss
from moss_vllm.commands.moss import COMMANDS
from moss_vllm.runtime.spelling import spelled


@pytest.fixture
def run(monkeypatch):
    """`moss` with these words; returns the program that starts, with what it finds in sys.argv."""

    def run(*words, by="/usr/bin/moss"):
        started = []
        monkeypatch.setattr(sys, "argv", [by, *words])
        monkeypatch.setattr(moss, "start_program", lambda name: started.append((name, *sys.argv)))
        moss.main()
        return started

    return run


def test_every_program_has_words_and_a_file_at_its_old_path(monkeypatch):
    folders = ("recipes", "eval", "scripts")
    files = [file for name in folders for file in (ROOT / "moss_vllm" / "commands" / name).glob("[a-z]*.py")]
    programs = [name for name, _ in COMMANDS.values()]
    assert sorted(programs) == sorted(f"{file.parent.name}.{file.stem}" for file in files)
    monkeypatch.setattr(sys, "argv", ["moss report"])
    for words, (name, about) in COMMANDS.items():
        thin = f"{name.replace('.', '/')}.py"
        assert f'start_program("{name}")' in (ROOT / thin).read_text()
        assert spelled(f"python {thin}") == f"moss {words}" and about
    at_old_paths = [file for name in folders for file in (ROOT / name).glob("*.py")]
    assert len(at_old_paths) == len(COMMANDS)


def test_words_start_a_program_with_the_others(run):
    given = ("train", "detection", "--out", "my runs")
    assert run(*given) == [("recipes.detection", "moss train detection", "--out", "my runs")]
    assert run("compare", "train", "b") == [("eval.compare", "moss compare", "train", "b")]
    as_module = run("ask", by=str(ROOT / "moss_vllm" / "__main__.py"))
    assert as_module == [("scripts.ask", "python -m moss_vllm ask")]


def test_what_is_no_command_is_refused_with_near_ones(run, capsys):
    for words, told in {
        ("train", "favour-lora", "--steps", "2"): "no train favour-lora; did you mean train favor_lora? moss",
        ("motionbench",): "no motionbench; did you mean eval motionbench? moss --help",
        ("train", "--steps", "2"): "no train --steps; ",
        ("xyzzy", "--help"): "no xyzzy; moss --help lists all",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            run(*words)
        printed = capsys.readouterr()
        assert stopped.value.code == 2 and not printed.out and told in printed.err, words


def test_a_group_is_listed_alone(run, capsys):
    for words in (["eval"], ["eval", "--help"]):
        assert run(*words) == []
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[:3] for line in lines[:-2]] == [
            ["moss", *name.split()] for name in COMMANDS if name.startswith("eval ")
        ]


def test_the_list_imports_nothing_that_takes_seconds():
    code = "import sys\nfrom moss_vllm.commands.moss import main\n"
    code += "for sys.argv in (['moss'], ['moss', '--help'], ['moss', '--version']): main()\n"
    code += "print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, version, imported = done.stdout.splitlines()
    shown = [f"moss {words:{max(map(len, COMMANDS))}}  {about}" for words, (_, about) in COMMANDS.items()]
    assert [line.strip() for line in lines if line.startswith("  ")] == shown * 2
    assert version == f"moss_vllm {__import__('moss_vllm').__version__}"
    assert not set(imported.split()) & {"torch", "transformers", "accelerate", "peft", "numpy", "yaml"}


def test_a_program_knows_whether_it_is_imported_to_be_run(monkeypatch):
    asked = []

    def stop(name):
        asked.append((name, commands.is_starting(name), commands.is_starting("moss_vllm.commands")))
        raise SystemExit(3)

    monkeypatch.setattr(commands.importlib, "import_module", stop)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back what it sets
    with pytest.raises(SystemExit):
        commands.start_program("eval.compare")
    assert asked == [("moss_vllm.commands.eval.compare", True, False)]
    assert not commands.is_starting("moss_vllm.commands.eval.compare")
