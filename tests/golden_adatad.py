"""The values of tests/golden_detection/, and the names of their weights in this package."""

import json
import re
from pathlib import Path

import torch
from safetensors import safe_open

FOLDER = Path(__file__).parent / "golden_detection"
ADAPTER_NAMES = ((r"down_proj\.", "down."), (r"up_proj\.", "up."), ("dwconv", "time_conv"))
ADAPTER_NAMES += ((r"(^|\.)conv\.", r"\1mix."),)
DETECTOR_NAMES = (
    (r"^projection\.", ""),
    (r"^neck\.fpn_norms\.", "neck."),
    (r"^rpn_head\.(cls|reg)_convs\.", r"head.\1_units."),
    (r"^rpn_head\.(cls|reg)_head\.", r"head.\1_out."),
    (r"^rpn_head\.", "head."),
    (r"^head\.reg_", "head.distance_"),
    (r"\.attn\.(query|key|value)\.", r".attention.\1.linear."),
    (r"\.attn\.(query|key|value)_conv\.conv\.", r".attention.\1.conv."),
    (r"\.attn\.(query|key|value)_norm\.", r".attention.\1.norm."),
    (r"\.attn\.proj\.", ".attention.out_proj."),
    (r"\.ln1\.", ".attention_norm."),
    (r"\.ln2\.", ".mlp_norm."),
    (r"\.drop_path_attn\.", ".attention_scale."),
    (r"\.drop_path_mlp\.", ".mlp_scale."),
    (r"\.mlp\.3\.", ".mlp.2."),
)


def read_golden(name):
    """Tensors and settings of a file."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        settings = {key: json.loads(text) for key, text in file.metadata().items() if key != "source"}
        return {key: file.get_tensor(key) for key in file.keys()}, settings


def behind(prefix, golden):
    """The tensors whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}


def renamed(name, patterns):
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name


def detector_weights(golden):
    """The state dict of `Detector`: scales are vectors here, and those of the levels one tensor."""
    state = {renamed(name, DETECTOR_NAMES): value for name, value in behind("weights.", golden).items()}
    levels = [name for name in sorted(state) if re.fullmatch(r"head\.scale\.\d\.scale", name)]
    state["head.level_scales"] = torch.stack([state.pop(name) for name in levels])
    return {
        name: value.flatten() if name.endswith("_scale.scale") else value for name, value in state.items()
    }


def assert_near(actual, expected, tolerance=1e-4):
    """Equal to `tolerance` of the largest value, or of 1 if that is larger."""
    assert actual.shape == expected.shape
    error = (actual.detach() - expected).abs().max()
    assert error <= tolerance * max(1.0, float(expected.abs().max()))
