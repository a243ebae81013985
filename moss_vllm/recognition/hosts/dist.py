"""DiST: a light network over more frames, and one that integrates it with a frozen image encoder's layers.

frames 0 1 2 3 4 5 ... ---> temporal branch: narrow convolutions, one pair a layer
                                 |  ^               |  ^
                                 v  |               v  |
                            integration branch ------------> attention pooling -> head
                                 ^                  ^
frames 0   2   4   ... ---> layer 1 ----------> layer 2 ...  image encoder, frozen
"""

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from moss_vllm.core.layers import TimeConv3d
from moss_vllm.encoders.image import ImageEncoder, add_to_patches, to_grid
from moss_vllm.recognition.hosts.classifier import VideoClassifier

STRIDE = 2  # frames of the temporal branch for each frame of the image encoder


class TemporalLayer(nn.Module):
    """A temporal and a spatial convolution with a residual.

    Shape:
        (B, C, T, H, W) -> the same.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv_time = TimeConv3d(dim, dim)
        self.conv_space = nn.Conv3d(dim, dim, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve over time, then over space."""
        normed = rearrange(self.norm(rearrange(x, "b c t h w -> b t h w c")), "b t h w c -> b c t h w")
        return quick_gelu(x + self.conv_space(quick_gelu(self.conv_time(normed))))


