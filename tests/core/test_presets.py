"""Owns: presets have the paper's sizes and parameters to a thousand; every temporal module builds by name."""

import dataclasses

import pytest
import timm
import torch

from moss_vllm.core.ladder import Ladder
from moss_vllm.core.presets import (
    LADDERS,
    MOSS_B,
    MOSS_L,
    MOSS_M,
    MOSS_S,
    TEMPORAL_NAMES,
    VIDEO_LLM,
    build_ladder,
    build_temporal,
)


def millions(module):
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 3)


@pytest.mark.parametrize(
    "preset, options, expected",
    [
        (MOSS_S, {"temporal": "none"}, 4.530),
        (MOSS_S, {"temporal": "stss1"}, 5.103),
        (MOSS_S, {}, 5.601),
        (MOSS_S, {"orders": (1, 2, 3)}, 6.099),
        (MOSS_S, {"orders": (1, 2, 3, 4)}, 6.597),
        (MOSS_S, {"temporal_layers": (4, 6)}, 6.672),
        (MOSS_S, {"window": ((3, 9, 9), (5, 9, 9))}, 5.454),
        (MOSS_S, {"window": ((5, 9, 9), (7, 9, 9))}, 5.749),
        (MOSS_B, {"temporal": "none"}, 21.113),
        (MOSS_B, {}, 22.233),
        (MOSS_M, {"temporal": "none"}, 21.948),
        (MOSS_M, {}, 24.427),
        (MOSS_L, {"temporal": "none"}, 79.718),
        (MOSS_L, {}, 82.279),
    ],
)
def test_trainable_parameters_are_the_papers(preset, options, expected):
    with torch.device("meta"):
        assert millions(build_ladder(preset, classes=174, **options)) == expected


@pytest.mark.parametrize("name", LADDERS)
def test_presets_fit_their_encoder_and_their_paper_row(name):
    preset = LADDERS[name]
    with torch.device("meta"):
        encoder = timm.create_model(preset.backbone, num_classes=0)
        ladder = build_ladder(preset, classes=174)
    assert encoder.embed_dim == preset.d_in and encoder.num_prefix_tokens == 1
    assert encoder.patch_embed.patch_size == (preset.patch_size,) * 2
    assert encoder.patch_embed.grid_size == ladder.grid
    assert preset.layers[-1] == len(encoder.blocks)
    assert preset.d_out == 64 * preset.heads
    assert set(preset.moss_layers) <= set(preset.layers)
    assert round(millions(ladder)) == preset.paper.trainable_m


def test_the_encoder_is_clip_with_its_own_activation():
    assert all("quickgelu" in preset.backbone for preset in LADDERS.values())


@pytest.mark.parametrize("name", TEMPORAL_NAMES)
@pytest.mark.parametrize("zero_init", [False, True])
def test_temporal_modules_build_by_name(name, zero_init):
    if name == "none":
        assert build_temporal(name, 12, 6) is None
        return
    module = build_temporal(name, 12, 6, zero_init=zero_init)
    output = module.eval()(torch.randn(1, 3, 4, 5, 12))
    assert output.shape == (1, 3, 4, 5, 6)
    assert output.eq(0).all() == zero_init


def test_options_that_a_module_does_not_have_are_errors():
    with pytest.raises(ValueError, match="'none' has no options, got window, zero_init; leave them out"):
        build_temporal("none", 12, 6, window=(3, 3, 3), zero_init=True)
    with torch.device("meta"), pytest.raises(ValueError, match="'none' has no options, got d_hidden"):
        build_ladder(MOSS_S, classes=2, temporal="none", d_hidden=8)
    with pytest.raises(ValueError, match=r"'stss1' is MOSS of order 1, got orders=\(1, 2\); choose 'moss'"):
        build_temporal("stss1", 12, 6, orders=(1, 2))


@pytest.mark.parametrize("name", TEMPORAL_NAMES)
def test_a_small_ladder_scores_with_every_module(name):
    small = dataclasses.replace(
        MOSS_S, d_in=12, patch_size=4, layers=(1, 2), d_out=8, heads=2, moss_layers=(2,), d_hidden=8
    )
    ladder = build_ladder(small, classes=3, temporal=name, image_size=12).eval()
    assert isinstance(ladder, Ladder) and ladder.layers == (1, 2) and ladder.grid == (3, 3)
    scores = ladder(torch.randn(2, 1, 2, 10, 12), torch.randn(1, 2, 3, 12, 12))
    assert scores.shape == (1, 3) and torch.isfinite(scores).all()
    assert hasattr(ladder, "moss") == (name != "none")


def test_options_replace_the_presets_sizes():
    with torch.device("meta"):
        ladder = build_ladder(MOSS_L, classes=174, orders=(1,), d_similarity=64)
    assert ladder.moss.orders == (1,)
    assert ladder.moss.order1.uv_proj.linear.out_features == 64
    assert ladder.moss.order1.in_proj.out_features == MOSS_L.d_hidden


def test_video_llm_preset_is_what_the_video_llm_builds():
    from moss_vllm.vlm.video_llama3.model import MossVideoLlama3VisionConfig

    config = MossVideoLlama3VisionConfig()
    settings = {name.removeprefix("moss_"): value for name, value in vars(config).items() if "moss_" in name}
    preset = dataclasses.asdict(VIDEO_LLM)
    assert settings == {name: preset[name] for name in settings}
