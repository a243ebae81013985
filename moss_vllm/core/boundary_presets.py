"""The network of event boundaries at its sizes, and the rows of the paper's Table 9."""

from dataclasses import dataclass
from typing import NamedTuple

from moss_vllm.core.stss import Window


class BoundaryRow(NamedTuple):
    """F1 in percent at relative distance 0.05, and averaged over 0.05, 0.1, ... 0.5, on both data sets."""

    kinetics: float
    kinetics_average: float
    tapos: float
    tapos_average: float


PAPER_TABLE_9 = {
    "Temporal Perceiver": BoundaryRow(74.8, 86.0, 55.2, 73.2),
    "DDM-Net": BoundaryRow(76.4, 87.3, 60.4, 72.8),
    "SC-Transformer": BoundaryRow(77.7, 88.1, 61.8, 74.2),
    "BasicGEBD, published": BoundaryRow(76.8, 86.6, 60.0, 71.0),
    "EfficientGEBD": BoundaryRow(78.3, 88.3, 63.1, 74.8),
    "BasicGEBD, rerun": BoundaryRow(76.9, 86.4, 60.1, 71.2),  # by MOSS's authors
    "BasicGEBD + MOSS": BoundaryRow(79.4, 89.0, 68.5, 76.6),
}


@dataclass(frozen=True)
class BoundaryPreset:
    """BasicGEBD on a ResNet, and the MOSS after one of its stages; output as wide as the stage.

    Args:
        weights: of the ResNet, unless others are given; see `moss_vllm.encoders.resnet.open_resnet`.
        stem: channels of the ResNet's first convolution.
        planes: channels inside the blocks of each stage.
        blocks: of each stage.
        after_stage: the stage that MOSS reads, counted from 1.
        d_frame: channels of a frame in the similarity of frames.
        map_widths: channels of the map encoder: its first convolution, then its four blocks.
        window: (L, U, V).
        d_hidden: channels in which MOSS measures similarity.
        d_similarity: D.
        rerun: the paper's own run without MOSS; None for sizes that it does not have.
        paper: with MOSS.

    Reference: Sec. C.2, which prints the place of MOSS and none of its sizes: window, `d_hidden` and D of the
    preset are those of the paper's classifiers on ViT-B (Table 7).
    """

    weights: str
    stem: int
    planes: tuple[int, ...]
    blocks: tuple[int, ...]
    after_stage: int
    d_frame: int
    map_widths: tuple[int, ...]
    window: Window
    d_hidden: int
    d_similarity: int
    rerun: BoundaryRow | None
    paper: BoundaryRow | None


BOUNDARY_R50 = BoundaryPreset(
    weights="pretrained",
    stem=64,
    planes=(64, 128, 256, 512),
    blocks=(3, 4, 6, 3),
    after_stage=2,
    d_frame=512,
    map_widths=(64, 64, 128, 256, 512),
    window=(5, 9, 9),
    d_hidden=128,
    d_similarity=64,
    rerun=PAPER_TABLE_9["BasicGEBD, rerun"],
    paper=PAPER_TABLE_9["BasicGEBD + MOSS"],
)
# The miniature, for frames of 64 pixels and less: a grid of 8 x 8 after its second stage.
BOUNDARY_MINI = BoundaryPreset(
    weights="random",
    stem=16,
    planes=(8, 16, 16, 16),
    blocks=(1, 1, 1, 1),
    after_stage=2,
    d_frame=32,
    map_widths=(8, 8, 16, 16, 32),
    window=(5, 5, 5),
    d_hidden=32,
    d_similarity=16,
    rerun=None,
    paper=None,
)
BOUNDARIES = {"r50": BOUNDARY_R50, "mini": BOUNDARY_MINI}
