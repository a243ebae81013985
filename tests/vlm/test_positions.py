"""Owns: the places of tokens in Qwen2-VL and Qwen2.5-VL; text stands behind all that a video occupies."""

from types import SimpleNamespace

import pytest
import torch

from moss_vllm.vlm.hosts.positions import place_by_time

VIDEO, PAD = 9, 0


def base(rate=2, merge=2):
    vision = SimpleNamespace(spatial_merge_size=merge, tokens_per_second=rate)
    return SimpleNamespace(config=SimpleNamespace(vision_config=vision, video_token_id=VIDEO))


def ids_of(*grids, before=3, after=2):
    rows = [1] * before + sum(([VIDEO] * (t * h * w // 4) + [2] for t, h, w in grids), []) + [3] * after
    return torch.tensor([rows])


# The first two are of a 10 s clip at 2 fps of 224 x 392 pixels and of 30 steps of 16 x 16 patches, where
# transformers 5.23 has 17 and 11, and 4.57 and vLLM have 22 and 62.
@pytest.mark.parametrize(
    ("grid", "seconds", "text_at"),
    [
        ((10, 16, 28), 1.0, 3 + 19),
        ((30, 16, 16), 1.0, 3 + 59),
        ((3, 16, 28), 0.5, 3 + 14),
        ((4, 4, 4), 0.3, 3 + 2),
    ],
)
def test_text_behind_a_video_stands_behind_its_last_place(grid, seconds, text_at):
    inputs = {"input_ids": ids_of(grid), "video_grid_thw": torch.tensor([grid])}
    placed = place_by_time(base(), inputs | {"second_per_grid_ts": torch.tensor([seconds])})["position_ids"]
    t, h, w = grid
    assert placed.shape == (3, 1, inputs["input_ids"].shape[1])
    assert placed[:, 0, :3].tolist() == [[0, 1, 2]] * 3
    assert placed[:, 0, -3:].tolist() == [[text_at, text_at + 1, text_at + 2]] * 3
    video = placed[:, 0, 3:-3].unflatten(1, (t, h // 2, w // 2))
    assert video[0, :, 0, 0].tolist() == [3 + int(step * 2 * seconds) for step in range(t)]
    assert video[1, 0, :, 0].tolist() == list(range(3, 3 + h // 2))
    assert video[2, 0, 0, :].tolist() == list(range(3, 3 + w // 2))
