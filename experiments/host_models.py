"""The tiny models of `tiny_hosts.py` with MOSS and LoRA, ready for checks."""

import contextlib
import copy
import functools
import io
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tiny_hosts import SMALL_MOSS, TINY_HOSTS, Size, TinyHost
from torch import Tensor, nn

import moss_vllm
from moss_vllm.runtime.quiet import quiet

LORA_TARGETS = r".*\.(language_model|text_model)\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"


@functools.cache
def _built(name: str) -> Any:
    return next(tiny for tiny in TINY_HOSTS if tiny.name == name).build()


def fresh(tiny: TinyHost) -> Any:
    """A stock model of its own, in eval mode."""
    return copy.deepcopy(_built(tiny.name))


def attach(model: Any, **sizes: Any) -> Any:
    """The model with a small MOSS, the same in every call, without the line that is said."""
    torch.manual_seed(1)
    with contextlib.redirect_stdout(io.StringIO()):
        return moss_vllm.attach(model, **{**SMALL_MOSS, **sizes})


def wake(model: Any, scale: float = 0.3) -> Any:
    """Give MOSS something to say, its BatchNorms statistics of their own, and LoRA a second factor."""
    torch.manual_seed(2)
    for name, weight in model.named_parameters():
        if ".original_module." not in name and (".moss." in name and weight.dim() > 1 or ".lora_B." in name):
            nn.init.normal_(weight, std=scale)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def inputs_of(tiny: TinyHost, *sizes: Size) -> dict[str, Any]:
    """Inputs with clips of these sizes, the same in every call; without any, the first of `tiny.sizes`."""
    return tiny.make_inputs(sizes or tiny.sizes[:1], torch.Generator().manual_seed(1))


def stock_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs that a model without MOSS takes too."""
    return {name: value for name, value in inputs.items() if name != "frames_per_clip"}


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Any]) -> Tensor:
    """What the model says behind the last word of each row."""
    return model(**inputs).logits[:, -1]


def with_lora(model: Any) -> Any:
    """LoRA on the language model; MOSS and projector whole."""
    config = LoraConfig(
        r=2, lora_alpha=2, target_modules=LORA_TARGETS, modules_to_save=moss_vllm.trained_modules(model)
    )
    with quiet():  # peft 0.21 uses a deprecated name of transformers 5.23
        return get_peft_model(model, config)


def loss_of(model: Any, inputs: dict[str, Any]) -> Tensor:
    """A loss on every word."""
    return model(**inputs).logits.float().log_softmax(-1)[..., 7].mean()


if __name__ == "__main__":
    raise SystemExit("experiments/host_models.py is a part of other commands, not a command")
