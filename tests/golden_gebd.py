"""The values of tests/golden_boundaries/, and the names of their weights in this package."""

import json
import re
from pathlib import Path

import numpy as np
import torch
from golden_adatad import behind
from safetensors import safe_open

from moss_vllm.boundaries.targets import gaussian_labels

FOLDER = Path(__file__).parent / "golden_boundaries"
NAMES = (
    (r"^backbone\.", "encoder.model."),
    (r"^(project|temporal_conv|map_encoder|classifier)\.", r"head.\1."),
    (r"\.block([1-4])\.", lambda found: f".blocks.{int(found[1]) - 1}."),
    (r"(blocks\.\d\.)(conv|norm)([12])\.", lambda found: f"{found[1]}{ORDER[found[3]]}.{found[2]}."),
)
ORDER = {"1": "first", "2": "second"}


def read_golden(name):
    """Tensors and settings of a file."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        settings = {key: json.loads(text) for key, text in file.metadata().items() if key != "source"}
        return {key: file.get_tensor(key) for key in file.keys()}, settings


def as_here(tensors):
    """The tensors with the names of `GEBD`, in which two convolutions of width 1 are linear layers."""
    renamed = {}
    for name, value in tensors.items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        linear = name in ("head.project.weight", "head.classifier.out.weight")
        renamed[name] = value.squeeze(-1) if linear else value
    return renamed


def soften(hard):
    """Gaussian targets (B, T) of hard ones."""
    return torch.from_numpy(np.stack([gaussian_labels(row) for row in hard.numpy()]))


def load_head(head, weights):
    """Load all weights of a `BoundaryHead` but its projection."""
    renamed = {name.removeprefix("head."): value for name, value in as_here(weights).items()}
    head.load_state_dict({**head.state_dict(), **renamed})


def load(model, weights):
    """Load all weights but BatchNorm's counters."""
    report = model.load_state_dict(as_here(weights), strict=False)
    assert not report.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in report.missing_keys)


def drawn_weights():
    """The weights at the true sizes, which are drawn from a seed; those that are stored come on top."""
    golden, settings = read_golden("whole_model_true_size")
    plan = json.loads((FOLDER / "true_size_weights.json").read_text())
    random, weights = np.random.RandomState(plan["seed"]), {}
    for entry in plan["entries"]:
        low, high = entry["low"], entry["high"]
        values = low + (high - low) * random.random_sample(entry["shape"])
        weights[entry["name"]] = torch.from_numpy(np.asarray(values, np.float32))
    weights |= behind("weights.", golden)
    for name, total in settings["weight_sums"].items():
        assert abs(float(weights[name].double().sum()) - total) < 1e-4
    return weights
