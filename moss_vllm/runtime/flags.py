"""Command lines: one spelling per flag in all commands, old spellings accepted, defaults in --help."""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moss_vllm.runtime.errors import catch_interrupts, errors_in_one_line
from moss_vllm.runtime.files import refuse_unwritable
from moss_vllm.runtime.ranges import FPS, FROM_ONE, SHORTER_PX, Range
from moss_vllm.runtime.screen import say
from moss_vllm.runtime.spelling import spelled

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
    """A parser whose help keeps the description's lines and has every default and every `Range`.

    `tells_new_names` says whether new names are told, `refuses` whether numbers outside their range are
    refused; `given` has the flags of the last command line by the names of their values, also those that
    were given their default.
    """

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False)
        self.tells_new_names, self.refuses, self.given = True, True, dict[str, str]()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Understand old names; print each new name once, on stderr."""
        words, renamed = list(sys.argv[1:] if args is None else args), dict[str, str]()
        flags = self._option_string_actions
        for place, word in enumerate(words):
            name, equals, value = word.partition("=")
            new = OLD_NAMES.get(name)
            if new in flags and name not in flags:
                words[place], renamed[name] = f"{new}{equals}{value}", new
        for name, new in renamed.items() if self.tells_new_names else ():
            say(f"{name} is called {new} now", file=sys.stderr)
        self.given = {}
        return super().parse_known_args(words, namespace)

    def format_help(self) -> str:
        """The help, with commands as this one was started."""
        return spelled(super().format_help())

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Note what is given: argparse calls it for each flag that stands on the command line."""
        if action.option_strings:
            self.given[action.dest] = action.option_strings[0]
        return super()._get_values(action, arg_strings)  # type: ignore[misc]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is out of range or no choice; argparse calls it for each value."""
        name, choices = (action.option_strings or [str(action.metavar or action.dest)])[0], action.choices
        if choices is not None and value not in choices:
            self.error(f"{name} is {value!r}; it must be one of {', '.join(map(str, choices))}")
        if self.refuses and isinstance(action.type, Range) and value not in action.type:
            self.error(*action.type.faults(**{name: value}))

    def refuse_given(self, names: Iterable[str], why: str) -> None:
        """End with argparse's error if flags of these values were given.

        Args:
            why: when they have no effect, such as "with --merge, which opens no model".
        """
        if flags := [self.given[name] for name in names if name in self.given]:
            one = len(flags) == 1
            has = "has no effect" if one else "have no effect"
            self.error(f"{', '.join(flags)} {has} {why}; leave {'it' if one else 'them'} out")


class _Help(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        text, value = action.help or "", action.default
        no_default = value is None or value is False or value in (argparse.SUPPRESS, [])
        is_complete = no_default or not action.option_strings or "default" in text
        text = text if is_complete else f"{text} (default: %(default)s)"
        if not isinstance(action.type, Range):
            return text
        about, default, rest = text.partition("(default")
        return f"{about}({action.type}; default{rest}" if default else f"{text} ({action.type})"


def triple(text: str) -> tuple[int, int, int]:
    """Three integers with commas between them."""
    try:
        first, second, third = map(int, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"takes three integers such as 5,9,9, got '{text}'") from error
    return first, second, third


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
    add("--sample-fps", type=FPS, metavar="FPS", help="frames per second; paper: 2")
    side = "shorter side of a frame in pixels; paper: 224"
    add("--short-side-px", type=SHORTER_PX, metavar="PX", help=side)
    add("--max-frames", type=FROM_ONE, metavar="N", help="thin longer clips evenly to N frames; paper: 180")
    compress = "drop video tokens of patches that did not change (paper: yes)"
    add("--compress-tokens", action=argparse.BooleanOptionalAction, help=compress)
    return group


def choose_device(args: argparse.Namespace) -> None:
    """Set the device and the precision if they were left out."""
    import torch

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.precision = args.precision or ("bf16" if args.device.startswith("cuda") else "fp32")


def refuse_unwritable_out(out: Path | None, default: Path) -> None:
    """ValueError unless a command can write to `--out`, or without it below `default`."""
    refuse_unwritable(out or default, "--out" if out else "--out is not given, and")


def answer_help(
    options: Callable[[], "Flags"], check: Callable[[Any, argparse.Namespace], None] | None = None
) -> None:
    """Print the help and exit if it is asked for; scripts call this before imports that take seconds.

    From here on Ctrl-C ends the script in a sentence, also during those imports.

    Args:
        check: refuses words by the parser and what it has read, before the imports.
    """
    catch_interrupts()
    if check:
        with errors_in_one_line():
            parser = options()
            parser.tells_new_names = False  # `main` tells them
            check(parser, parser.parse_args())
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        options().parse_args()
