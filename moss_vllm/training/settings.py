"""A recipe's settings: a dataclass filled from defaults, a YAML file per model, --config and flags."""

import argparse
import dataclasses
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml

from moss_vllm.runtime.errors import catch_interrupts, errors_in_one_line
from moss_vllm.runtime.files import refuse_unwritable
from moss_vllm.runtime.flags import Flags
from moss_vllm.runtime.ranges import FROM_ONE, FROM_ZERO, NOT_NEGATIVE, POSITIVE, SEEDS, SHARE, Range
from moss_vllm.runtime.screen import say
from moss_vllm.training.run_folder import choose_resume

T = TypeVar("T")
RESUME = ("--resume", "auto")  # what every recipe goes on with
WHOLE_E = re.compile(r"[-+]?\d+e[-+]?\d+").fullmatch
# Types of settings, whose values outside are refused and whose range is in --help.
Count = Annotated[int, FROM_ONE]
FromZero = Annotated[int, FROM_ZERO]
Seed = Annotated[int, SEEDS]
Positive = Annotated[float, POSITIVE]
NotNegative = Annotated[float, NOT_NEGATIVE]
Share = Annotated[float, SHARE]
WRITTEN = ("out", "cache")  # folders


def setting(
    default: Any, explanation: str, *, old: Mapping[str, str] | None = None, heading: str | None = None
) -> Any:
    """A dataclass field with its text in `--help`.

    Args:
        old: values by the names they once had.
        heading: of this field and those after it in `--help`.
    """
    metadata = {"help": explanation, "old": old or {}, "heading": heading}
    return dataclasses.field(default=default, metadata=metadata)


def parse(
    settings: type[T],
    argv: Sequence[str] | None,
    description: str | None,
    preset: Callable[[Mapping[str, Any]], Path | None] = lambda values: None,
) -> tuple[T, argparse.Namespace]:
    """Build `settings` from `--config FILE.yaml` and one flag per field; flags win.

    Args:
        preset: from the values of file and flags, a YAML file that takes the place of the defaults.

    Returns: the settings, and the other flags of every recipe (`dry_run`, `config`) with `layers`: the values
        of each source by its name, the weakest first.

    Raises:
        ValueError: an unreadable YAML file, an unknown name in it or a value of the wrong type, by name; all
            values that are out of range, no choice or empty.
    """
    parser, kinds = options(settings, description), typing.get_type_hints(settings)
    flags = parser.parse_args(argv)
    config = {str(flags.config): _read_yaml(flags.config, kinds)} if flags.config else {}
    by_flag = {name: value for name in kinds if (value := getattr(flags, name)) is not None}
    file = preset({name: value for layer in (*config.values(), by_flag) for name, value in layer.items()})
    start = {file.name: _read_yaml(file, kinds)} if file else {}
    flags.layers = {**start, **config, "flag": by_flag}
    values = {name: value for layer in flags.layers.values() for name, value in layer.items()}
    for item in dataclasses.fields(settings):  # type: ignore[arg-type]
        if (value := values.get(item.name)) in item.metadata["old"]:
            values[item.name] = item.metadata["old"][value]
            say(f"{item.name} {value} is called {values[item.name]} now", file=sys.stderr)
    _refuse_impossible(settings, values)
    return settings(**values), flags


def begin(settings: type, description: str | None, *, out_depends_on: str | None = None) -> None:
    """What a recipe does before imports that take seconds: answer --help, refuse words, values and folders.

    Args:
        out_depends_on: a setting for which `out` may have another default; where it is given, only an `out`
            that is given too is looked at.
    """
    catch_interrupts(resume=RESUME)
    with errors_in_one_line(resume=RESUME):
        parser = options(settings, description)
        parser.tells_new_names = False  # `parse` tells them
        flags = parser.parse_args()
        values = _read_yaml(flags.config, typing.get_type_hints(settings)) if flags.config else {}
        values |= {name: getattr(flags, name) for name in parser.given}
        _refuse_impossible(settings, values)
        if out_depends_on not in values:
            values.setdefault("out", settings.out)  # type: ignore[attr-defined]
        for name in WRITTEN:
            if values.get(name):
                refuse_unwritable(Path(values[name]), name)
        if values.get("out"):
            choose_resume(Path(values["out"]), values.get("resume"), dry_run=flags.dry_run)


def refuse(settings: Any, wrong: Iterable[str]) -> None:
    """ValueError for what a recipe has found wrong, or a folder that cannot be written to."""
    if wrong:
        raise ValueError("; ".join(wrong))
    for name in WRITTEN:
        if folder := getattr(settings, name):
            refuse_unwritable(Path(folder), name)


def refuse_beside_drawn(settings: Any) -> None:
    """ValueError for settings that name parts of a dataset which is drawn whole, by name."""
    given = ("videos", "annotation", "train_subset", "subset", "allow_missing")
    if wrong := [name for name in given if getattr(settings, name)]:
        raise ValueError(
            f"data is {settings.data!r}, drawn whole with its own files; leave out {', '.join(wrong)}"
        )


def find_root(settings: Any, needed: str) -> tuple[str | Path, Sequence[str]]:
    """The root of a dataset, and the folders of its videos, if they are named, of `videos` and `annotation`.

    Args:
        needed: what the dataset is made of, and what of it lies below the root.

    Raises:
        ValueError: neither root nor both others, or a folder without a name.
    """
    root = settings.root
    if root is None and settings.annotation and settings.videos:
        root = Path(settings.annotation).parent
    if root is None:
        raise ValueError(
            f"data is {settings.data!r}; name the folder of its {needed}; or both with --annotation and "
            "--videos"
        )
    folders = settings.videos.split(os.pathsep) if settings.videos else ()
    if "" in folders:
        raise ValueError(f"videos is {settings.videos!r}, with an empty name; write folders with ':' between")
    return root, folders


