"""The base class of all video classifiers."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from moss_vllm.core.ladder import name_modules
from moss_vllm.core.moss import checkpoint_moss
from moss_vllm.core.recompute import recomputed
from moss_vllm.encoders.image import has_class_token
from moss_vllm.runtime.precision import DTYPES, fast_half
from moss_vllm.training.optim import Rate


class VideoClassifier(nn.Module):
    """Clip to class scores, with temporal modules attached by layer.

    `frozen`, `trained` and `temporal_prefix` are patterns of parameter names; each parameter matches one of
    them. `head_name` is the Linear whose outputs are the classes. A clip has `frames_per_encoded` frames for
    each one that the image encoder sees.

    Shape:
        (B, T, 3, H', W') pixels normalised with `mean` and `std` -> (B, classes).

    Args:
        encoder_name: the image encoder's name in timm.
        mean: what to subtract from pixels in RGB of 0 to 1.
        std: what to divide by.
        patch_size: side of the image encoder's patches in pixels.
    """

    frozen: ClassVar[str]
    trained: ClassVar[str]
    head_name: ClassVar[str] = "head"
    temporal_prefix: ClassVar[str] = r"^moss\d*\."
    frames_per_encoded: ClassVar[int] = 1
    decay_vectors: ClassVar[bool] = False

    def __init__(
        self, encoder_name: str, mean: tuple[float, ...], std: tuple[float, ...], patch_size: int
    ) -> None:
        super().__init__()
        self.encoder_name, self.mean, self.std, self.patch_size = encoder_name, mean, std, patch_size
        self.temporal_names: dict[int, str] = {}
        self.checkpoint_blocks = False

    @property
    def attached_layers(self) -> tuple[int, ...]:
        """Layers whose patches a temporal module reads, counted from 1."""
        return tuple(self.temporal_names)

    def attach(self, temporal: Mapping[int, nn.Module], depth: int) -> None:
        """Keep each module under the name it would have in the ladder; layers count from 1.

        Raises:
            ValueError: a layer that the encoder does not have.
        """
        if outside := [layer for layer in temporal if not 1 <= layer <= depth]:
            raise ValueError(
                f"temporal modules at layers {sorted(outside)}; {self.encoder_name} has 1 to {depth}"
            )
        self.temporal_names = name_modules(temporal)
        for layer, name in self.temporal_names.items():
            self.add_module(name, temporal[layer])

    def set_checkpoint_blocks(self, on: bool) -> None:
        """Keep what enters each block and MOSS alone, and compute both again in backward."""
        self.checkpoint_blocks = on
        checkpoint_moss(self, on)

    def set_encoder_precision(self, name: str, device: torch.device) -> None:
        """The number format of a frozen image encoder; its tokens are float32 in each.

        Args:
            name: of `DTYPES`, or "auto": `fast_half` of the device, and without one as the rest of the model.

        Raises:
            ValueError: this host's encoder trains or has adapters inside, and `name` is not "auto".
        """
        encoder = self._modules.get("encoder")
        if encoder is None and name != "auto":
            raise ValueError(
                f"encoder_precision={name} is of an encoder that runs by itself; that of "
                f"{type(self).__name__} trains, or has adapters inside: leave it out"
            )
        if encoder is not None:
            cast(Any, encoder).dtype = fast_half(device) if name == "auto" else DTYPES[name]

    def run_block(self, block: Callable[..., Any], *inputs: Any, layers: Sequence[nn.Module]) -> Any:
        """`block(*inputs)`, which calls `layers`, as `set_checkpoint_blocks` says."""
        return recomputed(block, *inputs, layers=layers) if self.checkpoint_blocks else block(*inputs)

    def temporal_after(self, layer: int) -> nn.Module | None:
        """The module that reads the patches of this layer, if there is one."""
        return self._modules.get(self.temporal_names.get(layer, ""))

    def rate_table(
        self, lr: float, weight_decay: float = 0.0, layer_decay: float | None = None
    ) -> tuple[Rate, ...]:
        """Learning rates for `moss_vllm.training.optim.parameter_groups`: encoder frozen, the rest at `lr`.

        Raises:
            ValueError: `layer_decay` is given, and the encoder is frozen.
        """
        if layer_decay is not None:
            raise ValueError(
                f"layer_decay={layer_decay} scales the rates of an encoder that trains; that of "
                f"{type(self).__name__} is frozen, leave it out"
            )
        return (
            Rate("frozen", self.frozen, None),
            *self.temporal_rates(lr, weight_decay),
            Rate("host", self.trained, lr, weight_decay, self.decay_vectors),
        )

    def temporal_rates(self, lr: float, weight_decay: float) -> tuple[Rate, ...]:
        """The row of the temporal modules, or none without them: a trained row must match something."""
        names = (name for name, _ in self.named_parameters() if re.search(self.temporal_prefix, name))
        row = Rate("moss", self.temporal_prefix, lr, weight_decay, self.decay_vectors)
        return (row,) if any(names) else ()

    def reset_head(self, classes: int) -> None:
        """Replace the head by a new one with `classes` scores."""
        old = cast(nn.Linear, self.get_submodule(self.head_name))
        device, dtype = old.weight.device, old.weight.dtype
        new = nn.Linear(old.in_features, classes, device=device, dtype=dtype)
        self.set_submodule(self.head_name, new)

    def trained_names(self) -> tuple[str, ...]:
        """Names in `state_dict()` that a checkpoint must hold: all but the frozen encoder, with BatchNorm."""
        return tuple(name for name in self.state_dict() if not re.search(self.frozen, name))

    def trained_state(self) -> dict[str, Tensor]:
        """The weights and statistics that training changes."""
        state = self.state_dict()
        return {name: state[name] for name in self.trained_names()}

    def forward(self, video: Tensor) -> Tensor:
        """Score each class."""
        raise NotImplementedError


def check_plain(vit: Any, name: str) -> None:
    """Raise ValueError for an encoder whose layers a host cannot take apart, or without a class token."""
    if not has_class_token(vit) or not all(isinstance(block, Block) for block in vit.blocks):
        raise ValueError(
            f"{name}: this host works between attention and MLP of plain layers with a class token, like "
            "CLIP's; choose clip_b16 or clip_l14, or the hosts 'ladder' and 'dist', which take any"
        )
