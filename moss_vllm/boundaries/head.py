"""BasicGEBD's head: features of a clip's frames to a logit for each, from how they resemble."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from moss_vllm.boundaries.map_encoder import MapEncoder


class BoundaryHead(nn.Module):
    """Each frame's window is compared frame by frame, the map encoded, and the clip's sequence classified.

    It computes in float32 under autocast: the maps lie near 1, and BatchNorm's statistics are theirs.
    EfficientGEBD's class holds 1.19 M parameters more that BasicGEBD-L4 never uses; they are left out.

    Shape:
        (B, T, d_in) -> (B, T) logits, for any T.

    Args:
        d_in: channels of the backbone.
        d_frame: channels in which frames are compared.
        map_widths: see `MapEncoder`; the last is the width of the classifier.
        reach: frames of a window before its middle, and after it.

    Reference: BasicGEBD (Zheng et al., 2024), stage 4 alone ("L4").
    """

    def __init__(
        self,
        d_in: int,
        *,
        d_frame: int = 512,
        map_widths: Sequence[int] = (64, 64, 128, 256, 512),
        reach: int = 8,
    ) -> None:
        super().__init__()
        self.reach = reach
        self.project = nn.Linear(d_in, d_frame)
        self.temporal_conv = nn.Conv1d(d_frame, d_frame, 3, padding=1, groups=d_frame)
        self.map_encoder = MapEncoder(map_widths)
        self.classifier = BoundaryClassifier(map_widths[-1])

    def forward(self, features: Tensor) -> Tensor:
        """Logits of a boundary at each frame."""
        with torch.autocast(features.device.type, enabled=False):
            maps = self.compare(F.relu(self.project(features.float())))
            encoded = self.map_encoder(rearrange(maps, "b t i j -> (b t) 1 i j"))
            logits: Tensor = self.classifier(rearrange(encoded, "(b t) c -> b t c", b=len(maps)))
        return logits

    def compare(self, frames: Tensor) -> Tensor:
        """Cosine similarity of all pairs of frames in each frame's window; a clip's end frames are repeated.

        Shape:
            (B, T, d_frame) -> (B, T, I, J), I = J = 2 * reach + 1.
        """
        padded = F.pad(rearrange(frames, "b t c -> b c t"), (self.reach, self.reach), mode="replicate")
        windows = rearrange(padded.unfold(2, 2 * self.reach + 1, 1), "b c t i -> (b t) c i")
        mixed = 0.5 * (F.relu(self.temporal_conv(windows)) + windows)
        unit = F.normalize(mixed, dim=1, eps=1e-8)
        return rearrange(unit.mT @ unit, "(b t) i j -> b t i j", b=len(frames))


class BoundaryClassifier(nn.Module):
    """Two convolutions over time, each before a PReLU, and a logit for each frame.

    Shape:
        (B, T, dim) -> (B, T).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(dim, dim, 3, padding=1)
        self.prelu1 = nn.PReLU()
        self.conv2 = nn.Conv1d(dim, dim, 3, padding=1)
        self.prelu2 = nn.PReLU()
        self.out = nn.Linear(dim, 1)

    def forward(self, sequence: Tensor) -> Tensor:
        """Classify each frame of the sequence."""
        x = rearrange(sequence, "b t c -> b c t")
        x = self.prelu2(self.conv2(self.prelu1(self.conv1(x))))
        return rearrange(self.out(rearrange(x, "b c t -> b t c")), "b t 1 -> b t")
