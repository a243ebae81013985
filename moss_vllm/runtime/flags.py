"""Command lines: one spelling per flag in all commands, old spellings accepted, defaults in --help."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from moss_vllm.runtime.screen import say

PRECISIONS = ("fp32", "bf16", "fp16")
# Old spellings of flags in some commands. A command that has a flag of this very name keeps it.
OLD_NAMES = {
    "--short-side": "--short-side-px",
    "--compress": "--compress-tokens",
    "--no-compress": "--no-compress-tokens",
    "--dtype": "--precision",
    "--max-gib": "--cache-gib",
    "--fps": "--sample-fps",
    "--clips": "--clip-settings",
    "--frames": "--max-frames",
    "--licence": "--license",
}


class Flags(argparse.ArgumentParser):
    """A parser whose help keeps the description's lines and has every default."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=_Help)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Understand old names; print each new name once, on stderr."""
        words, renamed = list(sys.argv[1:] if args is None else args), dict[str, str]()
        flags = self._option_string_actions
        for place, word in enumerate(words):
            name, equals, value = word.partition("=")
            new = OLD_NAMES.get(name)
            if new in flags and name not in flags:
                words[place], renamed[name] = f"{new}{equals}{value}", new
        for name, new in renamed.items():
            say(f"{name} is called {new} now", file=sys.stderr)
        return super().parse_known_args(words, namespace)


class _Help(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        text, value = action.help or "", action.default
        no_default = value is None or value is False or value in (argparse.SUPPRESS, [])
        is_complete = no_default or not action.option_strings or "default" in text
        return text if is_complete else f"{text} (default: %(default)s)"


def add_device(add: Any) -> None:
    """Add `--device` and `--precision`; `choose_device` sets those that are left out."""
    add("--device", help="a device of torch, such as cuda:1 or cpu (default: a GPU where there is one)")
    precision = "number format of the base's weights (default: bf16 on a GPU, fp32 elsewhere)"
    add("--precision", choices=PRECISIONS, help=precision)


def add_clip_options(parser: argparse.ArgumentParser) -> Any:
    """Add the options that decide how a clip is sampled; returns their group."""
    by_default = "by default as the checkpoint was trained, or where it has no record as in the paper"
    group = parser.add_argument_group("clips", by_default)
    add = group.add_argument
    add("--sample-fps", type=float, metavar="FPS", help="frames per second (paper: 2)")
    add("--short-side-px", type=int, metavar="PX", help="shorter side of a frame in pixels (paper: 224)")
    add("--max-frames", type=int, metavar="N", help="thin longer clips evenly to N frames (paper: 180)")
    compress = "drop video tokens of patches that did not change (paper: yes)"
    add("--compress-tokens", action=argparse.BooleanOptionalAction, help=compress)
    return group


def choose_device(args: argparse.Namespace) -> None:
    """Set the device and the precision if they were left out."""
    import torch

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.precision = args.precision or ("bf16" if args.device.startswith("cuda") else "fp32")


def answer_help(options: Callable[[], argparse.ArgumentParser]) -> None:
    """Print the help and exit if it is asked for; scripts call this before imports that take seconds."""
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        options().parse_args()
