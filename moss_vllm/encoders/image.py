"""Image encoders by name, their tokens after layer k, and the grid that their patches form.

`open_encoder` is for the ladder and DiST, which read layers; `open_vit` for full fine-tuning and AIM, which
work inside the encoder. Both open timm's vision transformers, unchanged.
"""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import timm
import torch
from einops import rearrange
from safetensors.torch import load_file
from timm.layers.activations import QuickGELU
from timm.models import model_entrypoint
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from moss_vllm.core import presets
from moss_vllm.encoders.opening import always_the_same, load_whole, refuse_unreachable, weights_file

# Short names: the encoders of Tables 1, 2 and 10e, and two more. "Merged-2B" of Table 1 is the EVA02 encoder.
BACKBONES = {
    "clip_b16": "vit_base_patch16_clip_quickgelu_224.openai",
    "clip_l14": "vit_large_patch14_clip_quickgelu_224.openai",
    "eva02_clip_l14": "eva02_large_patch14_clip_224.merged2b",
    "dino_b16": "vit_base_patch16_224.dino",
    "mae_b16": "vit_base_patch16_224.mae",
    "siglip_b16": "vit_base_patch16_siglip_224.webli",
}
MINI_NAME = "mini_vit"  # the encoder of `presets.MINI`
# Its random weights are stored: every kind of processor would draw them with other last digits.
MINI_WEIGHTS = Path(__file__).parent / "weights" / "mini_vit.safetensors"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # names of timm's weights on the hub
FAMILIES = ("timm.models.vision_transformer", "timm.models.eva")
# Parameters after the last layer: a file of weights may hold them, the encoder does not need them.
AFTER_THE_LAYERS = re.compile(r"^(head|fc_norm|norm|attn_pool|mask_token)(\.|$)")


class ImageEncoder(nn.Module):
    """A frozen vision transformer that returns the tokens after some of its layers, without a graph.

    It stays in evaluation mode when the model around it trains. Layers past the last of `layers` are not
    kept. The ladder needs a class token: if an encoder has none (SigLIP), the mean of a layer's patch tokens
    takes its place. Register tokens are left out.

    Shape:
        (N, 3, H', W') pixels normalised with `mean` and `std` -> for each of `layers` (N, 1 + H*W, d_in),
        class token first; any sides that are multiples of `patch_size`.

    `dtype` is the number format of its arithmetic, None for that of the code around it. Weights and tokens
    are float32 in each.

    Args:
        vit: the transformer from `open_vit`; its layers after the last of `layers` are cut off.
        layers: increasing, counted from 1; None for all.
        name: its full name in timm.

    Raises:
        ValueError: layers that are not increasing or that it does not have; in `forward`, frames that are not
            whole patches.
    """

    def __init__(self, vit: Any, *, layers: Sequence[int] | None, name: str) -> None:
        super().__init__()
        self.depth = len(vit.blocks)
        layers = range(1, self.depth + 1) if layers is None else layers
        if not layers or sorted(set(layers)) != list(layers) or layers[0] < 1 or layers[-1] > self.depth:
            raise ValueError(
                f"layers={tuple(layers)} should be increasing layers of {name}, which has 1 to {self.depth}"
            )
        self.layers = tuple(layers)
        self.name = name
        self.d_in: int = vit.embed_dim
        self.patch_size = patch_side(vit)
        self.mean, self.std = normalisation(vit)
        vit.prune_intermediate_layers(indices=[layers[-1] - 1], prune_norm=True, prune_head=True)
        for place, module in list(vit.named_modules()):
            if type(module) is QuickGELU:
                vit.set_submodule(place, _QuickGELU())
        self.vit = vit
        self.dtype: torch.dtype | None = None
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "ImageEncoder":
        """Stay in evaluation mode: a frozen encoder returns the same tokens for a frame every time."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> list[Tensor]:
        """Tokens after each of `layers`."""
        check_sides(frames, self.patch_size)
        with number_format(frames.device, self.dtype):
            taps = self.vit.forward_intermediates(
                frames,
                indices=[layer - 1 for layer in self.layers],
                return_prefix_tokens=True,
                output_fmt="NLC",
                intermediates_only=True,
            )
        for index, tokens in enumerate(taps):  # in place, so that only one layer has a copy at a time
            tokens = self._with_class_token(tokens)
            taps[index] = tokens if self.dtype is None else tokens.float()
        return cast(list[Tensor], taps)

    def _with_class_token(self, tokens: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        patches, prefix = (tokens, None) if isinstance(tokens, Tensor) else tokens
        if prefix is None or not has_class_token(self.vit):
            first = patches.mean(dim=1, keepdim=True)
        else:
            first = prefix[:, :1]
        return torch.cat([first, patches], dim=1)


class _QuickGELU(nn.Module):
    """timm's `QuickGELU` where there are no gradients: equal to the bit, with one new tensor for three."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul(1.702).sigmoid_().mul_(x)


