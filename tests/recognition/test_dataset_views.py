"""Owns: each dataset's views are those of Table 7, or of the authors' configuration files."""

from operator import attrgetter

import pytest
from drawing import RAND

from moss_vllm.recognition.dataset_views import DATASET_VIEWS, find_views


def test_the_papers_views_are_those_of_table_7():
    paper = {data: sources["paper"] for data, sources in DATASET_VIEWS.items()}
    fields = attrgetter("frames", "sampling", "stride", "randaugment", "flip", "repeats", "grayscale")
    rows = {data: (*fields(s), s.crops * s.clips) for data, s in paper.items()}
    ssv = (8, "uniform", 8, RAND, 0.5, 2, 0.0, 6)
    fine = (32, "uniform", 8, None, 0.5, 1, 0.0, 6)
    assert rows == {
        "ssv1": ssv,
        "ssv2": ssv,
        "k400": (16, "dense", 8, None, 0.5, 2, 0.2, 12),
        "diving48": fine,
        "gym99": fine,
        "gym288": fine,
        "list": (8, "uniform", 8, None, 0.5, 1, 0.0, 6),
        "mini": (8, "uniform", 8, None, 0.0, 1, 0.0, 1),
    }
    scales = {data: (s.train_scale, s.test_scale, s.size_px) for data, s in paper.items()}
    assert scales["ssv2"] == ((256, 320), (256, 320), 224)
    assert scales["k400"] == scales["diving48"] == (256, 224, 224) and scales["gym99"] == (256, 256, 224)


def test_the_authors_views_differ_where_their_code_does():
    differing = {
        data: {
            name: getattr(both["authors"], name)
            for name in vars(both["paper"])
            if getattr(both["authors"], name) != getattr(both["paper"], name)
        }
        for data, both in DATASET_VIEWS.items()
    }
    assert differing == {
        "ssv1": {},
        "ssv2": {},
        "list": {},
        "mini": {},
        "k400": {"sampling": "uniform-k400", "repeats": 1},
        **{data: {"grayscale": 0.2} for data in ("diving48", "gym99", "gym288")},
    }


def test_kinetics_views_depend_on_the_variant_and_another_source_is_refused():
    paper = {variant: find_views("k400", "paper", variant).frames for variant in "sbml"}
    authors = {variant: find_views("k400", "authors", variant).repeats for variant in "sbml"}
    assert paper == {"s": 32, "b": 32, "m": 16, "l": 16} and authors == {"s": 1, "b": 1, "m": 2, "l": 2}
    with pytest.raises(ValueError, match="protocol is 'mine'; it must be one of paper, authors"):
        find_views("ssv2", "mine", "s")