class IntegrationLayer(nn.Module):
    """Joins one layer of the encoder, the temporal branch there, and the output of the layer before.

    Shape:
        tap (B*T, 1 + H*W, d_in), temporal (B, d_time, STRIDE*T, H, W) -> integrated (B*T, 1 + H*W, d_out),
        and the features that go back to the temporal branch, shaped as `temporal` (None from the last layer).
    """

    def __init__(self, d_in: int, d_out: int, d_time: int, *, last: bool) -> None:
        super().__init__()
        self.adapter = nn.Linear(d_in, d_out)
        self.class_token = nn.Parameter(torch.zeros(d_out))
        self.from_time = nn.Conv3d(d_time, d_out, (STRIDE, 1, 1), stride=(STRIDE, 1, 1))
        self.to_time = None if last else nn.Linear(d_out, d_time)
        self.norm = nn.LayerNorm(d_out)
        self.mlp = nn.Sequential(nn.Linear(d_out, d_out), nn.GELU(), nn.Linear(d_out, d_out))
        self.time_in = nn.Linear(d_out, d_out // 4)
        self.time_conv = TimeConv3d(d_out // 4, d_out // 4)
        self.time_out = nn.Linear(d_out // 4, d_out)

    def forward(self, tap: Tensor, so_far: Tensor | None, temporal: Tensor) -> tuple[Tensor, Tensor | None]:
        """Integrate one layer."""
        grid, frames = cast(tuple[int, int], temporal.shape[3:]), temporal.shape[2] // STRIDE
        mixed = self.adapter(tap)
        mixed = mixed if so_far is None else mixed + so_far
        back = None
        if self.to_time is not None:
            back = rearrange(to_grid(self.to_time(mixed), frames=frames, grid=grid), "b t h w c -> b c t h w")
            back = back.repeat_interleave(STRIDE, dim=2)
        motion = rearrange(self.from_time(temporal), "b c t h w -> (b t) (h w) c")
        first = self.class_token.to(motion.dtype).expand(motion.shape[0], 1, -1)
        normed = self.norm(mixed + torch.cat([first, motion], dim=1))
        return self.mlp(normed) + self._over_time(normed, frames), back

    def _over_time(self, tokens: Tensor, frames: int) -> Tensor:
        volume = rearrange(self.time_in(tokens), "(b t) p c -> b c t p 1", t=frames)
        volume = F.gelu(self.time_conv(volume))
        return self.time_out(rearrange(volume, "b c t p 1 -> (b t) p c"))


class QueryLayer(nn.Module):
    """Queries look at tokens, then pass an MLP.

    Shape:
        query (N, Q, C), tokens (N, P, C) -> (N, Q, C).
    """

    def __init__(self, dim: int, *, heads: int) -> None:
        super().__init__()
        self.query_norm, self.token_norm, self.mlp_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Attend to the tokens, then apply the MLP."""
        tokens = self.token_norm(tokens)
        query = query + self.attn(self.query_norm(query), tokens, tokens, need_weights=False)[0]
        return query + self.mlp(self.mlp_norm(query))


class AttentionPool(nn.Module):
    """One query per frame looks at its tokens, one query per clip at those of the frames; two rounds.

    Shape:
        (B, T, P, C) -> (B, C).
    """

    def __init__(self, dim: int, *, heads: int, rounds: int = 2) -> None:
        super().__init__()
        self.frame_query = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.clip_query = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.over_space = nn.ModuleList(QueryLayer(dim, heads=heads) for _ in range(rounds))
        self.over_time = nn.ModuleList(QueryLayer(dim, heads=heads) for _ in range(rounds))

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool over space and over time."""
        batch, frames, _, dim = tokens.shape
        frame, clip = self.frame_query.expand(batch * frames, 1, dim), self.clip_query.expand(batch, 1, dim)
        for over_space, over_time in zip(self.over_space, self.over_time, strict=True):
            frame = over_space(frame, tokens.flatten(0, 1))
            clip = over_time(clip, frame.view(batch, frames, dim))
        return clip[:, 0]


class DiST(VideoClassifier):
    """A frozen CLIP encoder on every second frame; a temporal branch on all; a branch that integrates both.

    The encoder sees T/2 of a clip's T frames (of an odd number, the last frame is repeated), so the paper's 8
    frames are clips of 16. A temporal module reads the patch tokens of its layer; its output is added to them
    for the integration branch, and the encoder's own next layer does not see it.

    Args:
        encoder: hands over the layers that are integrated; in the paper, all of them.
        classes: scores of the head.
        temporal: modules (B, T, H, W, C) -> (B, T, H, W, C) by layer, counted from 1.
        d_out: width of the integration branch.
        d_time: width of the temporal branch.

    Raises:
        ValueError: a temporal module sits at a layer that is not integrated.

    Reference: Table 10d "DiST"; Qing et al., 2023. They score against CLIP's text; this has a linear head.
    """

    frozen = r"^encoder\."
    frames_per_encoded = STRIDE
    trained = r"^(stem|temporal_layers|integration_layers|pool|from_encoder|norm|projection|head)\."

    def __init__(
        self,
        encoder: ImageEncoder,
        *,
        classes: int,
        temporal: Mapping[int, nn.Module] | None = None,
        d_out: int = 384,
        d_time: int = 96,
    ) -> None:
        super().__init__(encoder.name, encoder.mean, encoder.std, encoder.patch_size)
        temporal = temporal or {}
        if unused := sorted(set(temporal) - set(encoder.layers)):
            raise ValueError(f"temporal modules at layers {unused} would never run: not in {encoder.layers}")
        self.encoder = encoder
        patch = encoder.patch_size
        self.stem = nn.Conv3d(3, d_time, (5, patch, patch), stride=(1, patch, patch))
        self.temporal_layers = nn.ModuleList(TemporalLayer(d_time) for _ in encoder.layers)
        self.integration_layers = nn.ModuleList(
            IntegrationLayer(encoder.d_in, d_out, d_time, last=layer == encoder.layers[-1])
            for layer in encoder.layers
        )
        self.attach(temporal, encoder.depth)
        self.pool = AttentionPool(d_out, heads=d_out // 64)
        self.from_encoder = nn.Linear(encoder.d_in, d_out)
        self.norm = nn.LayerNorm(d_out)
        self.projection = nn.Linear(d_out, 512)
        self.head = nn.Linear(512, classes)

    def forward(self, video: Tensor) -> Tensor:
        """Score each class."""
        if video.shape[1] % STRIDE:
            video = torch.cat([video, video[:, -1:]], dim=1)
        shown = video[:, ::STRIDE]
        taps = self.encoder(shown.flatten(0, 1))
        # Padded here because of what oneDNN (torch 2.12) does when it pads few frames, see `TimeConv3d`.
        temporal = self.stem(F.pad(rearrange(video, "b t c h w -> b c t h w"), (0, 0, 0, 0, 2, 2)))
        frames, grid = shown.shape[1], cast(tuple[int, int], temporal.shape[3:])
        integrated: Tensor | None = None
        branches = zip(self.encoder.layers, taps, self.temporal_layers, self.integration_layers, strict=True)
        for layer, tap, convolve, integrate in branches:
            if (module := self.temporal_after(layer)) is not None:
                tap = add_to_patches(tap, module(to_grid(tap, frames=frames, grid=grid)))
            temporal = self.run_block(convolve, temporal, layers=[convolve])
            integrated, back = self.run_block(integrate, tap, integrated, temporal, layers=[integrate])
            temporal = temporal if back is None else temporal + back
        tokens = cast(Tensor, integrated).unflatten(0, (-1, frames))
        class_token = taps[-1][:, 0].unflatten(0, (-1, frames)).mean(dim=1)
        return self.head(self.projection(self.norm(self.pool(tokens) + self.from_encoder(class_token))))


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's activation."""
    return x * torch.sigmoid(1.702 * x)