def number_format(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Arithmetic in `dtype`, whatever is set around; None changes nothing."""
    if dtype is None:
        return nullcontext()
    half = dtype != torch.float32
    return torch.autocast(device.type, dtype if half else None, enabled=half)


def open_encoder(
    name: str, *, layers: Sequence[int] | None, weights: str | Path = "pretrained", image_size: int = 224
) -> ImageEncoder:
    """A frozen encoder by name, read after `layers` (counted from 1).

    Args:
        name: one of `BACKBONES`, a vision transformer's name in timm, or "mini_vit".
        layers: the layers to hand over, or None for all.
        weights: "pretrained" (downloaded, or from the local cache), "random" (always the same numbers, as a
            checkpoint does not hold a frozen encoder), or a .safetensors file.
        image_size: side in pixels for which its position table is laid out; for other sizes it is resized.

    Raises:
        ValueError: see `open_vit` and `ImageEncoder`.
        OSError: weights that cannot be downloaded or read.
    """
    full, file = full_name(name), weights_file(weights)
    vit = _create(full, pretrained=weights == "pretrained", image_size=image_size, num_classes=0)
    encoder = ImageEncoder(vit, layers=layers, name=full)  # cuts off layers that the file may then lack
    if file is not None:
        load_weights(encoder.vit, file)
    return encoder


def open_vit(name: str, *, weights: str | Path = "pretrained", image_size: int = 224) -> nn.Module:
    """timm's whole transformer; CLIP's has its projection as `head`, others have no head.

    Args:
        name: as in `open_encoder`.
        weights: as in `open_encoder`.
        image_size: as in `open_encoder`.

    Raises:
        ValueError: an unknown name, a model that is no vision transformer, CLIP weights under a name that
            gives them the wrong activation, a file that is not .safetensors or does not fit.
        OSError: weights that cannot be downloaded or read.
    """
    full, file = full_name(name), weights_file(weights)
    projection = {} if "_clip_" in full and "_ft_" not in full else {"num_classes": 0}
    vit = _create(full, pretrained=weights == "pretrained", image_size=image_size, **projection)
    if file is not None:
        load_weights(vit, file)
    return vit


def full_name(name: str) -> str:
    """The name in timm, tag included, of a short or full name.

    Raises:
        ValueError: see `open_vit`.
    """
    if name == MINI_NAME:
        return name
    architecture, _, tag = BACKBONES.get(name, name).partition(".")
    if not timm.is_model(architecture) or model_entrypoint(architecture).__module__ not in FAMILIES:
        raise ValueError(
            f"'{name}' is no vision transformer of timm {timm.__version__}; choose one of "
            f"{', '.join(BACKBONES)}, or a name of timm.list_models('vit_*')"
        )
    names = timm.list_pretrained(f"{architecture}.*")
    default = timm.get_pretrained_cfg(architecture)
    tag = tag or (default and default.tag) or ""
    full = f"{architecture}.{tag}" if tag else architecture
    if tag and full not in names:
        raise ValueError(f"timm has no weights '{full}'; choose one of {', '.join(names) or architecture}")
    # timm has the same weights under both names; they were trained with quick-GELU and need it.
    twin = re.sub(r"_clip_(?!quickgelu)", "_clip_quickgelu_", full)
    if twin != full and timm.list_pretrained(twin):
        raise ValueError(
            f"'{full}' gives these weights an activation they were not trained with (GELU); use '{twin}'"
        )
    return full


def load_weights(vit: nn.Module, path: Path) -> None:
    """Load a .safetensors file, with timm's or open_clip's names, into a timm transformer.

    Raises:
        ValueError: keys that are missing, unknown or of another shape; the message names them.
    """
    filter_function = import_module(type(vit).__module__).checkpoint_filter_fn
    try:
        loaded: dict[str, Tensor] = filter_function(load_file(path), vit)
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"weights {path}: not those of a vision transformer of this kind: {error}"
        ) from error
    layers = len(cast(Any, vit).blocks)
    load_whole(vit, loaded, str(path), lambda name: _is_after(name, layers))


def normalisation(vit: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, in RGB of 0 to 1, of the pixels that the weights were trained on."""
    return tuple(vit.pretrained_cfg["mean"]), tuple(vit.pretrained_cfg["std"])


def patch_side(vit: Any) -> int:
    """Side of a patch in pixels."""
    rows, columns = vit.patch_embed.patch_size
    if rows != columns:
        raise ValueError(f"patches of {rows} x {columns} pixels; only square ones are supported")
    return int(rows)


def embed(vit: Any, frames: Tensor) -> Tensor:
    """Tokens before the first layer (and before CLIP's norm there), class token first.

    Shape:
        (N, 3, H', W') -> (N, 1 + H*W, C).
    """
    check_sides(frames, patch_side(vit))
    # timm (1.0.31) has no public method for this part of its forward.
    return vit.patch_drop(vit._pos_embed(vit.patch_embed(frames)))


def has_class_token(vit: Any) -> bool:
    """Whether the first prefix token is a class token; the others are registers."""
    return vit.cls_token is not None


def check_sides(frames: Tensor, patch_size: int) -> None:
    """Raise ValueError for frames (..., H', W') that are not whole patches."""
    height, width = frames.shape[-2:]
    if height % patch_size or width % patch_size or not height or not width:
        raise ValueError(
            f"frames of {height} x {width} pixels are not whole patches of {patch_size}; resize or crop them "
            "to multiples of it"
        )


def to_grid(tokens: Tensor, *, frames: int, grid: tuple[int, int]) -> Tensor:
    """The patches of flat tokens on their grid, without the P tokens before them.

    Shape:
        (B*T, P + H*W, C) -> (B, T, H, W, C).
    """
    patches = tokens[:, tokens.shape[1] - grid[0] * grid[1] :]
    return rearrange(patches, "(b t) (h w) c -> b t h w c", t=frames, h=grid[0])


def add_to_patches(tokens: Tensor, change: Tensor) -> Tensor:
    """The tokens with `change` added to their patches; the P tokens before the patches stay as they are.

    Shape:
        tokens (B*T, P + H*W, C), change (B, T, H, W, C) -> (B*T, P + H*W, C).
    """
    flat = rearrange(change, "b t h w c -> (b t) (h w) c")
    before = tokens.shape[1] - flat.shape[1]
    return torch.cat([tokens[:, :before], tokens[:, before:] + flat], dim=1)


def _create(full: str, *, pretrained: bool, image_size: int, **options: Any) -> Any:
    if full == MINI_NAME:
        return _mini_vit()
    options |= {"img_size": image_size, "dynamic_img_size": True}
    if not pretrained:
        return always_the_same(lambda: timm.create_model(full, **options))
    config = timm.get_pretrained_cfg(full)
    hub_id = (config.hf_hub_id or "").partition("@")[0] if config else ""
    try:
        if hub_id:
            refuse_unreachable(hub_id, HUB_FILES)
        return timm.create_model(full, pretrained=True, **options)
    except (OSError, RuntimeError) as error:
        place = f"huggingface.co/{config.hf_hub_id}" if config else "the internet"
        raise OSError(
            f"the weights of '{full}' could not be loaded from {place} or the local cache "
            f"({type(error).__name__}). Download its .safetensors file by other means and pass that path as "
            "weights, or pass 'random' to try things out"
        ) from error


def _mini_vit() -> Any:
    sizes: dict[str, Any] = dict(presets.MINI_VIT)
    vit = always_the_same(lambda: VisionTransformer(num_classes=0, dynamic_img_size=True, **sizes))
    if torch.get_default_device().type != "meta":
        vit.load_state_dict(load_file(MINI_WEIGHTS))
    vit.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    return vit


def _is_after(name: str, layers: int) -> bool:
    block = re.match(r"^blocks\.(\d+)\.", name)
    return int(block[1]) >= layers if block else AFTER_THE_LAYERS.match(name) is not None
