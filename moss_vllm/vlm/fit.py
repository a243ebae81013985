"""Checks that a config fits the weights beside it, by the header of their files, before anything is made.

A config can name any size, and transformers would make it. So layers are counted first, then shapes are
compared with those of a model on the device "meta", which has no contents.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from moss_vllm.runtime.provenance import faults

HEAD = "lm_head.weight"
ORDERS = r"\bmoss\.order(\d+)\."
LAYERS = {  # section of config.json -> names of weights whose group counts its layers
    "text_config": r"^(?!.*\bvis).*?\blayers\.(\d+)\.",
    "vision_config": r"^.*?\bvis\w*\..*?\b(?:layers?|blocks)\.(\d+)\.",
}


def count_numbers(header: Iterable[str], pattern: str) -> int:
    """How many different numbers the names of weights have where the pattern has its group."""
    return len({match[1] for name in header if (match := re.search(pattern, name))})


def check_orders(place: str, orders: Any, header: Iterable[str]) -> None:
    """ValueError for orders of MOSS that are not those of the weights: 99,999 orders would be built."""
    stored = count_numbers(header, ORDERS)
    whole = isinstance(orders, list | tuple) and all(type(order) is int for order in orders)
    if not whole or not orders or max(orders) != stored:
        raise ValueError(
            f"{place}: moss_orders={shorten(orders)}, and the weights have orders 1 to {stored}; use another "
            "checkpoint"
        )


def check_counts(source: Any, settings: Mapping[str, Any], header: Iterable[str]) -> None:
    """ValueError for a config.json with other numbers of layers or orders than the weights, or many labels.

    Args:
        source: named in the error.
        settings: the content of config.json.
        header: names of the weights.
    """
    header = list(header)
    of_parts = {part: settings.get(part) for part in LAYERS}
    if not isinstance(of_parts["text_config"], dict):  # Qwen2-VL's releases have no section for the text
        of_parts["text_config"] = dict(settings)
    for part, own in of_parts.items():
        own = own if isinstance(own, dict) else {}
        for name in ("num_hidden_layers", "depth"):
            configured, stored = own.get(name), count_numbers(header, LAYERS[part])
            if isinstance(configured, int) and configured != stored:
                raise ValueError(
                    f"{source}: config.json has {part}.{name}={shorten(configured)}, its weights have "
                    f"{stored}; fetch it again"
                )
        if "moss_orders" in own:
            check_orders(f"{source}: config.json", own["moss_orders"], header)
    for own in (settings, *(settings.get(part) for part in LAYERS)):
        labels = own.get("num_labels", 0) if isinstance(own, dict) else 0
        if not isinstance(labels, int) or labels > 1000:  # transformers makes a name for each
            raise ValueError(f"{source}: config.json has num_labels={shorten(labels)}; fetch it again")


def check_model(
    source: Any, build: Callable[[], nn.Module], header: Mapping[str, Tensor], *, new: str | None = None
) -> None:
    """ValueError unless the weights are those of the model that `build` makes, which gets no contents.

    Args:
        source: named in the error.
        build: makes the model.
        header: from `read_header`, of all files of the model.
        new: a part of the names of the weights that no file has yet.
    """
    model: Any = make_empty(build, f"{source}: no model can be made of its config.json")
    model.tie_weights()
    wanted, stored = dict(model.state_dict()), dict(header)
    if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        wanted.pop(HEAD), stored.pop(HEAD, None)
    tables = {name: value.numel() for name, value in model.named_buffers() if name not in wanted}
    if large := [f"{name} of {size:,} numbers" for name, size in tables.items() if size > 10**6]:
        raise ValueError(f"{source}: its config.json asks for {', '.join(large)}; fetch it again")
    if new is not None:
        wanted = {name: value for name, value in wanted.items() if new not in name}
    both = wanted.keys() & stored.keys()
    if wrong := faults({name: stored[name] for name in both}, {name: wanted[name] for name in both}):
        raise ValueError(f"{source}: its weights do not fit its config.json: {wrong}; fetch it again")
    # transformers may find a missing weight under an older name, but only among those left over in the files.
    lost, over = wanted.keys() - both, stored.keys() - both
    if sum(wanted[name].numel() for name in lost) > sum(stored[name].numel() for name in over):
        names = ", ".join([*sorted(lost), *sorted(over)][:10])
        raise ValueError(f"{source}: weights missing or left over: {names}; use a complete checkpoint")


def make_empty(build: Callable[[], nn.Module], failed: str) -> nn.Module:
    """What `build` makes, on "meta"; any error is raised as a ValueError that begins with `failed`."""
    try:
        with torch.device("meta"), init.no_init_weights():
            return build()
    except Exception as error:  # torch and transformers raise many kinds at a senseless value
        raise ValueError(f"{failed} ({describe_error(error)}); correct it, or fetch it again") from error


def describe_error(error: Exception) -> str:
    """An error's text in one line, with the error's class where the text alone may explain nothing."""
    text = shorten(" ".join(str(error).split()), quoted=False)
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def shorten(value: Any, *, quoted: bool = True) -> str:
    """A value as text for a message, cut after 200 characters."""
    text = repr(value) if quoted else str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
