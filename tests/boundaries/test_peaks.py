"""Owns: runs of scores become the boundaries that the two evaluations find in them."""

import pytest
from boundary_layouts import golden

from moss_vllm.boundaries.peaks import find_peaks

SEQUENCES = golden("peaks")["sequences"]


@pytest.mark.parametrize("rule", ["official", "efficientgebd"])
@pytest.mark.parametrize("one", SEQUENCES, ids=[one["name"] for one in SEQUENCES])
def test_boundaries_of_each_rule_at_each_threshold(one, rule):
    for threshold, boundaries in one["boundaries"].items():
        assert find_peaks(one["frame_indices"], one["scores"], float(threshold), rule) == boundaries[rule]


def test_what_cannot_be_meant():
    with pytest.raises(
        ValueError, match="the rule of peaks is 'mean'; it must be one of efficientgebd, offi"
    ):
        find_peaks([1], [0.5], 0.3, "mean")
    with pytest.raises(ValueError, match="1 scores for 2 frames; each frame needs one"):
        find_peaks([1, 2], [0.5], 0.3)
