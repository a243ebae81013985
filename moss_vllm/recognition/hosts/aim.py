"""AIM: adapters inside a frozen image encoder, whose attention is used a second time, across frames."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import DropPath
from torch import Tensor, nn

from moss_vllm.encoders.image import add_to_patches, embed, normalisation, patch_side, to_grid
from moss_vllm.recognition.hosts.classifier import VideoClassifier, check_plain
from moss_vllm.training.optim import Rate


class Adapter(nn.Module):
    """A bottleneck of a quarter of the width that starts as zero, without residual.

    Shape:
        (..., C) -> (..., C).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, dim // 4)
        self.up = nn.Linear(dim // 4, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Reduce, activate, project back."""
        return self.up(F.gelu(self.down(x)))


class AdaptedLayer(nn.Module):
    """The adapters of one layer, and the layer's forward with them; the layer itself stays in the encoder.

    Shape:
        (B*T, 1 + H*W, C) -> the same.
    """

    def __init__(self, dim: int, *, drop_path: float) -> None:
        super().__init__()
        self.time_in, self.time_out = Adapter(dim), Adapter(dim)
        self.space, self.mlp = Adapter(dim), Adapter(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, block: Any, frames: int) -> Tensor:
        """Attention over time, attention over space, MLP."""
        over_time = rearrange(block.norm1(tokens), "(b t) p c -> (b p) t c", t=frames)
        over_time = self.time_out(block.attn(over_time + self.time_in(over_time)))
        over_time = rearrange(over_time, "(b p) t c -> (b t) p c", p=tokens.shape[1])
        tokens = tokens + self.drop_path(over_time)
        attended = block.ls1(block.attn(block.norm1(tokens)))
        tokens = tokens + attended + self.space(attended)
        normed = block.norm2(tokens)
        return tokens + block.ls2(block.mlp(normed)) + self.drop_path(self.mlp(normed))


class AIM(VideoClassifier):
    """A frozen CLIP encoder with adapters in every layer, and attention across time with the same weights.

    Adapters, temporal embedding, the encoder's last norm and the head are trained. The output of a temporal
    module is added to the patch tokens after its layer, and should start as zero (`zero_init`).

    Args:
        vit: the image encoder, see `moss_vllm.encoders.image.open_vit`.
        name: its name in timm.
        classes: scores of the head.
        frames: frames that the temporal embedding is laid out for; for other numbers it is resized.
        temporal: modules (B, T, H, W, C) -> (B, T, H, W, C) by layer, counted from 1.
        drop_path: rate at the last layer's adapters; it rises linearly from 0 at the first layer.
        dropout: rate before the head.

    Raises:
        ValueError: the encoder is no plain vision transformer with a class token, or lacks a layer.

    Reference: Table 10d "AIM"; Yang et al., 2023, as they train on Something-Something V2.
    """

    frozen = r"^vit\.(?!norm\.|fc_norm\.)"
    trained = r"^(adapters|vit\.norm|vit\.fc_norm|head)\."

    def __init__(
        self,
        vit: Any,
        *,
        name: str,
        classes: int,
        frames: int = 8,
        temporal: Mapping[int, nn.Module] | None = None,
        drop_path: float = 0.2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(name, *normalisation(vit), patch_side(vit))
        check_plain(vit, name)
        vit.reset_classifier(0)
        vit.requires_grad_(False)
        vit.norm.requires_grad_(True)
        vit.fc_norm.requires_grad_(True)
        self.vit = vit
        depth, dim = len(vit.blocks), vit.embed_dim
        rates = [drop_path * index / max(1, depth - 1) for index in range(depth)]
        self.adapters = nn.ModuleList(AdaptedLayer(dim, drop_path=rate) for rate in rates)
        self.temporal_embedding = nn.Parameter(torch.zeros(frames, dim))
        self.attach(temporal or {}, depth)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, classes)

    def forward(self, video: Tensor) -> Tensor:
        """Score each class."""
        frames = video.shape[1]
        grid = (video.shape[3] // self.patch_size, video.shape[4] // self.patch_size)
        with torch.no_grad():
            tokens = embed(self.vit, video.flatten(0, 1))
        tokens = tokens.unflatten(0, (-1, frames)) + self._at(frames)[:, None]
        tokens = self.vit.norm_pre(tokens.flatten(0, 1))
        for layer, (block, adapters) in enumerate(zip(self.vit.blocks, self.adapters, strict=True), start=1):
            tokens = self.run_block(adapters, tokens, block, frames, layers=[adapters, block])
            if (module := self.temporal_after(layer)) is not None:
                tokens = add_to_patches(tokens, module(to_grid(tokens, frames=frames, grid=grid)))
        class_token = self.vit.fc_norm(self.vit.norm(tokens[:, 0]))
        return self.head(self.dropout(class_token.unflatten(0, (-1, frames)).mean(dim=1)))

    def rate_table(
        self, lr: float, weight_decay: float = 0.0, layer_decay: float | None = None
    ) -> tuple[Rate, ...]:
        """Learning rates: of the encoder only the last norm trains; the temporal embedding does not decay."""
        table = super().rate_table(lr, weight_decay, layer_decay)
        return (*table, Rate("temporal embedding", r"^temporal_embedding$", lr))

    def _at(self, frames: int) -> Tensor:
        """The temporal embedding of a clip of `frames` frames."""
        if frames == len(self.temporal_embedding):
            return self.temporal_embedding
        table = rearrange(self.temporal_embedding, "t c -> 1 c t")
        return rearrange(F.interpolate(table, size=frames, mode="linear"), "1 c t -> t c")
