"""The views of each dataset.

`DATASET_VIEWS[dataset]["paper"]` is Table 7; "authors" is what the authors' configuration files say where the
two differ (Kinetics: sampling and repeats; grey on all but Something-Something). `find_views` adds what
depends on the variant.
"""

import dataclasses
from typing import Any

from moss_vllm.recognition.views import ViewSettings

_SSV = ViewSettings(
    train_scale=(256, 320), test_scale=(256, 320), randaugment="rand-m7-n4-mstd0.5-inc1", repeats=2
)
# At 32 frames Table 7's stride of 8 spans 256 frames of the video. The authors' dense branch always spans
# 128, which is a stride of 4 at 32 frames.
_K400 = ViewSettings(frames=16, sampling="dense", clips=4, grayscale=0.2, repeats=2)
_DIVING48 = ViewSettings(frames=32)
_FINEGYM = ViewSettings(frames=32, test_scale=256)
_PAPER = {
    "ssv1": _SSV,
    "ssv2": _SSV,
    "k400": _K400,
    "diving48": _DIVING48,
    "gym99": _FINEGYM,
    "gym288": _FINEGYM,
    "list": ViewSettings(),  # a user's videos: no RandAugment and no grey, as colour may tell classes apart
    # The miniature's classes are directions and speeds: the whole picture, neither cut nor mirrored.
    "mini": ViewSettings(size_px=84, train_scale=84, test_scale=84, clips=1, crops=1, min_area=1.0, flip=0.0),
}
_AUTHORS = {
    "k400": dataclasses.replace(_K400, sampling="uniform-k400", repeats=1),
    "diving48": dataclasses.replace(_DIVING48, grayscale=0.2),
    "gym99": dataclasses.replace(_FINEGYM, grayscale=0.2),
    "gym288": dataclasses.replace(_FINEGYM, grayscale=0.2),
}
DATASET_VIEWS: dict[str, dict[str, ViewSettings]] = {
    dataset: {"paper": settings, "authors": _AUTHORS.get(dataset, settings)}
    for dataset, settings in _PAPER.items()
}
# Kinetics-400: Table 2 has 32 frames for B and 16 for L, the authors' configuration files have 16 for both
# and 2 repeats for L. S and M, which the paper does not have there, follow the variant with the same encoder.
_BY_VARIANT: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("k400", "paper"): {"s": {"frames": 32}, "b": {"frames": 32}},
    ("k400", "authors"): {"m": {"repeats": 2}, "l": {"repeats": 2}},
}


def find_views(data: str, source: str, variant: str) -> ViewSettings:
    """The views of a dataset for a variant of the ladder.

    Args:
        source: "paper" or "authors"; the recipe's setting is called `protocol`.

    Raises:
        ValueError: an unknown source.
    """
    if source not in DATASET_VIEWS[data]:
        raise ValueError(f"protocol is {source!r}; it must be one of {', '.join(DATASET_VIEWS[data])}")
    changes = _BY_VARIANT.get((data, source), {}).get(variant, {})
    return dataclasses.replace(DATASET_VIEWS[data][source], **changes)
