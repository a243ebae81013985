"""Owns: how commands end early - Ctrl-C is a sentence and status 130, a folder of no use is named."""

import signal
import subprocess
import sys

import pytest
from launching import environment

from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import refuse_unwritable

RESUME = ("--resume", "auto")


def interrupt(capsys, *given, **options):
    """What is said on Ctrl-C in a command of these words."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["recipes/detection.py", *given])
        with errors_in_one_line(**options):
            raise KeyboardInterrupt
    assert ended.value.code == 130
    return capsys.readouterr().err


def test_ctrl_c_names_the_command_that_goes_on(capsys, monkeypatch):
    command = "stopped; to go on: python recipes/detection.py --out 'my runs'"
    assert interrupt(capsys, "--out", "my runs") == f"{command}\n"
    assert interrupt(capsys, "--out", "my runs", resume=RESUME) == f"{command} --resume auto\n"
    for given in (["--resume", "auto"], ["--resume=auto"]):
        told = interrupt(capsys, *given, resume=RESUME)
        assert told == f"stopped; to go on: python recipes/detection.py {' '.join(given)}\n"
    assert interrupt(capsys, remedy="nothing is written") == "stopped; nothing is written\n"
    monkeypatch.setenv("WORLD_SIZE", "2")  # a launcher's own words are not known
    told = interrupt(capsys, resume=RESUME)
    assert told == "stopped; to go on, start the same command with --resume auto\n"
    monkeypatch.setenv("RANK", "1")  # the first process says it
    assert interrupt(capsys, resume=RESUME) == ""


def test_ctrl_c_while_modules_are_imported_ends_in_the_same_way(tmp_path):
    (tmp_path / "heavy.py").write_text(f"import signal\nsignal.raise_signal({int(signal.SIGINT)})\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import signal\n"
        "from moss_vllm.runtime.flags import Flags, answer_help\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "answer_help(lambda: Flags('About.'))\n"
        "import heavy\n"
    )
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "stopped; to go on: python script.py\n"


def test_a_folder_that_cannot_be_written_to_is_named_with_its_reason(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    before = sorted(tmp_path.rglob("*"))
    for folder, why in {
        "/proc/x": "/proc: No such file or directory",  # where root may write, by the permissions
        str(tmp_path / "file"): f"{tmp_path / 'file'} is a file",
        str(tmp_path / "file" / "below"): f"{tmp_path / 'file'} is a file",
        str(tmp_path / "link"): f"{tmp_path / 'link'} is a link to nothing",
        str(tmp_path / ("x" * 300)): f"{tmp_path}: File name too long",
    }.items():
        with pytest.raises(ValueError) as refused:
            refuse_unwritable(type(tmp_path)(folder), "--out")
        assert str(refused.value) == (
            f"--out {folder} is not a folder that can be written to ({why}); name another"
        )
    for folder in (tmp_path, tmp_path / "new" / "below"):
        refuse_unwritable(folder, "--out")
    assert sorted(tmp_path.rglob("*")) == before
