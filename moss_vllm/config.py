"""A recipe's settings: one dataclass, filled from its defaults, then a YAML file, then flags."""

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")
WHOLE_E = re.compile(r"[-+]?\d+e[-+]?\d+").fullmatch


def setting(default: Any, explanation: str) -> Any:
    """A dataclass field with the text `--help` shows."""
    return dataclasses.field(default=default, metadata={"help": explanation})


def parse(
    settings: type[T], argv: Sequence[str] | None, description: str | None
) -> tuple[T, argparse.Namespace]:
    """Build `settings` from `--config FILE.yaml` and one flag per field; flags win.

    Returns: the settings, and the other flags every recipe has (`dry_run`, `config`).

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
    values = _read_yaml(flags.config, kinds) if flags.config else {}
    values |= {name: value for name in kinds if (value := getattr(flags, name)) is not None}
    return settings(**values), flags


def _read_yaml(path: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    try:
        text = path.read_text()
        values = yaml.safe_load(text)
        tree: Any = yaml.compose(text)
        keys = [key.value for key, _ in tree.value] if isinstance(values, dict) else []
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
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


def _plain(kind: Any) -> type:
    """`int` of `int | None`."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    return typing.cast(type, kind)
