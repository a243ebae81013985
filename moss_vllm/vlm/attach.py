"""MOSS attached to an opened Video-LLM of transformers' own classes, and detached again.

    model = AutoModelForImageTextToText.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct")
    model = moss_vllm.attach(model)      # the same object: every output as before, until MOSS is trained

MOSS is a child of the vision tower, `tower.moss`, and float32; every weight of the model keeps its name.
`vlm/hosts/` has what differs between models.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from moss_vllm.core.presets import VIDEO_LLM
from moss_vllm.runtime.provenance import fingerprint
from moss_vllm.runtime.screen import say
from moss_vllm.vlm import fit
from moss_vllm.vlm.hosts.by_frame import INTERNVL, LLAVA_ONEVISION, PERCEPTION_LM, SMOLVLM
from moss_vllm.vlm.hosts.by_grid import GLM4V, QWEN2_VL, QWEN3_VL, QWEN25_VL, STOCK_VIDEO_LLAMA3
from moss_vllm.vlm.hosts.host import Host
from moss_vllm.vlm.hosts.opening import proportional_layer, put_moss, tellers
from moss_vllm.vlm.video_llama3.model import MOSS_FIELDS

Model = TypeVar("Model", bound=nn.Module)

VIDEO_LLM_HOSTS = (
    QWEN25_VL,
    QWEN3_VL,
    SMOLVLM,
    QWEN2_VL,
    GLM4V,
    INTERNVL,
    LLAVA_ONEVISION,
    PERCEPTION_LM,
    STOCK_VIDEO_LLAMA3,
)
SIZES = tuple(name.removeprefix("moss_") for name in MOSS_FIELDS)  # of MOSS, that can be chosen


def attach(model: Model, **sizes: Any) -> Model:
    """Give an opened model a new MOSS, whose output is zero until it is trained.

    Args:
        model: a ...ForConditionalGeneration of a kind in `VIDEO_LLM_HOSTS`, opened by transformers.
        sizes: values of `SIZES` that differ from the paper's. `after_layer`, counted from 1, is the paper's
            in proportion if not given: 6 of 27.

    Raises:
        ValueError: a model of no kind in `VIDEO_LLM_HOSTS`, or of a kind that cannot run here; one that has
            MOSS, is a PeftModel or spread over devices; a layer that it does not have; wrong sizes.
    """
    if hasattr(model, "peft_config"):
        raise ValueError("attach MOSS first, then peft: get_peft_model(moss_vllm.attach(model), config)")
    host = find_host(model)
    tower = host.tower_of(model)
    _check(model, host, tower)
    marks = weight_marks(model, host)
    put_moss(model, host, complete_sizes(tower, host, sizes))
    tower.base_marks = marks
    say(describe_moss(model))
    return model


def detach(model: Model) -> Model:
    """Take MOSS off: the stock model, with its own weights as they are now.

    Raises:
        ValueError: it has no MOSS, or peft holds it.
    """
    host, tower = attached(model)
    if hasattr(model, "peft_config"):
        raise ValueError("detach needs the model itself: take peft's adapters off first, by model.unload()")
    del tower.moss, tower.moss_sizes, tower.base_marks
    tower.__class__ = tower.stock_class
    for part in tellers(model, host):
        part.__class__ = getattr(part, "stock_class", type(part))
    return model


def trained_modules(model: nn.Module) -> list[str]:
    """Names of the modules to train whole beside LoRA: MOSS, and all between tower and language model.

    They are what `modules_to_save` of a peft config takes.

    Raises:
        ValueError: the model has no MOSS.
    """
    host, _ = attached(model)
    names = [name for name, _ in stock_model(model).named_modules() if re.fullmatch(host.projector, name)]
    return [f"{host.tower}.moss", *names]


def attached(model: nn.Module) -> tuple[Host, Any]:
    """The kind of a model with MOSS, and its tower.

    Raises:
        ValueError: it has no MOSS.
    """
    host = find_host(stock_model(model))
    tower = host.tower_of(stock_model(model))
    if not hasattr(tower, "stock_class"):
        raise ValueError(f"this {type(model).__name__} has no MOSS; moss_vllm.attach(model) gives it one")
    return host, tower


def stock_model(model: Any) -> Any:
    """The model below peft's wrappers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def find_host(model: Any) -> Host:
    """The kind of a model.

    Raises:
        ValueError: it is of no kind that MOSS attaches to.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    for host in VIDEO_LLM_HOSTS:
        if model_type in host.model_types and hasattr(model, host.tower.partition(".")[0]):
            return host
    raise no_host(f"a {type(model).__name__}" + (f" of model_type '{model_type}'" if model_type else ""))


def no_host(given: str) -> ValueError:
    """The error for what is of no kind that MOSS attaches to."""
    names = ", ".join(f"{host.title} ({', '.join(host.model_types)})" for host in VIDEO_LLM_HOSTS)
    return ValueError(
        f"moss_vllm.attach was given {given}; it takes an opened ...ForConditionalGeneration of {names}"
    )


def describe_moss(model: nn.Module) -> str:
    """One line on the MOSS of a model."""
    host, tower = attached(model)
    numbers = sum(parameter.numel() for parameter in tower.moss.parameters())
    frames = host.frames_per_step(stock_model(model).config)
    layers = len(tower.get_submodule(host.blocks))
    return (
        f"{host.title}: MOSS after layer {tower.moss_sizes['after_layer']} of {layers}, "
        f"{numbers / 1e6:.1f} M parameters, one step = {frames} frame{'s' if frames > 1 else ''}"
    )


def complete_sizes(tower: Any, host: Host, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Every size of MOSS: those given, and for the others the paper's.

    Raises:
        ValueError: an unknown name, or a layer that the tower does not have.
    """
    if unknown := sorted(set(sizes) - set(SIZES)):
        raise ValueError(f"unknown sizes {', '.join(unknown)} of MOSS; known are {', '.join(SIZES)}")
    layers = len(tower.get_submodule(host.blocks))
    proportional = proportional_layer(layers)
    settings = {name: getattr(VIDEO_LLM, name) for name in SIZES} | {"after_layer": proportional, **sizes}
    after = settings["after_layer"]
    if type(after) is not int or not 1 <= after <= layers:
        raise ValueError(
            f"after_layer={fit.shorten(after)}, but the vision tower of this {host.title} has layers 1 to "
            f"{layers}; the paper's 6 of 27 is {proportional} here"
        )
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def weight_marks(model: nn.Module, host: Host) -> dict[str, tuple[torch.dtype, str]]:
    """Type and digest of some numbers of each weight that `trained_modules` does not name."""
    apart = re.compile(rf"{re.escape(host.tower)}\.moss\.|{host.projector}\.|.*\.lora_")
    return {
        name.replace(".base_layer.", "."): (weight.dtype, fingerprint({"": weight}))
        for name, weight in model.named_parameters()
        if not apart.match(name) and not weight.is_meta and weight.numel()
    }


def _check(model: Any, host: Host, tower: Any) -> None:
    """ValueError for a model of a kind in `VIDEO_LLM_HOSTS` that MOSS cannot be attached to all the same."""
    if hasattr(tower, "stock_class"):
        raise ValueError(f"this {host.title} has MOSS already; moss_vllm.detach(model) takes it off")
    if type(tower).__name__ != host.tower_class:
        raise ValueError(
            f"the vision tower of this {host.title} is a {type(tower).__name__}; MOSS is tried with a "
            f"{host.tower_class} there"
        )
    if any("forward" in vars(module) for module in (tower, tellers(model, host)[1])):
        raise ValueError(
            "this model is dispatched by accelerate (device_map), which would go round MOSS in silence; "
            "open the model on one device, attach MOSS, then dispatch_model(model, device_map)"
        )
