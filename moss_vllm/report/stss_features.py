"""Features of a plain ViT of timm, as the pictures of self-similarity compare them."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from moss_vllm.video.clip import Clip


def load_vit(name: str, weights: str | None) -> Any:
    """A timm ViT with timm's own weights, those of a file, or random ones.

    Raises: ValueError for an unknown or unsuitable model or weights that do not load; FileNotFoundError.
    """
    import timm  # takes 5 s, and the toy clip needs none of it

    if not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"encoder '{name}' is neither 'raw' nor in timm; see timm.list_models('vit*')")
    if weights not in (None, "random") and not Path(weights).is_file():
        raise FileNotFoundError(f"--weights {weights}: no such file")
    no_vit = f"encoder '{name}' is no plain ViT with a patch grid; take a vit_* model"
    settings: dict[str, Any] = {"num_classes": 0, "dynamic_img_size": True}
    torch.manual_seed(0)  # for random weights
    try:
        model = timm.create_model(name, pretrained=False, **settings)
    except TypeError as error:
        raise ValueError(no_vit) from error
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"encoder '{name}' cannot be built ({first_line(error)})") from error
    embedding = getattr(model, "patch_embed", None)
    if not (hasattr(model, "blocks") and isinstance(embedding, timm.layers.PatchEmbed)):
        raise ValueError(no_vit)
    try:
        if weights is None:
            model = timm.create_model(name, pretrained=True, **settings)
        elif weights != "random":
            state = vit_state(model, weights)
    except Exception as error:  # errors of the hub, of files and of state dicts share no class
        tried = f"in {weights}" if weights else "in the local cache or on the hub"
        raise ValueError(
            f"no weights for encoder '{name}' {tried} ({first_line(error)}); download them and give "
            "--weights FILE, or use --weights random or --encoder raw"
        ) from error
    if weights not in (None, "random"):
        take_weights(model, state, f"--weights {weights}", name)
    return model.eval()


def vit_state(model: Any, file: str) -> dict[str, Tensor]:
    """The weights in a file under the model's names; timm refuses pickles of anything but weights."""
    from timm.models import load_state_dict

    state = load_state_dict(file)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return state if convert is None else convert(state, model)


def take_weights(model: Any, state: dict[str, Tensor], source: str, name: str) -> None:
    """Load all of the model's weights; a head or a text tower in `state` is ignored.

    Raises: ValueError if weights are missing, have another shape, or belong to blocks that the model lacks.
    """
    own = model.state_dict()
    missing = [key for key, value in own.items() if key not in state or state[key].shape != value.shape]
    deeper = sorted({key for key in state if key.startswith("blocks.")} - set(own))
    if missing or deeper:
        wrong = f"{len(missing)} of {len(own)} weights of this encoder are missing or of another shape"
        wrong = wrong if missing else f"{len(deeper)} weights of its blocks are none of this encoder's"
        raise ValueError(f"{source}: {wrong} ({(missing or deeper)[0]}, ...); take a file made for '{name}'")
    model.load_state_dict(state, strict=False)


def first_line(error: Exception) -> str:
    """An error's first line, to stand within a sentence."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


@torch.inference_mode()
def vit_features(model: Any, clip: Clip, layer: int) -> tuple[Clip, Tensor]:
    """The clip resized to whole patches, and its patch tokens after a layer (1, T, H, W, C)."""
    if not 1 <= layer <= len(model.blocks):
        raise ValueError(f"--after-layer {layer}: this encoder has layers 1 to {len(model.blocks)}")
    sides = zip(clip.frames.shape[1:3], model.patch_embed.patch_size, strict=True)
    height, width = (max(1, round(side / patch)) * patch for side, patch in sides)
    resized = [Image.fromarray(frame).resize((width, height)) for frame in clip.frames]  # bicubic
    clip = Clip(np.stack(list(map(np.asarray, resized))), clip.frame_times_s)
    mean, std = (torch.tensor(model.pretrained_cfg[key]) for key in ("mean", "std"))
    pixels = rearrange((torch.from_numpy(clip.frames) / 255 - mean) / std, "t h w c -> t 1 c h w")
    wanted = {"indices": [layer - 1], "intermediates_only": True, "stop_early": True}
    tokens = [model.forward_intermediates(frame, **wanted)[0] for frame in pixels]
    return clip, rearrange(torch.cat(tokens), "t c h w -> 1 t h w c")
