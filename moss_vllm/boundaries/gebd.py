"""BasicGEBD: a ResNet that trains, MOSS after one of its stages, and the head on top."""

from collections.abc import Callable, Mapping
from typing import ClassVar, cast

from torch import Tensor, nn

from moss_vllm.boundaries.head import BoundaryHead
from moss_vllm.core.ladder import name_modules
from moss_vllm.encoders.resnet import ResNetEncoder


class GEBD(nn.Module):
    """Clips to the logit of a boundary at each frame.

    A temporal module reads the grid of the whole clip after its stage, and is added to it; one that starts as
    zero (`zero_init`) leaves BasicGEBD unchanged. Where the encoder is computed again in backward, the blocks
    of the head's map encoder are too.

    `frozen`, `encoder_prefix`, `temporal_prefix` and `head_prefix` are patterns of parameter names; each
    parameter matches one of them.

    Shape:
        clips (B, T, 3, H', W'), see `ResNetEncoder` -> (B, T).

    Args:
        encoder: see `moss_vllm.encoders.resnet.open_resnet`.
        head: reads the channels of its last stage.
        temporal: modules (B, T, H, W, C) -> (B, T, H, W, C) by stage, counted from 1.
        one_frame: a control: the clip's middle frame stands for all, so nothing moves.

    Raises:
        ValueError: a stage that the encoder does not have; in `forward`, clips that do not fit.

    Reference: BasicGEBD-L4 (Zheng et al., 2024); Sec. C.2 for the place of MOSS. That the module is added is
    this project's reading.
    """

    frozen: ClassVar[str] = r"^encoder\.model\.conv1\."
    encoder_prefix: ClassVar[str] = r"^encoder\.(?!model\.conv1\.)"
    temporal_prefix: ClassVar[str] = r"^moss\d*\."
    head_prefix: ClassVar[str] = r"^head\."

    def __init__(
        self,
        encoder: ResNetEncoder,
        head: BoundaryHead,
        *,
        temporal: Mapping[int, nn.Module] | None = None,
        one_frame: bool = False,
    ) -> None:
        super().__init__()
        temporal = temporal or {}
        for stage in temporal:
            encoder.width_after(stage)
        self.encoder, self.head, self.one_frame = encoder, head, one_frame
        head.map_encoder.checkpointing = encoder.chunk_frames is not None
        self.temporal_names = name_modules(temporal)
        for stage, name in self.temporal_names.items():
            self.add_module(name, temporal[stage])

    def forward(self, clips: Tensor) -> Tensor:
        """Predict at every frame."""
        return cast(Tensor, self.head(self.features(clips)))

    def features(self, clips: Tensor) -> Tensor:
        """The encoder with its temporal modules.

        Shape:
            (B, T, 3, H', W') -> (B, T, C).
        """
        if self.one_frame:
            middle = clips.shape[1] // 2
            clips = clips[:, middle : middle + 1].expand_as(clips)
        after = {stage: _adding(self.get_submodule(name)) for stage, name in self.temporal_names.items()}
        return cast(Tensor, self.encoder(clips, after))

    def trained_names(self) -> tuple[str, ...]:
        """Names in `state_dict()` that a checkpoint must hold.

        These are all: the first convolution and the norms, which are frozen, are 0.3 % of the whole, and with
        them a checkpoint needs no file beside it.
        """
        return tuple(self.state_dict())

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors of these names."""
        return dict(self.state_dict())


def _adding(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """x + module(x)."""
    return lambda grid: grid + cast(Tensor, module(grid))
