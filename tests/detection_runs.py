"""Runs of recipes/detection.py on the small THUMOS-14 of `tiny_detector`, with a small detector."""

import json
from contextlib import contextmanager

from detection_layouts import CLASSES, REMOVED, TEST, VALIDATION, annotations
from launching import as_flags
from tiny_detector import write_videos

from moss_vllm.detection.detector import Detector
from moss_vllm.detection.scores import score_detections

DRAWS = {"draws": 20}  # a test of three videos takes less than the 1,000 draws for its intervals
SIZES = {"dim": 16, "heads": 2, "levels": 3}  # AdaTAD's detector has 26 million parameters
SMALL = {"data": "thumos14", "weights": "random", "temporal_layers": 1, "workers": 0, "tracker": "none"}
SMALL |= {"temporal_options": "{window: [3, 3, 3], d_hidden: 8, d_similarity: 4}"}
SMALL |= {"frames": 16, "stride": 2, "size_px": 32, "steps": 2, "log_every": 1}
WITHOUT_MOSS = {"temporal": "none", "temporal_layers": None, "temporal_options": None}


def shrink_detector():
    """Have every detector of this process that names no sizes be a small one, and its scores of few draws."""
    Detector.__init__.__kwdefaults__.update(SIZES)
    score_detections.__kwdefaults__.update(DRAWS)


@contextmanager
def small_detectors():
    """`shrink_detector` within a `with`."""
    changed = (Detector.__init__.__kwdefaults__, score_detections.__kwdefaults__)
    before = [dict(defaults) for defaults in changed]
    shrink_detector()
    try:
        yield
    finally:
        for defaults, earlier in zip(changed, before, strict=True):
            defaults.update(earlier)


def flags(root, encoder, out, **settings):
    """The recipe's words; None leaves a setting out."""
    given = {**SMALL, "root": root, "encoder": encoder, "out": out, **settings}
    return as_flags({name: value for name, value in given.items() if value is not None})


def write_quirks(root):
    """The small THUMOS-14 with what is odd in the real one, in each split. Returns the annotation file."""
    file = write_videos(root)
    content = json.loads(file.read_text())
    for name in (VALIDATION[0], TEST[0]):
        rows = content["database"][name]["annotations"]
        start, end = rows[0]["segment"]
        rows += annotations((start + 0.0005, end, rows[0]["label"]), (4.0, 5.0, "Ambiguous"))
    assert set(REMOVED) < content["database"].keys() and "Ambiguous" not in CLASSES
    file.write_text(json.dumps(content))
    return file
