"""How much memory a training step takes, from shapes alone, part by part.

    weights, gradients, Adam  +  the clip  +  what the forward pass keeps for backward  +  one layer at work

What is kept was written down tensor by tensor, for transformers' Qwen2 with peft's LoRA, the projector and
MOSS. With small models on a CPU it is within 2 % of what is alive after the forward pass, and the total is
0 to 12 % above a step's peak (`tests/vlm/test_memory.py`). No GPU was measured. Not covered, leave room for:

- the CUDA context, cuBLAS and cuDNN workspaces, NCCL's buffers, and what the caching allocator cannot reuse;
- temporaries inside one kernel, and what attention kernels differ in: "sdpa" is counted as a fused kernel
  that keeps no scores (a GPU without one needs memory that grows with the square of the tokens);
- what ZeRO-3 gathers to work with (the encoder whole, when it has MOSS), any stage's buckets, offloading;
- frozen weights in 4 bits;
- LoRA dropout, which keeps one more copy of each LoRA input;
- token compression, which leaves fewer tokens: without it is the upper bound.

Nothing here was measured on several GPUs: the division by `processes` follows the ZeRO paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from rich.table import Table
from transformers import PretrainedConfig

from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.vlm.video_llama3.model import MossVideoLlama3VisionConfig

MERGE = 2  # patches a video token is wide and high: VideoLLaMA3's processor
TIME_TOKENS = 9  # of ",Time 12.5s:" before each frame
LORA_LINEARS = 7  # of a decoder layer
GIB = 2**30
ATTENTION = ("sdpa", "flash_attention_2")


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, by part."""

    frozen_weights: int
    trained_weights: int
    gradients: int
    adam_states: int
    pixels: int
    language_model: int  # activations kept for backward, LoRA's included
    cast_weights: int  # copies in half precision that autocast makes and backward needs
    moss: int
    projector: int
    logits: int  # of answer tokens, with their gradient
    layer_at_work: int  # gradients under way, and what recomputation makes again
    encoder_at_work: int  # before anything is kept: not added to the others

    @property
    def kept(self) -> int:
        """What the forward pass keeps, without the logits."""
        return self.language_model + self.cast_weights + self.moss + self.projector

    @property
    def total(self) -> int:
        """The largest at any time."""
        always = self.frozen_weights + self.trained_weights + self.gradients + self.adam_states + self.pixels
        return always + max(self.encoder_at_work, self.kept + self.logits + self.layer_at_work)


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
) -> Memory:
    """Memory of one process in a training step of VideoLLaMA3 with LoRA, by `vlm.objective.AnswerLoss`.

    Args:
        config: of the base model; MOSS is counted if it has it.
        lora_rank: on all linear layers of the language model.
        frames: of each clip.
        height_px: of a frame, a multiple of 28; so is `width_px`.
        width_px: of a frame.
        text_tokens: of question and answer of one clip, all counted as answer; the frames' time stamps are
            added.
        batch_size: clips a process and micro-batch. More than one are padded: with attention "sdpa" every
            layer then keeps a mask of tokens x tokens.
        precision: "fp32", "bf16" or "fp16"; the last two are autocast. What trains is float32 in each.
        checkpoint_llm: the language model's layers are computed again in backward.
        trained_parameters: LoRA, projector and MOSS.
        frozen_parameters: all others, peft's frozen originals of projector and MOSS included.
        attention: "sdpa" or "flash_attention_2".
        frozen_dtype: of the frozen weights. In float32, autocast copies each of them to half precision and
            keeps the copy for backward.
        processes: over which ZeRO divides.
        zero_stage: 0 (DDP) to 3.
        fused_stss: MOSS's similarities by the GPU kernel, which does not store them.

    Raises:
        ValueError: a size that is not a multiple of 28, or a precision, attention, type or stage not above.
    """
    _check(height_px, width_px, precision, attention, frozen_dtype, zero_stage)
    half = AUTOCAST[precision] is not None
    working, frozen = 2 if half else 4, frozen_dtype.itemsize
    vision, text = config.vision_config, config.text_config
    patches = batch_size * frames * (height_px // vision.patch_size) * (width_px // vision.patch_size)
    seen = patches // MERGE**2
    length = seen // batch_size + frames * TIME_TOKENS + text_tokens
    tokens = batch_size * length

    masked = batch_size > 1 and attention == "sdpa"
    layer = layer_kept(text, batch_size, length, lora_rank, working, masked=masked)
    layer_casts = layer_cast_weights(text, lora_rank, frozen) if half else 0
    # Recomputation needs each layer's input, and marks the embeddings as such: autograd holds them too.
    inputs = (text.num_hidden_layers + 1) * tokens * text.hidden_size * frozen
    kept = inputs if checkpoint_llm else text.num_hidden_layers * layer
    casts = 0 if checkpoint_llm else text.num_hidden_layers * layer_casts
    ends = (
        tokens * (4 * text.hidden_size + 4) + 2 * length * _head_size(text) * frozen
    )  # last norm, positions
    head_cast = text.hidden_size * text.vocab_size * 2 if half and frozen == 4 else 0
    projector = text.hidden_size * (vision.hidden_size + text.hidden_size)
    has_moss = isinstance(vision, MossVideoLlama3VisionConfig)

    # Stage 1 divides Adam's states and a float32 copy of what trains, 2 gradients too, 3 all weights too.
    states, gradients, weights = (processes if zero_stage >= stage else 1 for stage in (1, 2, 3))
    master = trained_parameters * 4 // processes if zero_stage else 0
    buckets = 2 if processes > 1 and not zero_stage else 1  # DDP's are as large as the gradients
    return Memory(
        frozen_weights=frozen_parameters * frozen // weights,
        trained_weights=trained_parameters * 4 // weights + master,
        gradients=trained_parameters * 4 * buckets // gradients,
        adam_states=trained_parameters * 8 // states,
        pixels=patches * vision.num_channels * vision.patch_size**2 * 4,
        language_model=kept + ends + (batch_size * length**2 if masked else 0),
        cast_weights=casts + head_cast + (2 * projector if half else 0),
        moss=moss_kept(vision, patches, working, fused=fused_stss) if has_moss else 0,
        projector=seen * working * (vision.hidden_size + 2 * text.hidden_size),
        # log-softmax and its gradient in float32; from half precision, logits and their gradient beside them.
        logits=batch_size * text_tokens * text.vocab_size * (10 if half else 8),
        # Measured: two gradients of the MLP's width, and what recomputation makes again.
        layer_at_work=8 * tokens * text.intermediate_size + (layer + layer_casts if checkpoint_llm else 0),
        encoder_at_work=encoder_at_work(vision, patches, working),
    )


def layer_kept(text: Any, clips: int, length: int, rank: int, working: int, *, masked: bool) -> int:
    """Bytes that one decoder layer of Qwen2 keeps for backward, LoRA on its linear layers, weights frozen.

    Args:
        text: the language model's config.
        clips: in the batch.
        length: tokens of a clip.
        rank: of LoRA.
        working: bytes of an activation.
        masked: clips of different lengths through SDPA.
    """
    width, inner = text.hidden_size, text.intermediate_size
    query = text.num_attention_heads * _head_size(text)
    key = query if masked else text.num_key_value_heads * _head_size(text)
    attention = 2 * query + 2 * key  # q, k, v, output
    # A frozen linear layer keeps no input, LoRA beside it does. In float32 q, k and v share one, gate and up
    # another, and o's is attention's output; autocast makes a copy for each.
    lora = 2 * width + inner if working == 4 else 5 * width + query + inner
    gated = 3 * inner  # gate, silu(gate), up
    norms = 2 * (4 * width + 4)  # each norm's input in float32, and 1 / rms
    softmax = 4 * text.num_attention_heads  # logsumexp
    token = norms + softmax + working * (attention + lora + LORA_LINEARS * rank + gated)
    mask = clips * length**2 * working if masked else 0  # SDPA turns it into numbers, in every layer
    return clips * length * token + mask


def layer_cast_weights(text: Any, rank: int, frozen: int) -> int:
    """Bytes of half-precision weights that autocast makes of one decoder layer's and backward needs."""
    width, inner = text.hidden_size, text.intermediate_size
    query, key = text.num_attention_heads * _head_size(text), text.num_key_value_heads * _head_size(text)
    sizes = [(width, query), (width, key), (width, key), (query, width)]
    sizes += [(width, inner), (width, inner), (inner, width)]
    assert len(sizes) == LORA_LINEARS
    lora = sum(rank * (wide + high) for wide, high in sizes)
    return 2 * (lora + (sum(wide * high for wide, high in sizes) if frozen == 4 else 0))


def moss_kept(vision: Any, patches: int, working: int, *, fused: bool) -> int:
    """Bytes that MOSS keeps for backward; see `core.lean` for what it does not keep."""
    length, rows, columns = vision.moss_window
    fuse, orders = vision.moss_d_fuse, max(vision.moss_orders)
    maps = 3 * length * vision.moss_d_similarity + 2 * fuse  # BatchNorms' inputs; the output, read by two
    if fused:
        similarity = vision.moss_d_hidden * working + 4  # features, 1 / norm
    else:
        similarity = vision.moss_d_hidden * 4 + 4 + length * rows * columns * working
    norm = 8  # mean and 1 / deviation
    tapped = 2 * vision.hidden_size * working  # as the encoder leaves it, and as a grid
    weights = len(vision.moss_orders) * fuse * vision.hidden_size
    weights += vision.hidden_size**2 if vision.moss_input_fc else 0
    copies = 2 * weights if working == 2 else 0
    return patches * (tapped + orders * (norm + similarity + maps * working)) + copies


def encoder_at_work(vision: Any, patches: int, working: int) -> int:
    """Bytes of the frozen encoder in the middle of a layer: it keeps nothing."""
    width = vision.hidden_size
    stream = width * (2 * working + 4)  # the tapped layer, the layer's input, its norm in float32
    # Rotary positions are applied in float32: q, k, v; copies of q and k; turned q; three terms of k.
    turned = width * (3 * working + (8 if working == 2 else 0) + 16)
    return patches * (stream + max(turned, 2 * vision.intermediate_size * working))


def memory_table(columns: Mapping[str, Memory], *, title: str) -> Table:
    """One row a part, one column an estimate, in GiB."""
    table = Table("GiB", title=title)
    for head in columns:
        table.add_column(head, justify="right")
    names = [field.name for field in fields(Memory)]
    for name in names[:-1]:
        cells = [f"{getattr(memory, name) / GIB:.2f}" for memory in columns.values()]
        table.add_row(name.replace("_", " "), *cells, end_section=name == names[-2])
    table.add_row("total", *(f"{memory.total / GIB:.2f}" for memory in columns.values()), end_section=True)
    earlier = [f"{memory.encoder_at_work / GIB:.2f}" for memory in columns.values()]
    table.add_row("earlier: encoder at work", *earlier)
    return table


def _head_size(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def _check(
    height_px: int,
    width_px: int,
    precision: str,
    attention: str,
    frozen_dtype: torch.dtype,
    zero_stage: int,
) -> None:
    if height_px < 28 or width_px < 28 or height_px % 28 or width_px % 28:
        raise ValueError(
            f"frames of {height_px} x {width_px} pixels do not divide into video tokens; give multiples of "
            "28, as 224 x 392"
        )
    if precision not in AUTOCAST:
        raise ValueError(f"unknown precision '{precision}'; choose one of {', '.join(AUTOCAST)}")
    if attention not in ATTENTION:
        raise ValueError(f"no estimate for attention '{attention}'; choose one of {', '.join(ATTENTION)}")
    if frozen_dtype not in (torch.float32, AUTOCAST[precision]):
        raise ValueError(
            f"frozen weights in {frozen_dtype} with precision '{precision}' are not a way to train here; "
            "give float32, or the type of the precision"
        )
    if zero_stage not in (0, 1, 2, 3):
        raise ValueError(f"zero_stage={zero_stage} does not exist; choose 0 to 3")
