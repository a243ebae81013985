"""Whether a config fits the weights beside it, found out from their header before anything is made.

A config can name any size, and transformers would make it: layers are counted, then shapes are compared with
those of a model on the device "meta", which has no contents.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from moss_vllm.runtime.provenance import faults

HEAD = "lm_head.weight"
LAYERS = {
    "text_config": r"language_model\..*?layers\.(\d+)\.",
    "vision_config": r"vision_model\..*?layers\.(\d+)\.",
}
ORDERS = r"\bmoss\.order(\d+)\."


def count(header: Iterable[str], pattern: str) -> int:
    """How many different numbers stand in the names of weights where the pattern has its group."""
    return len({match[1] for name in header if (match := re.search(pattern, name))})


def check_orders(place: str, orders: Any, header: Iterable[str]) -> None:
    """ValueError for orders of MOSS that are not those of the weights: a list of 99,999 would be built."""
    stored = count(header, ORDERS)
    whole = isinstance(orders, list | tuple) and all(type(order) is int for order in orders)
    if not whole or not orders or max(orders) != stored:
        raise ValueError(
            f"{place}: moss_orders={shorten(orders)}, and the weights have orders 1 to {stored}; use another "
            "checkpoint"
        )


def check_counts(source: Any, settings: Mapping[str, Any], header: Iterable[str]) -> None:
    """ValueError for a config.json with more or fewer layers than the weights, or lists of no use here."""
    for part, pattern in LAYERS.items():
        own = settings.get(part)
        own = own if isinstance(own, dict) else {}
        said, stored = own.get("num_hidden_layers"), count(header, pattern)
        if isinstance(said, int) and said != stored:
            raise ValueError(
                f"{source}: config.json has {part}.num_hidden_layers={shorten(said)}, its weights have "
                f"{stored}; fetch it again"
            )
        if "moss_orders" in own:
            check_orders(f"{source}: config.json", own["moss_orders"], header)
    for own in (settings, *(settings.get(part) for part in LAYERS)):
        labels = own.get("num_labels", 0) if isinstance(own, dict) else 0
        if not isinstance(labels, int) or labels > 1000:  # a name is made for each
            raise ValueError(f"{source}: config.json has num_labels={shorten(labels)}; fetch it again")


def check_model(
    source: Any, build: Callable[[], nn.Module], header: Mapping[str, Tensor], *, new: str | None = None
) -> None:
    """ValueError unless the weights are those of the model that `build` makes; it is made without contents.

    Args:
        source: named in the error.
        build: makes the model.
        header: from `read_header`, of all its files.
        new: a part of the names of weights that are not in the files yet.
    """
    model: Any = make_empty(build, f"{source}: no model can be made of its config.json")
    model.tie_weights()
    wanted, found = dict(model.state_dict()), dict(header)
    if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        wanted.pop(HEAD), found.pop(HEAD, None)
    tables = {name: value.numel() for name, value in model.named_buffers() if name not in wanted}
    if large := [f"{name} of {size:,} numbers" for name, size in tables.items() if size > 10**6]:
        raise ValueError(f"{source}: its config.json asks for {', '.join(large)}; fetch it again")
    if new is not None:
        wanted = {name: value for name, value in wanted.items() if new not in name}
    both = wanted.keys() & found.keys()
    if wrong := faults({name: found[name] for name in both}, {name: wanted[name] for name in both}):
        raise ValueError(f"{source}: its weights do not fit its config.json: {wrong}; fetch it again")
    # transformers may know a missing one by an older name; no more than the files hold can be meant by it.
    lost, over = wanted.keys() - both, found.keys() - both
    if sum(wanted[name].numel() for name in lost) > sum(found[name].numel() for name in over):
        told = ", ".join([*sorted(lost), *sorted(over)][:10])
        raise ValueError(f"{source}: weights missing or left over: {told}; use a complete checkpoint")


def make_empty(build: Callable[[], nn.Module], failed: str) -> nn.Module:
    """What `build` makes, on "meta"; whatever it raises is a ValueError that begins with `failed`."""
    try:
        with torch.device("meta"), init.no_init_weights():
            return build()
    except Exception as error:  # torch and transformers raise many kinds at a value without sense
        raise ValueError(f"{failed} ({tell(error)}); correct it, or fetch it again") from error


def tell(error: Exception) -> str:
    """An error's text in one line, with its kind where the text alone would say nothing."""
    text = shorten(" ".join(str(error).split()), quoted=False)
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def shorten(value: Any, *, quoted: bool = True) -> str:
    """A value as it can stand in a message, however long it is."""
    text = repr(value) if quoted else str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
