"""The temporal module in a recipe's settings: `temporal`, `temporal_layers`, `temporal_options`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import yaml

Temporal = Literal[
    "moss", "stss1", "selfy", "atm", "r2plus1d", "factorised_attention", "local_attention", "none"
]


def parse_temporal(settings: Any) -> dict[str, Any]:
    """The module as arguments of a task's builder.

    Raises:
        ValueError: layers or options that cannot be parsed.
    """
    layers, options = settings.temporal_layers, settings.temporal_options
    try:
        numbers = None if layers is None else [int(layer) for layer in layers.split(",")]
        if numbers and len(set(numbers)) < len(numbers):
            raise ValueError
    except ValueError:
        raise ValueError(f"temporal_layers is {layers!r}; write different layers as '4' or '4,6'") from None
    try:
        parsed = {} if options is None else yaml.safe_load(options)
        if not isinstance(parsed, dict):
            raise ValueError(f"it holds a {type(parsed).__name__}")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(
            f"temporal_options is {options!r:.200} ({error}); write them as '{{orders: [1, 2]}}'"
        ) from error
    return {"temporal": settings.temporal, "temporal_layers": numbers, "temporal_options": parsed}


@contextmanager
def refused_options_named(settings: Any) -> Iterator[None]:
    """ValueError where the temporal module refuses its options."""
    try:
        yield
    except (TypeError, RuntimeError) as error:  # an unknown keyword, an impossible size
        if not settings.temporal_options:
            raise
        raise ValueError(
            f"{settings.temporal!r} cannot be built with temporal_options {settings.temporal_options!r} "
            f"({error}); moss_vllm/core has its arguments"
        ) from error
