"""AdaTAD at its sizes, each beside its row of the paper's Table 8."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moss_vllm.core.stss import Window


@dataclass(frozen=True)
class DetectionPreset:
    """AdaTAD on a VideoMAE, and the MOSS after one of its layers; output as wide as the encoder.

    mAP is in percent at tIoU 0.3, 0.4, 0.5, 0.6, 0.7, and their average last.

    Args:
        encoder: a short name of `moss_vllm.encoders.videomae`.
        d_in: channels of the encoder.
        after_layer: the encoder layer that MOSS reads, counted from 1; the layer's adapter follows MOSS.
        window: (L, U, V); the paper prints no sizes for detection, these are those of its classifiers.
        d_hidden: channels in which similarity is measured.
        d_similarity: D.
        adapter_lr: learning rate of the adapters in AdaTAD's code; the paper prints none for MOSS.
        published: mAP that AdaTAD's authors published for this encoder: for B and L as Table 8 has it.
        rerun, paper: mAP of the paper's own runs, "AdaTAD*" and with MOSS; None for what is not printed.
        drop_path: of the encoder in training, AdaTAD's.
        detector: arguments of the detector in which it differs from AdaTAD's.

    Reference: Table 8; Sec. C.1. Frames are 224 x 224 there, 160 x 160 in AdaTAD's code.
    """

    encoder: str
    d_in: int
    after_layer: int
    window: Window
    d_hidden: int
    d_similarity: int
    adapter_lr: float
    published: tuple[float, ...] | None = None
    rerun: tuple[float, ...] | None = None
    paper: tuple[float, ...] | None = None
    drop_path: float = 0.1
    detector: Mapping[str, Any] = field(default_factory=dict)


DETECTION_S = DetectionPreset(
    encoder="videomae_s",
    d_in=384,
    after_layer=6,
    window=(5, 9, 9),
    d_hidden=128,
    d_similarity=64,
    adapter_lr=2e-4,
    published=(83.90, 79.01, 72.38, 61.57, 48.27, 69.03),
)
DETECTION_B = DetectionPreset(
    encoder="videomae_b",
    d_in=768,
    after_layer=6,
    window=(5, 9, 9),
    d_hidden=128,
    d_similarity=64,
    adapter_lr=1e-4,
    published=(87.0, 82.4, 75.3, 63.8, 49.2, 71.5),
    rerun=(85.7, 82.3, 75.3, 63.4, 50.1, 71.4),
    paper=(87.3, 82.9, 75.7, 64.8, 50.3, 72.2),
)
DETECTION_L = DetectionPreset(
    encoder="videomae_l",
    d_in=1024,
    after_layer=6,
    window=(5, 9, 9),
    d_hidden=256,
    d_similarity=96,
    adapter_lr=1e-4,
    published=(87.7, 84.1, 76.7, 66.4, 52.4, 73.5),
    rerun=(87.5, 83.7, 77.6, 66.5, 51.9, 73.5),
    paper=(88.1, 84.5, 77.6, 67.7, 52.8, 74.1),
)

# The miniature, which trains on `data/world/untrimmed.py` in minutes. It cannot spare one of its two layers:
# with AdaTAD's drop-path MOSS ended at an average mAP of 56.9, without at 71.5 (one seed).
DETECTION_MINI = DetectionPreset(
    encoder="videomae_mini",
    d_in=64,
    after_layer=1,
    window=(5, 5, 5),
    d_hidden=32,
    d_similarity=16,
    adapter_lr=4e-3,
    drop_path=0.0,
    detector={"dim": 64, "levels": 4},
)
DETECTORS = {"s": DETECTION_S, "b": DETECTION_B, "l": DETECTION_L, "mini": DETECTION_MINI}
