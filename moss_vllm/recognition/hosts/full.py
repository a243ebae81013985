"""Full fine-tuning: every layer of the image encoder trains, and its class token looks across time."""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moss_vllm.encoders.image import add_to_patches, embed, normalisation, patch_side, to_grid
from moss_vllm.recognition.hosts.classifier import VideoClassifier, check_plain
from moss_vllm.training.optim import Rate

TABLE_NAMES = r"^vit\.(cls_token|pos_embed|reg_token)$"
EMBEDDING_NAMES = r"^vit\.(patch_embed|norm_pre)\."


class ClassTokenConv(nn.Module):
    """The class token of a frame from those of three frames, channel by channel; patches are not changed.

    It starts as a shift: a quarter of the channels comes from the next frame, a quarter from the previous.
    Frames past the ends of the clip count as zeros.

    Shape:
        (B*T, 1 + H*W, C) class token first -> the same.

    Reference: Wu et al., 2023. They have no bias; with a bias the number of parameters is that of Table 10d.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        quarter = dim // 4
        previous, same, following = torch.zeros(3, dim)
        following[:quarter] = previous[quarter : 2 * quarter] = same[2 * quarter :] = 1
        self.weight = nn.Parameter(torch.stack([previous, same, following]))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, tokens: Tensor, frames: int) -> Tensor:
        """Convolve over `frames`."""
        padded = F.pad(tokens[:, 0].unflatten(0, (-1, frames)), (0, 0, 1, 1))
        class_token = self.bias + sum(self.weight[i] * padded[:, i : i + frames] for i in range(3))
        return torch.cat([class_token.flatten(0, 1)[:, None].to(tokens.dtype), tokens[:, 1:]], dim=1)


def mix_and_encode(tokens: Tensor, frames: int, pair: nn.Module, block: Any) -> Tensor:
    """A layer of the encoder, with a `ClassTokenConv` before its attention and another before its MLP."""
    before_attention, before_mlp = cast(nn.ModuleList, pair)
    tokens = before_attention(tokens, frames)
    tokens = tokens + block.drop_path1(block.ls1(block.attn(block.norm1(tokens))))
    tokens = before_mlp(tokens, frames)
    return cast(Tensor, tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens)))))


class FullFineTune(VideoClassifier):
    """A CLIP encoder, trained whole; each layer mixes the class token over time, before attention and MLP.

    A temporal module reads the patch tokens after its layer and is added to them. It should start as zero
    (`zero_init`), so that the encoder starts unchanged.

    Args:
        vit: the image encoder, see `moss_vllm.encoders.image.open_vit`.
        name: its name in timm.
        classes: scores of the head.
        temporal: modules (B, T, H, W, C) -> (B, T, H, W, C) by layer, counted from 1.

    Raises:
        ValueError: the encoder is no plain vision transformer with a class token, or lacks a layer.

    Reference: Table 10d "full FT"; Wu et al., 2023.
    """

    frozen = r"^$"
    trained = r"^(vit|time_convs|head)\."

    def __init__(
        self, vit: Any, *, name: str, classes: int, temporal: Mapping[int, nn.Module] | None = None
    ) -> None:
        super().__init__(name, *normalisation(vit), patch_side(vit))
        check_plain(vit, name)
        self.vit = vit
        depth, dim = len(vit.blocks), vit.embed_dim
        pairs = (nn.ModuleList(ClassTokenConv(dim) for _ in range(2)) for _ in range(depth))
        self.time_convs = nn.ModuleList(pairs)
        self.attach(temporal or {}, depth)
        projected = vit.head.out_features if isinstance(vit.head, nn.Linear) else dim
        self.head = nn.Linear(projected, classes)

    def forward(self, video: Tensor) -> Tensor:
        """Score each class."""
        frames = video.shape[1]
        grid = (video.shape[3] // self.patch_size, video.shape[4] // self.patch_size)
        tokens = self.vit.norm_pre(embed(self.vit, video.flatten(0, 1)))
        for layer, (block, pair) in enumerate(zip(self.vit.blocks, self.time_convs, strict=True), start=1):
            tokens = self.run_block(mix_and_encode, tokens, frames, pair, block, layers=[pair, block])
            if (module := self.temporal_after(layer)) is not None:
                tokens = add_to_patches(tokens, module(to_grid(tokens, frames=frames, grid=grid)))
        projected = self.vit.head(self.vit.fc_norm(self.vit.norm(tokens[:, 0])))
        return self.head(projected.unflatten(0, (-1, frames)).mean(dim=1))

    def rate_table(
        self, lr: float, weight_decay: float = 0.0, layer_decay: float | None = None
    ) -> tuple[Rate, ...]:
        """Learning rates; with `layer_decay`, each layer trains at that fraction of the next one's rate.

        The encoder's norms and projection after the last layer, the head and the temporal modules train at
        `lr`. The class token and the position table get no weight decay.

        Raises:
            ValueError: a `layer_decay` outside (0, 1].
        """
        decay = 1.0 if layer_decay is None else layer_decay
        if not 0 < decay <= 1:
            raise ValueError(
                f"layer_decay={layer_decay} should be above 0 and at most 1; the paper's host: 0.7"
            )
        depth = len(self.vit.blocks)
        lowest = lr * decay ** (depth + 1)
        rows = [Rate("tables", TABLE_NAMES, lowest), Rate("embedding", EMBEDDING_NAMES, lowest, weight_decay)]
        for index in range(depth):
            pattern = rf"^(vit\.blocks|time_convs)\.{index}\."
            rows.append(Rate(f"layer {index + 1}", pattern, lr * decay ** (depth - index), weight_decay))
        after = Rate("head", r"^(vit\.(norm|fc_norm|head)|head)\.", lr, weight_decay)
        return (*rows, *self.temporal_rates(lr, weight_decay), after)
