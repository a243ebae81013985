"""Training a small model for a moment, and changing one file of its checkpoint."""

import json

import torch
from safetensors.torch import load_file, save_file

from moss_vllm.runtime.provenance import RUN_FILE
from moss_vllm.training.optim import parameter_groups
from moss_vllm.vlm.adapter import ADAPTER_CONFIG, ADAPTER_FILE, attach_lora, choose_rates
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
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def change_run(folder, **values):
    run = json.loads((folder / RUN_FILE).read_text())
    (folder / RUN_FILE).write_text(json.dumps({**run, **values}))


def change_adapter(folder, change):
    weights = load_file(folder / ADAPTER_FILE)
    change(weights)
    save_file(weights, folder / ADAPTER_FILE, {"format": "pt"})


def change_settings(folder, **values):
    settings = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps({**settings, **values}))
