"""Where each token stands for the rotary embedding of a host's language model, along time, height and width.

Computed here and passed to the model in training, in `generate` and in the evaluation, for transformers (5.3 to
5.24 at least) begins the text behind a video of Qwen2-VL and Qwen2.5-VL at the video's start + max(h, w) / 2,
even where the video's own time positions reach further. transformers 4.57, with which these models were
published, and vLLM begin it at the largest position + 1; so does `place_by_time`.
"""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

TEXT, VIDEO = 0, 2  # of transformers' mm_token_type_ids


def place_in_order(base: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs as they are: tokens stand one after the other, as the language model assumes by itself."""
    return dict(inputs)


def place_by_model(
    base: Any, inputs: Mapping[str, Tensor], *, frame_token: str = "video_token_id"
) -> dict[str, Tensor]:
    """The inputs with `position_ids` (3, B, S) by the model's own `get_rope_index`.

    Args:
        base: the ...ForConditionalGeneration.
        inputs: of its forward.
        frame_token: name in the config of the token that stands for a video's frames.
    """
    ids = inputs["input_ids"]
    positions, _ = base.model.get_rope_index(
        ids,
        mm_token_type_ids=(ids == getattr(base.config, frame_token)) * VIDEO,
        video_grid_thw=inputs.get("video_grid_thw"),
        attention_mask=inputs.get("attention_mask"),
    )
    return {**inputs, "position_ids": positions}


def place_by_time(base: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs with `position_ids` (3, B, S) of Qwen2-VL and Qwen2.5-VL; arguments as `place_by_model`.

    Text counts on from the largest position so far. A video's tokens count rows and columns from there, and
    steps of time: one a step in Qwen2-VL, `tokens_per_second` a second in Qwen2.5-VL, rounded down.
    """
    ids, vision = inputs["input_ids"], base.config.vision_config
    merge, rate = vision.spatial_merge_size, getattr(vision, "tokens_per_second", None)
    mask = inputs.get("attention_mask")
    there = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    grids = iter(inputs["video_grid_thw"].tolist() if "video_grid_thw" in inputs else [])
    seconds = iter(torch.as_tensor(inputs.get("second_per_grid_ts", [])).tolist())
    positions = torch.zeros(3, *ids.shape, dtype=torch.long)
    for row, kept in zip(range(len(ids)), there.cpu(), strict=True):
        parts, start = list[Tensor](), 0
        is_video = (ids[row].cpu()[kept] == base.config.video_token_id).tolist()
        for video, run in groupby(is_video):
            count = len(list(run))
            if not video:
                parts.append((start + torch.arange(count)).expand(3, -1))
            while video and count > 0:  # videos may stand side by side
                t, h, w = next(grids)
                interval = 1.0 if rate is None else rate * next(seconds, 1.0)
                axes = ((torch.arange(t) * interval).long(), torch.arange(h // merge), torch.arange(w // merge))
                parts.append(start + torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1))
                count -= parts[-1].shape[1]
                start = int(parts[-1].max()) + 1 if count else start
            start = int(parts[-1].max()) + 1
        positions[:, row, kept] = torch.cat(parts, 1)
    return {**inputs, "position_ids": positions.to(ids.device)}
