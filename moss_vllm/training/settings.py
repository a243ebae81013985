"""A recipe's settings: a dataclass filled from its defaults, the model's YAML file, one named, then flags."""

import argparse
import dataclasses
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from moss_vllm.runtime.flags import Flags
from moss_vllm.runtime.screen import say

T = TypeVar("T")
FLAGS = "flag"  # the last layer's name
WHOLE_E = re.compile(r"[-+]?\d+e[-+]?\d+").fullmatch


def setting(default: Any, explanation: str, *, old: Mapping[str, str] | None = None) -> Any:
    """A dataclass field with the text `--help` shows; `old` has values as they were once spelled."""
    return dataclasses.field(default=default, metadata={"help": explanation, "old": old or {}})


def parse(
    settings: type[T],
    argv: Sequence[str] | None,
    description: str | None,
    preset: Callable[[Mapping[str, Any]], Path | None] = lambda given: None,
) -> tuple[T, argparse.Namespace]:
    """Build `settings` from `--config FILE.yaml` and one flag per field; flags win.

    Args:
        preset: names a YAML file that takes the place of the defaults, from what was given.

    Returns: the settings, and the other flags every recipe has (`dry_run`, `config`). Of these, `layers`
        has what each source gave, by its name and the weakest first.

    Raises:
        ValueError: an unreadable YAML file, an unknown name in it or a value of the wrong type, by name.
    """
    parser, kinds = options(settings, description), typing.get_type_hints(settings)
    flags = parser.parse_args(argv)
    config = {str(flags.config): _read_yaml(flags.config, kinds)} if flags.config else {}
    given = {name: value for name in kinds if (value := getattr(flags, name)) is not None}
    file = preset({name: value for layer in (*config.values(), given) for name, value in layer.items()})
    start = {file.name: _read_yaml(file, kinds)} if file else {}
    flags.layers = {**start, **config, FLAGS: given}
    values = {name: value for layer in flags.layers.values() for name, value in layer.items()}
    for item in dataclasses.fields(settings):  # type: ignore[arg-type]
        if (value := values.get(item.name)) in item.metadata.get("old", {}):
            values[item.name] = item.metadata["old"][value]
            say(f"{item.name} {value} is called {values[item.name]} now", file=sys.stderr)
    return settings(**values), flags


def wrong_choices(settings: Any) -> list[str]:
    """What is wrong with values of fields that are a `Literal`."""
    kinds = typing.get_type_hints(type(settings))
    values = {name: getattr(settings, name) for name, kind in kinds.items() if _choices(kind)}
    return [
        f"{name} is {value!r}; it must be one of {', '.join(_choices(kinds[name]))}"
        for name, value in values.items()
        if value is not None and value not in _choices(kinds[name])
    ]


def options(settings: type, description: str | None) -> Flags:
    """The command line of `settings`, with every default told; a flag that is not given is None."""
    parser = Flags(description)
    parser.add_argument("--config", type=Path, help="YAML file of settings; flags given beside it win")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the settings, what trains and one batch; train nothing"
    )
    kinds = typing.get_type_hints(settings)
    for item in dataclasses.fields(settings):  # type: ignore[arg-type]
        kind, flag = _plain(kinds[item.name]), f"--{item.name.replace('_', '-')}"
        explained, default = item.metadata["help"], item.default
        if default is not None and "default" not in explained:
            explained += f" (default: {'yes' if default is True else 'no' if default is False else default})"
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=explained)
        else:
            choices = _choices(kinds[item.name])  # `wrong_choices` refuses others, from a file too
            shown = f"{{{','.join(choices)}}}" if choices else {int: "N", float: "X"}.get(kind)
            parser.add_argument(flag, type=kind, help=explained, metavar=shown)
    return parser


def origins(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Where each setting comes from that is not a default."""
    return {name: origin for origin, layer in layers.items() for name in layer}


def ignored(settings: Any, layers: Mapping[str, Mapping[str, Any]], needs: Mapping[str, str]) -> list[str]:
    """What was given and says nothing, in words.

    Args:
        layers: from `parse`.
        needs: names of settings, and the setting without which they say nothing. Switched off in a later
            layer, it takes those of earlier ones with it.
    """
    rank, found = list(layers), origins(layers)
    return [
        f"{name} is {getattr(settings, name)} and says nothing without {other}; give both, or leave it out"
        for name, other in needs.items()
        if getattr(settings, name) is not None
        and not getattr(settings, other)
        and name in found
        and not (other in found and rank.index(found[other]) > rank.index(found[name]))
    ]


def _read_yaml(path: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    try:
        text = path.read_text()
        values = yaml.safe_load(text)
        tree: Any = yaml.compose(text)
        keys = [key.value for key, _ in tree.value] if isinstance(values, dict) else []
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
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
            value = values[name] = float(value)
        optional = type(None) in typing.get_args(kinds[name])
        if type(value) is not kind and not (optional and value is None):
            text = str(value)  # YAML 1.1 reads 1e-3 as text
            hint = "; in YAML such a number needs a dot: " + text.replace("e", ".0e") if WHOLE_E(text) else ""
            raise ValueError(f"{path}: {name} is {value!r}, expected {kind.__name__}{hint}")
    return values


def _choices(kind: Any) -> tuple[str, ...]:
    """Those of a `Literal`, or of one that may be None; else none."""
    kinds = [kind, *typing.get_args(kind)]
    return next((typing.get_args(one) for one in kinds if typing.get_origin(one) is typing.Literal), ())


def _plain(kind: Any) -> type:
    """`int` of `int | None`, `str` of a `Literal`."""
    if _choices(kind):
        return str
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    return typing.cast(type, kind)
