"""Commands of this repository side by side, each in its process, with what they say about their progress."""

import json
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from moss_vllm.runtime.screen import say

SHOWN_OF_A_FAILURE = 15
PROGRESS = re.compile(r"\$ |step \d+/|done: |kept |stopped|row |\d+ of \d+ questions|measured ")
# Scripts in one process, which imports once what takes seconds.
IN_TURN = """
import json, runpy, shlex, sys
for sys.argv in json.loads(sys.argv[1]):
    print("$ python", shlex.join(sys.argv), flush=True)
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_commands(
    commands: dict[str, list[list[str]]], logs: Path | None = None, *, threads: int | None = None
) -> None:
    """Run a process for each name, side by side, sharing the cores; end the demo if one fails.

    A process runs its `python COMMAND`s in turn, with `threads` of the CPU (default: its share).
    With a folder for `logs`, all output of a command goes to NAME.txt in it, and only progress is shown.
    """
    threads = max(1, (os.cpu_count() or 1) // len(commands) if threads is None else threads)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    say()
    for name, some in commands.items():
        if len(some) == 1:
            say(f"[{name}] $ python {shlex.join(some[0])}", flush=True)
    if logs:
        logs.mkdir(parents=True, exist_ok=True)

    def follow(name: str) -> int:
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
        kept: list[str] = []
        given = commands[name][0] if len(commands[name]) == 1 else ["-c", IN_TURN, json.dumps(commands[name])]
        with subprocess.Popen([sys.executable, *given], **piped) as process:
            for line in map(str.rstrip, process.stdout):
                kept.append(line)
                if line and (logs is None or PROGRESS.match(line)):
                    say(f"[{name}] {line}", flush=True)
        if logs:
            (logs / f"{name}.txt").write_text("\n".join([*kept, ""]))
            if process.returncode:
                say(*(f"[{name}] {line}" for line in kept[-SHOWN_OF_A_FAILURE:]), sep="\n", flush=True)
        if process.returncode < 0:  # as by a system without memory: nothing else says so
            say(f"[{name}] was ended by signal {-process.returncode}", flush=True)
        return process.returncode

    with ThreadPoolExecutor(len(commands)) as pool:
        codes = dict(zip(commands, pool.map(follow, commands), strict=True))
    if failed := [name for name, code in codes.items() if code]:
        raise SystemExit(
            f"{' and '.join(failed)} failed; the message is above. Run again to go on from here."
        )
