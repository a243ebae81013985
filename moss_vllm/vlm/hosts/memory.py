"""The memory of a training step of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and SmolVLM2 with MOSS attached.

`vlm/decoder_memory.py` counts the language model; here is what comes before it: the frozen tower at work,
MOSS, and what stands between tower and language model. The tower keeps nothing for backward. In Qwen what is
trained whole stands inside it: the merger, and Qwen3-VL's deepstack mergers, each with an input of its own.
LayerNorms are counted as on a GPU, where autocast computes them in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PretrainedConfig

from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.vlm.decoder_memory import Clips, check_step, has_moss, head_size, moss_kept, step_memory
from moss_vllm.vlm.hosts.by_frame import SMOLVLM
from moss_vllm.vlm.hosts.by_grid import QWEN2_VL, QWEN3_VL, QWEN25_VL
from moss_vllm.vlm.hosts.host import Host
from moss_vllm.vlm.memory import Memory


@dataclass(frozen=True)
class Tower:
    """What the estimate needs to know of all that comes before the language model.

    Args:
        width: channels of the stream.
        head: channels of an attention head.
        widest: numbers of a patch, at the most, within the MLP of a block.
        merge: width and height of a video token in patches.
        out: channels of a video token.
        tokens_per_step: text and marks of a step of time, in clips below 100 s.
        mergers: in the tower, each a norm and two linear layers; 0: one linear layer behind the tower.
        layer_norm: the norm of a merger is a LayerNorm; else an RMSNorm.
        learned_positions: bytes of a patch that all blocks keep alive.
        square_px: frames are squares of this side; None: their sides are multiples of a video token.
    """

    width: int
    head: int
    widest: int
    merge: int
    out: int
    tokens_per_step: int = 0
    mergers: int = 1
    layer_norm: bool = True
    learned_positions: int = 0
    square_px: int | None = None


def _qwen2_vl(config: Any) -> Tower:
    vision = config.vision_config
    return Tower(
        width=vision.embed_dim,
        head=vision.embed_dim // vision.num_heads,
        widest=2 * int(vision.embed_dim * vision.mlp_ratio),
        merge=vision.spatial_merge_size,
        out=vision.hidden_size,
    )


def _qwen2_5_vl(config: Any) -> Tower:
    vision = config.vision_config
    return Tower(
        width=vision.hidden_size,
        head=vision.hidden_size // vision.num_heads,
        widest=3 * vision.intermediate_size,  # the gate, what it multiplies, and both
        merge=vision.spatial_merge_size,
        out=vision.out_hidden_size,
        layer_norm=False,
    )


def _qwen3_vl(config: Any) -> Tower:
    vision = config.vision_config
    return Tower(
        width=vision.hidden_size,
        head=vision.hidden_size // vision.num_heads,
        widest=2 * vision.intermediate_size,
        merge=vision.spatial_merge_size,
        out=vision.out_hidden_size,
        tokens_per_step=9,  # "<12.5 seconds>", and a mark before and behind the step
        mergers=1 + len(vision.deepstack_visual_indexes),
        # In float32, with place (int64) and weight of each of the four that they are interpolated from.
        learned_positions=4 * vision.hidden_size + 48,
    )


def _smolvlm(config: Any) -> Tower:
    vision = config.vision_config
    return Tower(
        width=vision.hidden_size,
        head=vision.hidden_size // vision.num_attention_heads,
        widest=2 * vision.intermediate_size,
        merge=config.scale_factor,
        out=config.text_config.hidden_size,
        tokens_per_step=13,  # "\nFrame from 00:12:", and three marks around the frame
        mergers=0,
        square_px=vision.image_size,
    )


TOWERS: dict[str, Callable[[Any], Tower]] = {
    QWEN2_VL.title: _qwen2_vl,
    QWEN25_VL.title: _qwen2_5_vl,
    QWEN3_VL.title: _qwen3_vl,
    SMOLVLM.title: _smolvlm,
}


def estimate_memory_of(host: Host) -> Callable[..., Memory]:
    """The function that estimates the memory of a training step of a kind of model.

    It takes the arguments of `vlm.video_llama3.memory.estimate_training_memory` and raises the same errors,
    but for the sides of frames, which are those of `frame_sides`. A config whose `vision_config` has the
    `moss_*` fields is that of a model with MOSS.

    Raises:
        ValueError: nothing was counted for this kind.
    """
    _counted(host)
    return partial(_estimate, host)


def frame_sides(host: Host, config: PretrainedConfig, short_side_px: int) -> tuple[int, int]:
    """Height and width in pixels of a 16:9 frame as the model takes it, nearest to a shorter side.

    Raises:
        ValueError: nothing was counted for this kind.
    """
    tower = _counted(host)(config)
    if tower.square_px:
        return tower.square_px, tower.square_px
    return wide_frame(short_side_px, _multiple_px(tower, config))


def wide_frame(short_side_px: int, multiple_px: int) -> tuple[int, int]:
    """Height and width of the 16:9 frame nearest to a shorter side, whose sides are multiples."""
    height = max(1, round(short_side_px / multiple_px)) * multiple_px
    return height, round(height * 16 / 9 / multiple_px) * multiple_px


def _estimate(
    host: Host,
    config: Any,
    *,
    lora_rank: int,
    frames: int,
    height_px: int,
    width_px: int,
    text_tokens: int,
    batch_size: int,
    precision: str,
    checkpoint_llm: bool,
    trained_parameters: int,
    frozen_parameters: int,
    attention: str = "sdpa",
    frozen_dtype: torch.dtype = torch.float32,
    processes: int = 1,
    zero_stage: int = 0,
    fused_stss: bool = True,
    checkpoint_moss: bool = False,
    mask_bytes: int = 0,
) -> Memory:
    tower, per_step = _counted(host)(config), host.frames_per_step(config)
    multiple_px = _multiple_px(tower, config)
    check_step(height_px, width_px, multiple_px, precision, attention, frozen_dtype, zero_stage)
    if tower.square_px and not height_px == width_px == tower.square_px:
        raise ValueError(
            f"{host.title} with frames of {height_px} x {width_px} pixels: this one takes squares of "
            f"{tower.square_px}; give {tower.square_px} x {tower.square_px}"
        )
    working, frozen = 4 if AUTOCAST[precision] is None else 2, frozen_dtype.itemsize
    steps = -(-frames // per_step)  # the last frame is repeated
    vision = config.vision_config
    patch, with_moss = vision.patch_size, has_moss(vision)
    patches = batch_size * steps * (height_px // patch) * (width_px // patch)
    length = patches // batch_size // tower.merge**2 + steps * tower.tokens_per_step + text_tokens
    pixels = batch_size * steps * per_step * 3 * height_px * width_px * 4
    # In the encoder's order, and as a grid. A sum with a table of positions is in the table's number format;
    # FC(F) makes a copy of that grid in half precision.
    tapped = 2 * max(working, frozen if tower.square_px else 0)
    if with_moss and vision.moss_input_fc and tapped > 2 * working:
        tapped += working
    how = {"fused": fused_stss, "checkpointing": checkpoint_moss}
    merged = tower.width * tower.merge**2
    weights = tower.mergers * merged * (merged + tower.out)
    if (
        not tower.mergers and with_moss
    ):  # without MOSS nothing before the layer needs a gradient, nor it weights
        weights = merged * tower.out
    clips = Clips(
        clips=batch_size,
        length=length,
        pixels=pixels,
        moss=moss_kept(vision, tower.width, patches, working, tapped=tapped, **how),
        projector=projector_kept(tower, patches, working),
        projector_weights=weights,
        positions=2 * length * head_size(config.text_config) * (batch_size if tower.mergers else 1),
        # Pixels are copied to the type of the weights, or where frames of padding are left out.
        encoder_at_work=tower_at_work(tower, patches, working, frozen)
        + (pixels * frozen // 4 if frozen == 2 or tower.square_px else 0)
        + (pixels // 12 if tower.square_px else 0),  # a mask of the pixels
    )
    return step_memory(
        config.text_config,
        clips,
        lora_rank=lora_rank,
        text_tokens=text_tokens,
        precision=precision,
        checkpoint_llm=checkpoint_llm,
        trained_parameters=trained_parameters,
        frozen_parameters=frozen_parameters,
        attention=attention,
        frozen_dtype=frozen_dtype,
        processes=processes,
        zero_stage=zero_stage,
        mask_bytes=mask_bytes,
    )


def projector_kept(tower: Tower, patches: int, working: int) -> int:
    """Bytes that all between tower and language model keeps for backward."""
    if not tower.mergers:
        return patches * tower.width * working  # what the linear layer reads
    # What the norm keeps of the stream; what the first layer reads; GELU's input and output.
    merger = patches * tower.width * ((4 if tower.layer_norm else working) + 3 * working)
    if not tower.layer_norm:
        return tower.mergers * merger
    rows = patches + (tower.mergers - 1) * patches // tower.merge**2  # deepstack norms merged patches
    return tower.mergers * merger + 8 * rows  # mean and 1 / deviation


def tower_at_work(tower: Tower, patches: int, working: int, frozen: int) -> int:
    """Bytes of the frozen tower within a block; beside the tapped layer and deepstack nothing is kept."""
    if not tower.mergers:
        # The embedding, the tapped layer, the block's input and its sum, a norm in float32; then q, k, v and
        # the output, or the MLP.
        stream = tower.width * (4 * frozen + 4)
        return patches * (stream + max(4 * tower.width, tower.widest) * working)
    stream = tower.width * (3 * working + 4)  # the tapped layer, the block's input and sum, a norm in float32
    # Rotary positions are applied in float32: q, k, v; copies of q and k; turned q; three terms of k.
    turned = tower.width * (3 * working + (8 if working == 2 else 0) + 16)
    within = stream + tower.learned_positions + 8 * tower.head + max(turned, tower.widest * working)
    deepstack = tower.mergers - 1  # what it keeps, and its tokens; the merger itself comes last
    tokens = deepstack * (patches // tower.merge**2) * tower.out * working
    return patches * within + tokens + projector_kept(tower, patches, working) * deepstack // tower.mergers


def _counted(host: Host) -> Callable[[Any], Tower]:
    if host.title not in TOWERS:
        raise ValueError(
            f"the memory of a training step of {host.title} was not counted; that of {', '.join(TOWERS)} was"
        )
    return TOWERS[host.title]


def _multiple_px(tower: Tower, config: Any) -> int:
    return tower.square_px or int(config.vision_config.patch_size * tower.merge)
