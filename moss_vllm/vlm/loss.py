"""What fine-tuning a Video-LLM minimises."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from moss_vllm.training.loop import Objective
from moss_vllm.vlm.conversation import IGNORED
from moss_vllm.vlm.families import family_of
from moss_vllm.vlm.hosts.clips import VideoMOSS
from moss_vllm.vlm.lean_decoder import cross_entropy, lean_mlps, leave_casts_to_autocast


class AnswerLoss(Objective):
    """Sum of the cross entropy over answer tokens; no other token's logits are computed.

    With a vocabulary of 150,000 and 5,000 video tokens per clip, the logits of every position would take
    gigabytes.
    """

    gather_whole = (VideoMOSS,)  # one call per clip size of a batch

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__(model, dtype)
        if dtype is not None:
            leave_casts_to_autocast(model)

    def forward(self, labels: Tensor, **inputs: Tensor) -> Tensor:
        """Loss of one micro-batch from `TrainingSet.collate`."""
        base = cast(Any, self.model).get_base_model()  # with the LoRA layers in it
        family = family_of(base.config)
        inputs = family.place(base, inputs)
        with self.autocast(labels.device):
            with lean_mlps(base.get_submodule(family.language_model)):
                hidden = base.model(**inputs, use_cache=False).last_hidden_state
            target = labels[:, 1:]
            answered = target != IGNORED
            return cross_entropy(base.lm_head, hidden[:, :-1][answered], target[answered])
