"""VideoLLaMA3 with MOSS between its vision encoder and its projector (paper Sec. 4.5, Fig. 6).

    patches -> SigLIP layers 1..27 (frozen, no gradient kept) -> reduce 2x2 --+--> projector -> LLM
                      after layer 6 -> grid (t, h, w) -> MOSS -> reduce 2x2 --^

transformers' own classes do everything else: the vision config and the vision model are subclassed, the model
builds its tower from `vision_config`, and every weight of the base keeps its name. Importing this module
registers the classes with `AutoConfig`, `AutoModel` and `AutoModelForImageTextToText`.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
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
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs
from transformers.vision_utils import get_vision_attention_seqlens, get_vision_position_ids

from moss_vllm.core import MOSS
from moss_vllm.core.presets import VIDEO_LLM


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


class VideoMOSS(MOSS):
    """MOSS on the tokens of several videos of any sizes, in one call.

    Processes that shard weights (ZeRO-3) wait for each other at every call of a module with weights, and
    each process has other clips: a call per clip would leave them waiting.
    """

    def forward(  # type: ignore[override]
        self, tokens: Tensor, grid_thw: list[list[int]], merge_sizes: list[int]
    ) -> Tensor:
        """MOSS on each video's own grid, reduced to one vector per merge block; images (t = 1) get zeros.

        Shape:
            tokens: (P, C) -> (sum of t*h*w / merge**2, C).
        """
        clips = tokens.split([t * h * w for t, h, w in grid_thw])
        alike: dict[tuple[int, int, int, int], list[int]] = defaultdict(list)
        for index, ((t, h, w), merge) in enumerate(zip(grid_thw, merge_sizes, strict=True)):
            alike[t, h, w, merge].append(index)
        features: dict[int, Tensor] = {}
        for (t, h, w, merge), indices in alike.items():
            if t == 1:
                features |= {i: clips[i].new_zeros(h * w // merge**2, clips[i].shape[1]) for i in indices}
                continue
            # One pass for all clips of equal size: one pass per clip was the largest cost of a step.
            grid = torch.stack([blocks_to_grid(clips[i], t, h, w, merge) for i in indices])
            maps = super().forward(grid)
            features |= dict(zip(indices, (reduce_blocks(m, merge) for m in maps), strict=True))
        reduced = torch.cat([features[i] for i in range(len(clips))])
        if torch.is_grad_enabled() and all(t == 1 for t, _, _ in grid_thw):
            # Nothing went through MOSS, but other processes wait to average its gradients with this one's.
            reduced = reduced + 0.0 * self._pass_over_nothing(tokens)
        return reduced

    def _pass_over_nothing(self, tokens: Tensor) -> Tensor:
        """A whole pass, because ZeRO-2 adds gradients up in the order they come; statistics do not change."""
        kept = [(module, *named) for module in self.modules() for named in module._buffers.items()]
        for module, name, buffer in kept:
            module._buffers[name] = None if buffer is None else buffer.clone()
        passed = super().forward(0.0 * tokens.mean(0).expand(1, 2, 2, 2, -1)).sum()
        for module, name, buffer in kept:
            module._buffers[name] = buffer
        return passed


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


class MossVideoLlama3VisionModel(VideoLlama3VisionModel):
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

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: Tensor, grid_thw: Tensor, merge_sizes: Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode frames, add MOSS features, reduce each merge block to one token.

        Shape:
            pixel_values: (P, 3 * 14 * 14), patches of all videos in merge-block order.
            grid_thw: (N, 3), frames and patch rows and columns of each of N videos or images.
            merge_sizes: (N,).
            last_hidden_state: (sum of t*h*w / merge**2, C).
        """
        position_ids = get_vision_position_ids(grid_thw, merge_sizes, kwargs=kwargs)
        cu_seqlens, max_seqlen = get_vision_attention_seqlens(grid_thw, self.config, kwargs=kwargs)
        trained = any(p.requires_grad for name, p in self.named_parameters() if not name.startswith("moss."))
        # A frozen encoder runs without a graph, so that none of its activations is kept.
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            hidden = self.embeddings(pixel_values.type(self.dtype))
            position_embeddings = self.rotary_pos_emb(hidden, position_ids)
            for number, layer in enumerate(self.encoder.layers, start=1):
                hidden = layer(
                    hidden,
                    cu_seqlens=cu_seqlens,
                    max_seqlen=max_seqlen,
                    position_embeddings=position_embeddings,
                    **kwargs,
                )
                if number == self.config.moss_after_layer:
                    tapped = hidden
            hidden = self.pixel_unshuffle(self.post_layernorm(hidden), grid_thw, merge_sizes)
        if torch.is_grad_enabled() and self.moss.training:
            tapped.requires_grad_()  # without it ZeRO-3 is never told that MOSS's backward pass is over
        motion = self.moss(tapped, grid_thw.tolist(), merge_sizes.tolist())
        return BaseModelOutputWithPooling(last_hidden_state=hidden + motion.to(hidden.dtype))


class MossVideoLlama3ForConditionalGeneration(VideoLlama3ForConditionalGeneration):
    """VideoLLaMA3 with MOSS; loads any native VideoLLaMA3 checkpoint through `moss_config`."""

    config: MossVideoLlama3Config


def blocks_to_grid(tokens: Tensor, t: int, h: int, w: int, merge: int) -> Tensor:
    """Undo VideoLLaMA3's token order, in which the tokens of a merge block are neighbours.

    Shape:
        (t*h*w, C) -> (t, h, w, C).
    """
    return rearrange(
        tokens, "(t h w m n) c -> t (h m) (w n) c", t=t, h=h // merge, w=w // merge, m=merge, n=merge
    )


def grid_to_blocks(grid: Tensor, merge: int) -> Tensor:
    """The inverse of `blocks_to_grid`.

    Shape:
        (t, h, w, C) -> (t*h*w, C).
    """
    return rearrange(grid, "t (h m) (w n) c -> (t h w m n) c", m=merge, n=merge)


def reduce_blocks(grid: Tensor, merge: int) -> Tensor:
    """One vector per merge block, by the bilinear reduction of the base's `pixel_unshuffle`.

    Shape:
        (t, h, w, C) -> (t * h/merge * w/merge, C).
    """
    if merge == 1:
        return grid.flatten(0, 2)
    size = (grid.shape[1] // merge, grid.shape[2] // merge)
    reduced = F.interpolate(rearrange(grid, "t h w c -> t c h w"), size=size, mode="bilinear")
    return rearrange(reduced, "t c h w -> (t h w) c")


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
