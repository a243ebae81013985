"""Hosts whose tower is told the grid of each clip: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, GLM-4V, VideoLLaMA3.

Their stream is (P, C) in merge-block order: the tokens that a merger makes one of are neighbours.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from moss_vllm.vlm.hosts.host import Call, Host, Size


def grid_of_call(tower: Any, call: Call) -> list[Size]:
    """The sizes that stand in the tower's call."""
    return [(int(t), int(h), int(w)) for t, h, w in call["grid_thw"].tolist()]


def blocks_to_grid(tokens: Tensor, t: int, h: int, w: int, merge: int) -> Tensor:
    """Undo merge-block order, in which the tokens of a merge block are neighbours.

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


def blocks_to_raster(tower: Any, stream: Tensor, sizes: list[Size], call: Call) -> Tensor:
    """Merge-block order -> raster order, clip by clip."""
    clips = stream.split([t * h * w for t, h, w in sizes])
    merges = _merges(tower, sizes, call)
    return torch.cat(
        [blocks_to_grid(c, *s, m).flatten(0, 2) for c, s, m in zip(clips, sizes, merges, strict=True)]
    )


def raster_to_blocks(tower: Any, raster: Tensor, sizes: list[Size], call: Call) -> Tensor:
    """The inverse of `blocks_to_raster`."""
    clips = raster.split([t * h * w for t, h, w in sizes])
    merges = _merges(tower, sizes, call)
    return torch.cat(
        [grid_to_blocks(c.unflatten(0, s), m) for c, s, m in zip(clips, sizes, merges, strict=True)]
    )


def _merges(tower: Any, sizes: list[Size], call: Call) -> list[int]:
    if "merge_sizes" in call:
        return [int(merge) for merge in call["merge_sizes"].tolist()]
    return [tower.config.spatial_merge_size] * len(sizes)


def windows_to_raster(tower: Any, stream: Tensor, sizes: list[Size], call: Call) -> Tensor:
    """Qwen2.5-VL sorts merge blocks by attention window, over all clips of a call."""
    order = _window_order(tower, call)
    blocks = stream.unflatten(0, (len(order), -1))[torch.argsort(order)].flatten(0, 1)
    return blocks_to_raster(tower, blocks, sizes, call)


def raster_to_windows(tower: Any, raster: Tensor, sizes: list[Size], call: Call) -> Tensor:
    """The inverse of `windows_to_raster`."""
    order = _window_order(tower, call)
    blocks = raster_to_blocks(tower, raster, sizes, call)
    return blocks.unflatten(0, (len(order), -1))[order].flatten(0, 1)


def _window_order(tower: Any, call: Call) -> Tensor:
    """The window of each merge block, computed as the tower does; a call may bring it along."""
    if call.get("window_index") is not None:
        return call["window_index"]
    config = tower.config
    return get_vision_window_index(
        call["grid_thw"],
        spatial_merge_size=config.spatial_merge_size,
        window_size=config.window_size,
        patch_size=config.patch_size,
    )[0]


def grid_told(tower: Any, call: Call) -> list[Size]:
    """GLM-4V's tower is told of a video as of single frames: the model tells the video's own grid."""
    return grid_of_call(tower, call if tower.told is None else {"grid_thw": tower.told})


QWEN_ENTRY: dict[str, Any] = {
    "tower": "model.visual",
    "blocks": "blocks",
    "norm": "merger.norm",
    "projector": r"model\.visual\.(merger|deepstack_merger_list\.\d+)",
    "trained_after": ("merger.", "deepstack_merger_list."),
    "width": lambda tower: tower.config.hidden_size,
    "layers": lambda config: int(config.vision_config.depth),
    "frames_per_step": lambda config: config.vision_config.temporal_patch_size,
    "sizes": grid_of_call,
    "to_raster": blocks_to_raster,
    "from_raster": raster_to_blocks,
}
QWEN2_VL = Host(
    **{**QWEN_ENTRY, "norm": "merger.ln_q", "width": lambda tower: tower.config.embed_dim},
    title="Qwen2-VL",
    model_types=("qwen2_vl",),
    tower_class="Qwen2VisionTransformerPretrainedModel",
)
QWEN25_VL = Host(
    **{
        **QWEN_ENTRY,
        "norm": "merger.ln_q",
        "to_raster": windows_to_raster,
        "from_raster": raster_to_windows,
    },
    title="Qwen2.5-VL",
    model_types=("qwen2_5_vl",),
    tower_class="Qwen2_5_VisionTransformerPretrainedModel",
)
QWEN3_VL = Host(
    **QWEN_ENTRY,
    title="Qwen3-VL",
    model_types=("qwen3_vl",),
    tower_class="Qwen3VLVisionModel",
)
GLM4V = Host(
    **{
        **QWEN_ENTRY,
        "norm": "post_layernorm",
        "projector": r"model\.visual\.merger",
        "trained_after": ("merger.", "post_layernorm.", "downsample."),
        "sizes": grid_told,
    },
    title="GLM-4V",
    model_types=("glm4v",),
    tower_class="Glm4vVisionModel",
    tells={"get_video_features": lambda model, call, told: call["video_grid_thw"]},
)
STOCK_VIDEO_LLAMA3 = Host(
    **{
        **QWEN_ENTRY,
        "tower": "model.vision_model",
        "blocks": "encoder.layers",
        # Behind it tokens are reduced by a mean of neighbours: to add before or after makes no difference.
        "norm": "post_layernorm",
        "projector": r"model\.projector",
        "trained_after": ("post_layernorm.",),
        "layers": lambda config: int(config.vision_config.num_hidden_layers),
        "frames_per_step": lambda config: 1,
    },
    title="VideoLLaMA3",
    model_types=("video_llama_3",),
    tower_class="VideoLlama3VisionModel",
)
