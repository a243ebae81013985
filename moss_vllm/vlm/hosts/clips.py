"""MOSS on the tokens of several clips."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from moss_vllm.core import MOSS
from moss_vllm.core.recompute import kept_statistics
from moss_vllm.vlm.hosts.host import Size


class VideoMOSS(MOSS):
    """MOSS on the tokens of several clips of any sizes, in one call.

    Processes that shard weights (ZeRO-3) wait for each other at every call of a module with weights, and
    each process has other clips: a call per clip would leave them waiting.
    """

    def forward(self, tokens: Tensor, sizes: Sequence[Size]) -> Tensor:  # type: ignore[override]
        """MOSS on each clip's own grid; images (t = 1) get zeros.

        Shape:
            tokens: (P, C) in raster order, P the sum of t*h*w over `sizes` -> (P, C).
        """
        clips = tokens.split([t * h * w for t, h, w in sizes])
        alike: dict[Size, list[int]] = defaultdict(list)
        for index, size in enumerate(sizes):
            alike[size].append(index)
        features: dict[int, Tensor] = {}
        for size, indices in alike.items():
            if size[0] == 1:
                features |= {index: torch.zeros_like(clips[index]) for index in indices}
                continue
            # One pass for all clips of equal size: one pass per clip was the largest cost of a step.
            maps = super().forward(torch.stack([clips[index].unflatten(0, size) for index in indices]))
            features |= dict(zip(indices, maps.flatten(1, 3), strict=True))
        whole = torch.cat([features[index] for index in range(len(clips))])
        if torch.is_grad_enabled() and all(t == 1 for t, _, _ in sizes):
            # Nothing went through MOSS, but other processes wait to average its gradients with this one's.
            whole = whole + 0.0 * self._pass_over_nothing(tokens)
        return whole

    def _pass_over_nothing(self, tokens: Tensor) -> Tensor:
        """A whole pass, because ZeRO-2 adds gradients up in the order they come; statistics do not change."""
        with kept_statistics([self]):
            return super().forward(0.0 * tokens.mean(0).expand(1, 2, 2, 2, -1)).sum()
