"""Owns: one process holds a lock; its file goes with it, unless another process has made the folder anew."""

import shutil
import subprocess
import sys
import threading

from launching import environment

from moss_vllm.runtime.locks import Lock

HOLD = """
import sys
from pathlib import Path
from moss_vllm.runtime.locks import Lock
lock = Lock(Path(sys.argv[1]))
print(lock.take(), flush=True)
sys.stdin.read()
"""


def test_one_holds_it_and_its_file_goes_with_it(tmp_path):
    one, other = Lock(tmp_path / ".lock"), Lock(tmp_path / ".lock")
    assert not one.is_held() and not one.file.exists()
    assert one.take() and other.is_held() and not other.take()

    def wait():
        assert other.take(wait=True)
        other.drop()

    waiting = threading.Thread(target=wait)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    one.drop()
    waiting.join(10)
    assert not waiting.is_alive() and not one.file.exists() and one.take()
    one.drop()


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".lock")]
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment()}
    with subprocess.Popen(command, **piped) as process:
        assert process.stdout.readline() == "True\n"
        assert Lock(tmp_path / ".lock").is_held()
        process.kill()
    assert (tmp_path / ".lock").exists() and not Lock(tmp_path / ".lock").is_held()
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_one_that_took_its_place_stays(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    one = Lock(folder / ".lock")
    assert one.take()
    shutil.rmtree(folder)
    folder.mkdir()
    other = Lock(folder / ".lock")
    assert other.take()
    one.drop()
    assert other.file.exists() and Lock(other.file).is_held()
    other.drop()
    assert not other.file.exists()
