"""Training a small model for a moment, changing one file of its checkpoint, and how that is refused."""

import functools
import json
import operator

import pytest
import torch
from safetensors.torch import load_file, save_file

from moss_vllm.training.optim import parameter_groups
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.adapter import ADAPTER_FILE, attach_lora, choose_rates
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.loss import AnswerLoss


def train(tiny_base, moss, batch, **how):
    """Two large steps, after which every trained weight and statistic differs from its start."""
    torch.manual_seed(0)
    opened = load_base(tiny_base, moss=moss, **how)
    model = attach_lora(opened, rank=4, alpha=8, dropout=0.1)
    groups = parameter_groups(model, choose_rates(opened))
    optimizer = torch.optim.AdamW([{**group, "lr": 0.01} for group in groups])
    for _ in range(2):
        AnswerLoss(model.train(), how.get("dtype"))(**batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def edit_json(file, **values):
    """Set values of a json file; a__b is the value b of a."""
    content = json.loads(file.read_text())
    for name, value in values.items():
        *parts, last = name.split("__")
        functools.reduce(operator.getitem, parts, content)[last] = value
    file.write_text(json.dumps(content))


def change_adapter(folder, change):
    weights = load_file(folder / ADAPTER_FILE)
    change(weights)
    save_file(weights, folder / ADAPTER_FILE, {"format": "pt"})


def refused(folder, message, kind=ValueError):
    """Opening a checkpoint or base ends with one short line that has `message` in it."""
    with pytest.raises(kind, match=message) as raised:
        checkpoint.load(folder)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 1500
