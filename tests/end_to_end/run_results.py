"""What two runs have on disk, compared."""

import json

import torch
from safetensors.torch import load_file


def read_json(path):
    return json.loads(path.read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def differing(one, other, files):
    """Names of tensors that differ between two checkpoints, by file."""
    found = []
    for file in files:
        first, second = load_file(one / file), load_file(other / file)
        assert first.keys() == second.keys()
        found += [f"{file} {name}" for name in first if not torch.equal(first[name], second[name])]
    return found
