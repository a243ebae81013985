"""The memory that a training step of VideoLLaMA3 takes, part by part, from shapes alone.

`vlm/decoder_memory.py` says what is counted and what is not. Token compression leaves fewer tokens; the
estimate is the upper bound without it.
"""

from typing import Any

import torch
from transformers import PretrainedConfig

from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.vlm.decoder_memory import Clips, check_step, head_size, moss_kept, step_memory
from moss_vllm.vlm.memory import Memory

MERGE = 2  # width and height of a video token in patches, by VideoLLaMA3's processor
TIME_TOKENS = 9  # of ",Time 12.5s:" before each frame


def estimate_training_memory(
    config: PretrainedConfig,
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
    """Memory of one process in a training step of VideoLLaMA3 with LoRA, by `vlm.loss.AnswerLoss`.

    Args:
        config: of the base model, with or without MOSS.
        lora_rank: on all linear layers of the language model.
        frames: of each clip.
        height_px, width_px: of a frame, multiples of 28.
        text_tokens: of question and answer of one clip, all counted as answer. The frames' time stamps are
            counted apart.
        batch_size: clips per process and micro-batch. Several clips are padded: with attention "sdpa" every
            layer then keeps a mask of tokens x tokens.
        precision: "fp32", "bf16" or "fp16"; the last two are autocast. What trains is float32 in each.
        checkpoint_llm: the language model's layers are computed again in backward.
        trained_parameters: LoRA, projector and MOSS.
        frozen_parameters: all others, with peft's frozen originals of projector and MOSS.
        attention: "sdpa" or "flash_attention_2".
        frozen_dtype: of the frozen weights. Autocast copies each float32 weight to half precision and keeps
            the copy for backward.
        processes: the number over which ZeRO divides.
        zero_stage: 0 (DDP) to 3.
        fused_stss: MOSS's similarities are computed by the GPU kernel.
        checkpoint_moss: MOSS's orders are computed again in backward.
        mask_bytes: of a number in the masks of LoRA's dropout: 0 without dropout, 1 on a GPU, 4 on a CPU.

    Raises:
        ValueError: a size that is not a multiple of 28, or another precision, attention, type or stage.
    """
    check_step(height_px, width_px, 28, precision, attention, frozen_dtype, zero_stage)
    working = 4 if AUTOCAST[precision] is None else 2
    vision, text = config.vision_config, config.text_config
    patches = batch_size * frames * (height_px // vision.patch_size) * (width_px // vision.patch_size)
    video_tokens = patches // MERGE**2
    length = video_tokens // batch_size + frames * TIME_TOKENS + text_tokens
    tapped = 2 * working  # in the encoder's order, and as a grid
    how = {"fused": fused_stss, "checkpointing": checkpoint_moss}
    clips = Clips(
        clips=batch_size,
        length=length,
        pixels=patches * vision.num_channels * vision.patch_size**2 * 4,
        moss=moss_kept(vision, vision.hidden_size, patches, working, tapped=tapped, **how),
        projector=video_tokens * working * (vision.hidden_size + 2 * text.hidden_size),
        projector_weights=text.hidden_size * (vision.hidden_size + text.hidden_size),
        positions=2 * length * head_size(text),
        encoder_at_work=encoder_at_work(vision, patches, working),
    )
    return step_memory(
        text,
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


def encoder_at_work(vision: Any, patches: int, working: int) -> int:
    """Bytes of the frozen encoder within a layer; nothing is kept after the layer."""
    width = vision.hidden_size
    stream = width * (2 * working + 4)  # the tapped layer, the layer's input, its norm in float32
    # Rotary positions are applied in float32: q, k, v; copies of q and k; turned q; three terms of k.
    turned = width * (3 * working + (8 if working == 2 else 0) + 16)
    return patches * (stream + max(turned, 2 * vision.intermediate_size * working))
