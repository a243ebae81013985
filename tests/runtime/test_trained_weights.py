"""Owns: two sets of weights are the same only bit for bit, and files that cannot be read are named."""

from pathlib import Path

import pytest
import torch

from moss_vllm.runtime.trained_weights import (
    differing,
    read_trained,
    refuse_other_bits,
    refuse_unfit,
    step_name,
    write_trained,
)


def test_names_that_one_lacks_or_whose_numbers_or_types_differ_are_told():
    one = {"a": torch.ones(2), "b": torch.zeros(3), "c": torch.ones(1), "d": torch.ones(1)}
    assert differing(one, {name: value.clone() for name, value in one.items()}) == []
    other = {"a": torch.tensor([1.0, 1.0 + 1e-7]), "b": torch.zeros(3), "d": torch.ones(1).half()}
    assert differing(one, other) == differing(other, one) == ["a", "c", "d"]


def test_what_is_written_is_read_and_other_bits_are_refused(tmp_path):
    file, state = tmp_path / "a.safetensors", {"w": torch.randn(3, 4).T, "n": torch.tensor(3)}
    write_trained(file, state)
    assert differing(read_trained(file), state) == []
    refuse_other_bits(file, state)
    refuse_unfit(file, read_trained(file), state, "detector")
    with pytest.raises(RuntimeError, match=r"a\.safetensors differs from the weights in memory in n; do not"):
        refuse_other_bits(file, {**state, "n": torch.tensor(4)})
    with pytest.raises(ValueError, match=r"1 left over \(n\); use a checkpoint of this detector, whole"):
        refuse_unfit(file, read_trained(file), {"w": state["w"]}, "detector")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"a\.safetensors: cannot be read .*; use another checkpoint"):
        read_trained(file)


def test_a_checkpoint_is_named_by_its_step_or_its_run():
    assert step_name(Path("runs/a/step-000004")) == "step-000004"
    assert step_name(Path("runs/a/best")) == "a"
