"""The programs: recipes that train, evaluations, and what else a user runs.

The thin files in recipes/, eval/ and scripts/ start them by their paths, `moss` by its words.
"""

import importlib
import sys

from moss_vllm.runtime.errors import catch_interrupts, errors_in_one_line

_starting: str | None = None


def start_program(name: str) -> None:
    """Run a program, such as recipes.favor_lora, by the words in sys.argv; a number from it is the status."""
    from moss_vllm.training.settings import RESUME

    global _starting
    resume = RESUME if name.startswith("recipes.") else ()
    catch_interrupts(resume=resume)  # in imports
    _starting = f"{__name__}.{name}"
    try:
        program = importlib.import_module(_starting)
    finally:
        _starting = None
    with errors_in_one_line(resume=resume):
        status = program.main()
    if isinstance(status, int):
        sys.exit(status)


def is_starting(module: str) -> bool:
    """Whether a module is imported to be run: it answers --help then, before imports that take seconds."""
    return module == _starting
