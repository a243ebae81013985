"""The command lines of all scripts: their parsers, taken as they begin to read their arguments."""

import functools
import re
import runpy
import sys

import pytest
from launching import ROOT

from moss_vllm.runtime.flags import Flags

FOLDERS = ("recipes", "eval", "scripts", "experiments")


@functools.cache
def parser_of(script):
    """The parser of a script, by its path from the repository's root."""
    reached = type("Reached", (BaseException,), {})

    def stop(self, *_):
        raise reached(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flags, "parse_known_args", stop)
        patch.setattr(sys, "argv", [script, "--help"])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except reached as error:
            return error.args[0]
    raise AssertionError(f"{script} reads no arguments")


def parsers():
    """The parser of each script that has one."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
    scripts = [path for path in files if re.search(r"answer_help|start_program|= Flags\(", path.read_text())]
    return {name: parser_of(name) for name in (path.relative_to(ROOT).as_posix() for path in scripts)}
