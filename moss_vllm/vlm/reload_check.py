"""Whether a written checkpoint or a merged model is the model that was in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from moss_vllm.data.rows import Turn
from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.trained_weights import differing
from moss_vllm.video.clip import Clip
from moss_vllm.vlm.adapter import trained_state
from moss_vllm.vlm.base import autocast
from moss_vllm.vlm.conversation import small_frame
from moss_vllm.vlm.families import family_of, family_with


def model_inputs(model: nn.Module, processor: Any, example: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of `model(...)` and `model.generate(...)` for one conversation, on the model's device."""
    family = family_with(processor)
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    batch = family.chat.collate([example], pad_id=processor.tokenizer.pad_token_id)
    device = base.get_input_embeddings().weight.device
    inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
    return family.place(base, inputs)


@torch.no_grad()
def next_logits(model: nn.Module, processor: Any) -> Tensor:
    """Logits of the first word about a square that moves right, on the CPU; they tell two models apart.

    Shape:
        (words,), float32.
    """
    family = family_with(processor)
    height, width = small_frame(family.chat, processor)
    frames = np.zeros((4, height, width, 3), np.uint8)
    for index, frame in enumerate(frames):
        left = width // 8 * index
        frame[height // 4 : height * 3 // 4, left : left + width // 2] = 255
    clip = Clip(frames, np.arange(4) / 2)
    turns = [Turn("What moves in the video, and where to?")]
    example = family.chat.encode(processor, clip, turns, compress=False)
    inputs = model_inputs(model, processor, example)
    modes = [(module, module.training) for module in model.modules()]
    try:
        with autocast(model.eval()):
            logits = cast(Any, model)(**inputs, logits_to_keep=1, use_cache=False).logits
    finally:
        for module, training in modes:
            module.training = training
    return logits[0, -1].float().cpu()


def verify(folder: Path, model: PeftModel, state: Mapping[str, Tensor], reloaded: PeftModel) -> None:
    """Compare a saved model with what its checkpoint reloads to.

    Every trained number must be the same, to the bit, and so must everything that decides how the numbers are
    used: the base's fingerprint and the settings of LoRA and MOSS. The logits are not compared: equal ones
    follow, and computing them would take the memory of a second model.

    Args:
        folder: the checkpoint, to be named in the error.
        model: the model that was saved.
        state: its `trained_state`, in full.
        reloaded: opened from the folder; only what is trained needs memory.

    Raises:
        RunStopped: something differs.
    """
    wrong = differing(trained_state(reloaded), state)
    was, now = _makeup(model), _makeup(reloaded)
    wrong += [f"{name} {now[name]} (was {was[name]})" for name in was if was[name] != now[name]]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise RunStopped(
            f"{folder} does not reload to the model that was saved: it differs in {', '.join(wrong[:5])}"
            f"{more}; do not use it, and report it with its run.json"
        )


def _makeup(model: PeftModel) -> dict[str, Any]:
    """What decides how the trained numbers are used."""
    base: Any = model.get_base_model()
    lora: Any = model.peft_config["default"]
    return {
        "base": base.opened_from,
        "MOSS": family_of(base.config).moss_settings(base.config),
        "r": lora.r,
        "alpha": lora.lora_alpha,
        "dropout": lora.lora_dropout,
    }
