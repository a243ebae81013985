"""AdaTAD: a frozen video encoder with adapters, MOSS after one layer, and the detector on top."""

import re
from collections.abc import Callable, Mapping
from typing import ClassVar, cast

from einops import rearrange
from torch import Tensor, nn

from moss_vllm.core.ladder import name_modules
from moss_vllm.detection.adapter import TIA
from moss_vllm.detection.detector import Detector, LevelOutput
from moss_vllm.detection.loss import DetectionLoss
from moss_vllm.encoders.video import AfterLayer, VideoEncoder


class AdaTAD(nn.Module):
    """Windows of video to predictions at every point of the detector's pyramid.

    The encoder is frozen. What trains: a TIA adapter after each of its layers, the temporal modules, and the
    detector. A temporal module reads the grid of the whole window after its layer and before that layer's
    adapter, and is added to it; one that starts as zero (`zero_init`) leaves AdaTAD unchanged.

    `frozen`, `adapter_prefix`, `temporal_prefix` and `detector_prefix` are patterns of parameter names; each
    parameter matches one of them. `loss` has the state of the loss, no parameters.

    Shape:
        clips (B, T, 3, H', W'), see `VideoEncoder`, and mask (B, L), True on real steps -> `LevelOutput` of
        each level. L is the detector's length: as many steps as frames in AdaTAD.

    Args:
        encoder: see `moss_vllm.encoders.videomae.open_video_encoder`.
        detector: reads the encoder's `d_in` channels.
        temporal: modules (B, T, H, W, C) -> (B, T, H, W, C) by layer, counted from 1.
        in_chunks: a temporal module reads each of the encoder's chunks alone, as its attention does.
        adapter_ratio: width of the adapters as a share of C.
        loss: of training; AdaTAD's if not given.

    Raises:
        ValueError: a layer that the encoder does not have, or a detector of another width; in `forward`,
            clips or a mask that do not fit.

    Reference: AdaTAD (Liu et al., 2024c); Sec. C.1 for the place of MOSS. That the module is added and reads
    the whole window is this project's reading.
    """

    frozen: ClassVar[str] = r"^encoder\."
    adapter_prefix: ClassVar[str] = r"^adapters\."
    temporal_prefix: ClassVar[str] = r"^moss\d*\."
    detector_prefix: ClassVar[str] = r"^detector\."

    def __init__(
        self,
        encoder: VideoEncoder,
        detector: Detector,
        *,
        temporal: Mapping[int, nn.Module] | None = None,
        in_chunks: bool = False,
        adapter_ratio: float = 0.25,
        loss: DetectionLoss | None = None,
    ) -> None:
        super().__init__()
        temporal = temporal or {}
        if outside := [layer for layer in temporal if not 1 <= layer <= encoder.depth]:
            raise ValueError(
                f"temporal modules after layers {sorted(outside)}; {encoder.name} has 1 to {encoder.depth}"
            )
        if detector.d_in != encoder.d_in:
            raise ValueError(
                f"the detector reads {detector.d_in} channels, {encoder.name} has {encoder.d_in}; build it "
                "with the encoder's d_in"
            )
        self.encoder, self.detector = encoder, detector
        self.set_checkpointing(encoder.checkpointing)
        self.adapters = nn.ModuleList(TIA(encoder.d_in, ratio=adapter_ratio) for _ in range(encoder.depth))
        self.in_chunks = in_chunks
        self.temporal_names = name_modules(temporal)
        for layer, name in self.temporal_names.items():
            self.add_module(name, temporal[layer])
        self.loss = loss or DetectionLoss()

    def set_checkpointing(self, on: bool) -> None:
        """Keep for backward what enters each layer of the encoder and each block of the detector alone."""
        self.encoder.checkpointing = self.detector.checkpointing = on

    def forward(self, clips: Tensor, mask: Tensor) -> list[LevelOutput]:
        """Predict at every point."""
        if mask.dim() != 2 or len(mask) != len(clips):
            raise ValueError(
                f"{len(clips)} clips with a mask of shape {tuple(mask.shape)}; give (B, T) of the same "
                "clips, True on real steps"
            )
        return self.detector(self.features(clips, mask.shape[1]), mask)

    def features(self, clips: Tensor, length: int) -> Tensor:
        """The encoder with its adapters and temporal modules.

        Shape:
            (B, T, 3, H', W') -> (B, C, `length`).
        """
        after = {}
        for layer, adapter in enumerate(self.adapters, start=1):
            steps = [AfterLayer(adapter, [adapter])]
            if name := self.temporal_names.get(layer):
                module = self.get_submodule(name)
                steps.insert(0, AfterLayer(self._adding(module), [module]))
            after[layer] = steps
        return self.encoder(clips, after, length)

    def _adding(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """x + module(x), on the whole window or on each chunk."""

        def run(grid: Tensor) -> Tensor:
            read = grid
            if self.in_chunks:
                read = rearrange(grid, "b (n t) h w c -> (b n) t h w c", t=self.encoder.chunk_steps)
            return grid + cast(Tensor, module(read)).reshape(grid.shape)

        return run

    def trained_names(self) -> tuple[str, ...]:
        """Names in `state_dict()` that a checkpoint must hold: all but the encoder's."""
        return tuple(name for name in self.state_dict() if not re.search(self.frozen, name))

    def trained_state(self) -> dict[str, Tensor]:
        """What training changes: weights, BatchNorm's statistics, the normaliser of the loss."""
        state = self.state_dict()
        return {name: state[name] for name in self.trained_names()}
