"""VideoLLaMA3 with MOSS between its vision encoder and its projector (paper Sec. 4.5, Fig. 6).

    patches -> SigLIP layers 1..27 (frozen, no gradient kept) -> norm --+--> reduce 2x2 -> projector -> LLM
                      after layer 6 -> grid (t, h, w) -> MOSS ----------^

transformers' own classes do everything else, and `hosts/tower.py` puts MOSS in as it does for other models.
The classes here are for the config, which has MOSS's settings, and for the model's folders: importing this
module registers them with `AutoConfig`, `AutoModel` and `AutoModelForImageTextToText`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    PretrainedConfig,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
    VideoLlama3VisionConfig,
    VideoLlama3VisionModel,
)
from transformers import initialization as init

from moss_vllm.core.presets import VIDEO_LLM
from moss_vllm.vlm.hosts.by_grid import STOCK_VIDEO_LLAMA3
from moss_vllm.vlm.hosts.clips import VideoMOSS
from moss_vllm.vlm.hosts.tower import tower_class


@strict
class MossVideoLlama3VisionConfig(VideoLlama3VisionConfig):
    """SigLIP's config plus MOSS. The defaults are the paper's for VideoLLaMA3-2B (Sec. 4.5)."""

    model_type = "moss_video_llama_3_vision"

    moss_after_layer: int = VIDEO_LLM.after_layer  # counted from 1, as the paper does
    moss_orders: list[int] | tuple[int, ...] = VIDEO_LLM.orders
    moss_window: list[int] | tuple[int, ...] = VIDEO_LLM.window
    moss_d_hidden: int = VIDEO_LLM.d_hidden
    moss_d_similarity: int = VIDEO_LLM.d_similarity
    moss_d_fuse: int = VIDEO_LLM.d_fuse
    moss_input_fc: bool = VIDEO_LLM.input_fc


MOSS_FIELDS = tuple(name for name in MossVideoLlama3VisionConfig.__annotations__ if name.startswith("moss_"))


@strict
class MossVideoLlama3Config(VideoLlama3Config):
    """VideoLLaMA3's config with a vision tower that has MOSS."""

    model_type = "moss_video_llama_3"
    # transformers >= 5.20 reads the first name, 5.17 the second.
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        **getattr(VideoLlama3Config, "sub_configs_defaults", {}),
        "vision_config": MossVideoLlama3VisionConfig,
    }
    sub_configs = {**VideoLlama3Config.sub_configs, "vision_config": MossVideoLlama3VisionConfig}


def make_moss(width: int, settings: Mapping[str, Any]) -> VideoMOSS:
    """The module that `moss_*` settings describe, for an encoder of this width."""
    return build_moss(MossVideoLlama3VisionConfig(hidden_size=width, **settings))


def build_moss(config: MossVideoLlama3VisionConfig) -> VideoMOSS:
    """The module that the `moss_*` fields describe; every other argument stands here, none is a default."""
    length, rows, columns = config.moss_window
    return VideoMOSS(
        config.hidden_size,
        config.hidden_size,
        orders=config.moss_orders,
        window=(length, rows, columns),
        d_hidden=config.moss_d_hidden,
        d_similarity=config.moss_d_similarity,
        d_fuse=config.moss_d_fuse,
        fusion="none",
        second="stss",
        zero_init=True,
        input_fc=config.moss_input_fc,
    )


class MossVideoLlama3VisionModel(tower_class(VideoLlama3VisionModel, STOCK_VIDEO_LLAMA3)):  # type: ignore[misc]
    """SigLIP whose output carries MOSS features of an early layer."""

    config: MossVideoLlama3VisionConfig

    def __init__(self, config: MossVideoLlama3VisionConfig) -> None:
        if not 1 <= config.moss_after_layer <= config.num_hidden_layers:
            raise ValueError(
                f"moss_after_layer={config.moss_after_layer}, but the encoder has layers 1 to "
                f"{config.num_hidden_layers}; the paper taps layer 6"
            )
        super().__init__(config)
        self.moss = build_moss(config)
        self.moss_sizes = {name.removeprefix("moss_"): getattr(config, name) for name in MOSS_FIELDS}
        for linear in self.moss.last_linears():
            linear.starts_at_zero = True  # type: ignore[assignment]
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # from_pretrained initialises missing weights through this method, not through the constructor, and
        # calls it for modules with weights of their own only: hence the mark on each linear.
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and getattr(module, "starts_at_zero", False):
            init.zeros_(module.weight)
            init.zeros_(module.bias)


class MossVideoLlama3ForConditionalGeneration(VideoLlama3ForConditionalGeneration):
    """VideoLLaMA3 with MOSS; loads any native VideoLLaMA3 checkpoint through `moss_config`."""

    config: MossVideoLlama3Config


def moss_config(base: PretrainedConfig, **moss: Any) -> MossVideoLlama3Config:
    """The base checkpoint's config with MOSS in its vision tower.

    Args:
        base: a native VideoLLaMA3 config.
        moss: values of `moss_*` fields of `MossVideoLlama3VisionConfig` that differ from the paper's.

    Raises:
        ValueError: the base is not VideoLLaMA3, or a name is not a MOSS setting.
    """
    if base.model_type != VideoLlama3Config.model_type:
        raise ValueError(
            f"MOSS attaches to model_type '{VideoLlama3Config.model_type}', this checkpoint is "
            f"'{base.model_type}'; give a native VideoLLaMA3 folder or hub id"
        )
    if unknown := set(moss) - set(MOSS_FIELDS):
        raise ValueError(f"unknown MOSS settings {sorted(unknown)}; known are {sorted(MOSS_FIELDS)}")
    settings = base.to_dict()
    vision = {**settings.pop("vision_config"), **moss, "model_type": MossVideoLlama3VisionConfig.model_type}
    for outdated in ("model_type", "architectures", "transformers_version"):
        settings.pop(outdated, None)
    return MossVideoLlama3Config(**settings, vision_config=vision)


AutoConfig.register(MossVideoLlama3VisionConfig.model_type, MossVideoLlama3VisionConfig)
AutoConfig.register(MossVideoLlama3Config.model_type, MossVideoLlama3Config)
AutoModel.register(MossVideoLlama3VisionConfig, MossVideoLlama3VisionModel)
AutoModelForImageTextToText.register(MossVideoLlama3Config, MossVideoLlama3ForConditionalGeneration)
