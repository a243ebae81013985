"""A recipe's settings: a dataclass filled from its defaults, the model's YAML file, one named, then flags."""

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")
FLAGS = "flag"  # the last layer's name
WHOLE_E = re.compile(r"[-+]?\d+e[-+]?\d+").fullmatch


def setting(default: Any, explanation: str) -> Any:
    """A dataclass field with the text `--help` shows."""
    return dataclasses.field(default=default, metadata={"help": explanation})


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
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="YAML file of settings; flags given beside it win")
    parser.add_argument(
        "--dry-run", action="store_true", help="print settings, what trains and one batch, and stop"
    )
    kinds = typing.get_type_hints(settings)
    for item in dataclasses.fields(settings):  # type: ignore[arg-type]
        kind, flag = _plain(kinds[item.name]), f"--{item.name.replace('_', '-')}"
        explained = f"{item.metadata['help']} (default: {item.default})"
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=explained)
        else:
            parser.add_argument(flag, type=kind, default=None, help=explained, metavar=kind.__name__.upper())
    flags = parser.parse_args(argv)
    config = {str(flags.config): _read_yaml(flags.config, kinds)} if flags.config else {}
    given = {name: value for name in kinds if (value := getattr(flags, name)) is not None}
    file = preset({name: value for layer in (*config.values(), given) for name, value in layer.items()})
    start = {file.name: _read_yaml(file, kinds)} if file else {}
    flags.layers = {**start, **config, FLAGS: given}
    return settings(
        **{name: value for layer in flags.layers.values() for name, value in layer.items()}
    ), flags


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
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML: {error}") from error
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


def _plain(kind: Any) -> type:
    """`int` of `int | None`."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    return typing.cast(type, kind)