def accumulate_for(clips_a_step: int, at_once: int) -> int:
    """Micro-batches per step that come nearest to `clips_a_step`, if each takes `at_once` clips in all."""
    return max(1, round(clips_a_step / at_once))


def _refuse_impossible(settings: type, values: Mapping[str, Any]) -> None:
    """ValueError naming every value that is out of range, no choice or empty; None is always possible."""
    kinds, wrong = typing.get_type_hints(settings, include_extras=True), []
    for item in dataclasses.fields(settings):  # type: ignore[arg-type]
        name, value, choices = item.name, values.get(item.name), _choices(kinds[item.name])
        if within := _range(kinds[name]):
            wrong += within.faults(**{name: value})
        elif value is None or value in item.metadata["old"]:
            continue
        elif value == "":
            wrong.append(f"{name} is empty; give a value, or leave it out")
        elif choices and value not in choices:
            wrong.append(f"{name} is {value!r}; it must be one of {', '.join(map(str, choices))}")
    if wrong:
        raise ValueError("; ".join(wrong))


def options(settings: type, description: str | None) -> Flags:
    """The command line of `settings`, whose help has every default; a flag that is left out is None."""
    parser = Flags(description)
    parser.refuses = False  # `parse` tells all faults at once, those of a YAML file too
    parser.add_argument("--config", type=Path, help="YAML file of settings; flags given beside it win")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print settings, what trains, memory and a batch; train nothing",
    )
    kinds = typing.get_type_hints(settings, include_extras=True)
    group: Any = parser
    for item in dataclasses.fields(settings):  # type: ignore[arg-type]
        if heading := item.metadata["heading"]:
            group = parser.add_argument_group(heading)
        kind, flag = _plain(kinds[item.name]), f"--{item.name.replace('_', '-')}"
        explained, default = item.metadata["help"], item.default
        if default is not None and "default" not in explained:
            explained += f" (default: {'yes' if default is True else 'no' if default is False else default})"
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=explained)
        else:
            choices = _choices(kinds[item.name])
            shown = f"{{{','.join(map(str, choices))}}}" if choices else {int: "N", float: "X"}.get(kind)
            group.add_argument(flag, type=_range(kinds[item.name]) or kind, help=explained, metavar=shown)
    return parser


def origins(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The source of each setting that is not a default: a YAML file, or "flag"."""
    return {name: origin for origin, layer in layers.items() for name in layer}


def ignored(settings: Any, layers: Mapping[str, Mapping[str, Any]], needs: Mapping[str, str]) -> list[str]:
    """Faults of settings that have no effect, since another one is off.

    Args:
        layers: from `parse`.
        needs: names of settings, and the setting without which they have no effect. A later layer may switch
            that one off, and with it the settings of earlier layers.
    """
    rank, source = list(layers), origins(layers)
    return [
        f"{name} is {getattr(settings, name)} and has no effect without {other}; give both, or leave it out"
        for name, other in needs.items()
        if getattr(settings, name) is not None
        and not getattr(settings, other)
        and name in source
        and not (other in source and rank.index(source[other]) > rank.index(source[name]))
    ]


def _read_yaml(path: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    try:
        text = path.read_text()
        values = yaml.safe_load(text)
        tree: Any = yaml.compose(text)
        keys = [key.value for key, _ in tree.value] if isinstance(values, dict) else []
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: 2026-99-99
        raise ValueError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected 'name: value' lines, got {type(values).__name__}")
    if twice := sorted({name for name in keys if keys.count(name) > 1}):
        raise ValueError(f"{path}: {', '.join(twice)} is there twice; remove one")
    if unknown := sorted(set(map(str, values)) - set(kinds)):
        raise ValueError(f"{path}: unknown settings {unknown}; known are {sorted(kinds)}")
    for name, value in values.items():
        kind = _plain(kinds[name])
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                value = values[name] = float(value)
            except OverflowError:
                raise ValueError(
                    f"{path}: {name} has {len(str(value))} digits; give a smaller number"
                ) from None
        optional = type(None) in typing.get_args(kinds[name])
        if type(value) is not kind and not (optional and value is None):
            text = str(value)  # YAML 1.1 reads 1e-3 as text
            hint = "; in YAML such a number needs a dot: " + text.replace("e", ".0e") if WHOLE_E(text) else ""
            raise ValueError(f"{path}: {name} is {value!r}, expected {kind.__name__}{hint}")
    return values


def _choices(kind: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, which may also be None; empty for other types."""
    kinds = [kind, *typing.get_args(kind)]
    return next((typing.get_args(one) for one in kinds if typing.get_origin(one) is typing.Literal), ())


def _range(kind: Any) -> Range | None:
    """The range of `Count`, which may also be None."""
    noted = [note for one in (kind, *typing.get_args(kind)) for note in getattr(one, "__metadata__", ())]
    return next((note for note in noted if isinstance(note, Range)), None)


def _plain(kind: Any) -> type:
    """`int` for `Count` and `Count | None`, `str` for a `Literal` of texts."""
    if choices := _choices(kind):
        return type(choices[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    return typing.cast(type, getattr(kind, "__origin__", kind))
