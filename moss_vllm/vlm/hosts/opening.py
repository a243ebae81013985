"""Hosts opened with MOSS as their config says: what recipes, checkpoints and evaluations open.

The config of a host with MOSS has VideoLLaMA3's `moss_*` fields in its `vision_config`. Where
`scripts/merge.py` writes it, its model_type begins with "moss_": transformers' own class would open the
folder and drop MOSS.
"""

import copy
from collections.abc import Mapping
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from transformers import PretrainedConfig

from moss_vllm.core.presets import VIDEO_LLM
from moss_vllm.vlm import fit
from moss_vllm.vlm.hosts.host import Host
from moss_vllm.vlm.hosts.tower import model_class, tower_class
from moss_vllm.vlm.places import base_weight_files
from moss_vllm.vlm.video_llama3.model import MOSS_FIELDS, MossVideoLlama3VisionConfig, make_moss

ENCODER_LAYERS = 27  # of VideoLLaMA3, after the 6th of which the paper has MOSS
MOSS_PART = ".moss."  # in the names of its weights, after the path of the vision tower


def proportional_layer(layers: int) -> int:
    """The layer after which MOSS stands in a tower with this number of layers: the paper's 6 of 27."""
    return max(1, round(VIDEO_LLM.after_layer / ENCODER_LAYERS * layers))


def add_moss(host: Host, base: PretrainedConfig, **moss: Any) -> PretrainedConfig:
    """The config of a host with MOSS in its vision tower.

    Args:
        host: the kind of model.
        base: its config as released.
        moss: values of `moss_*` fields that differ from the paper's; its layer is the paper's in proportion.

    Raises:
        ValueError: a name is no MOSS setting, or a layer that the tower does not have.
        StrictDataclassError: a value of another type.
    """
    if unknown := set(moss) - set(MOSS_FIELDS):
        raise ValueError(f"unknown MOSS settings {sorted(unknown)}; known are {sorted(MOSS_FIELDS)}")
    layers = host.layers(base)
    checked = MossVideoLlama3VisionConfig(**{"moss_after_layer": proportional_layer(layers), **moss})
    if not 1 <= checked.moss_after_layer <= layers:
        raise ValueError(
            f"moss_after_layer={checked.moss_after_layer}, but the vision tower of this {host.title} has "
            f"layers 1 to {layers}; the paper's 6 of 27 is {proportional_layer(layers)} here"
        )
    config = copy.deepcopy(base)
    for name in MOSS_FIELDS:
        value = getattr(checked, name)
        setattr(config.vision_config, name, list(value) if isinstance(value, tuple) else value)
    return config


class HostModel:
    """A host's own class, whose models have the MOSS that their config describes.

    It is called, and its `from_pretrained` is, like a class of transformers.
    """

    def __init__(self, stock: Any, host: Host) -> None:
        self.stock, self.host = stock, host

    def __call__(self, config: PretrainedConfig) -> Any:
        """A new model."""
        return self.put_moss(self.stock(config))

    def put_moss(self, model: Any) -> Any:
        """The same model with a new MOSS as its config describes it."""
        return put_moss(model, self.host, _sizes(model.config))

    def from_pretrained(
        self, path: str, *, config: PretrainedConfig, revision: str | None, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """A model of weights on disk, and transformers' record of weights missing or left over.

        MOSS is new where the weights have none.
        """
        model, info = self.stock.from_pretrained(path, config=config, revision=revision, **options)
        self.put_moss(model)
        tower = self.host.tower_of(model)
        over = [name for name in info["unexpected_keys"] if MOSS_PART in name]
        missing = set(info["missing_keys"])
        if stored := stored_moss(path, revision):
            wanted = tower.moss.state_dict()
            lost, left = wanted.keys() - stored.keys(), stored.keys() - wanted.keys()
            missing |= {f"{self.host.tower}{MOSS_PART}{name}" for name in lost}
            over = [name for name in over if name.partition(MOSS_PART)[2] in left]
            if not next(iter(wanted.values())).is_meta:  # a model that is opened empty has no contents
                tower.moss.load_state_dict(
                    {name: stored[name] for name in wanted.keys() - lost}, strict=False
                )
        unexpected = {name for name in info["unexpected_keys"] if MOSS_PART not in name}
        return model, {**info, "missing_keys": missing, "unexpected_keys": unexpected | set(over)}


def stored_moss(path: str, revision: str | None) -> dict[str, Tensor]:
    """Weights and statistics of the MOSS in the files of a model, by their names in MOSS."""
    found: dict[str, Tensor] = {}
    for file in base_weight_files(path, revision):
        with safe_open(file, "pt") as opened:
            names = [name for name in opened.keys() if MOSS_PART in name]
            found |= {name.partition(MOSS_PART)[2]: opened.get_tensor(name) for name in names}
    return found


def put_moss(model: Any, host: Host, settings: Mapping[str, Any]) -> Any:
    """The same model, in whose vision tower there is a new MOSS with these settings."""
    tower = host.tower_of(model)
    layers, after = len(tower.get_submodule(host.blocks)), settings["after_layer"]
    if type(after) is not int or not 1 <= after <= layers:
        raise ValueError(
            f"moss_after_layer={fit.shorten(after)}, but the vision tower of this {host.title} has layers 1 "
            f"to {layers}; use another checkpoint"
        )
    if reason := host.refused(model):
        raise ValueError(f"MOSS cannot be attached to this {host.title}: {reason}")
    moss = new_moss(host.width(tower), settings)
    tower.add_module("moss", moss.to(next(tower.parameters()).device).train(tower.training))
    tower.moss_sizes = dict(settings)
    tower.__class__ = tower_class(tower.__class__, host)
    for part in tellers(model, host):
        part.__class__ = model_class(part.__class__, host)
    return model


def tellers(model: Any, host: Host) -> tuple[Any, Any]:
    """The model, and what it has below its head."""
    return model, model.get_submodule(host.tower.partition(".")[0])


def new_moss(width: int, settings: Mapping[str, Any]) -> nn.Module:
    """A new MOSS for a tower of this width; ValueError for settings that none can be made of."""
    named = {f"moss_{name}": value for name, value in settings.items()}
    fit.make_empty(lambda: make_moss(width, named), f"no MOSS can be made of {fit.shorten(dict(settings))}")
    return make_moss(width, named)


def _sizes(config: PretrainedConfig) -> dict[str, Any]:
    return {name.removeprefix("moss_"): getattr(config.vision_config, name) for name in MOSS_FIELDS}
