"""What fine-tuning a Video-LLM minimises."""

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

from moss_vllm.training.loop import Objective
from moss_vllm.vlm.conversation import IGNORED
from moss_vllm.vlm.families import family_of
from moss_vllm.vlm.hosts.clips import VideoMOSS


class AnswerLoss(Objective):
    """Sum of the cross entropy over answer tokens; no other token's logits are computed.

    With a vocabulary of 150,000 and 5,000 video tokens per clip, the logits of every position would take
    gigabytes.
    """

    gather_whole = (VideoMOSS,)  # one call per clip size of a batch

    def forward(self, labels: Tensor, **inputs: Tensor) -> Tensor:
        """Loss of one micro-batch from `TrainingSet.collate`."""
        base = cast(Any, self.model).get_base_model()  # with the LoRA layers in it
        inputs = family_of(base.config).place(base, inputs)
        with self.autocast(labels.device):
            hidden = base.model(**inputs, use_cache=False).last_hidden_state
            target = labels[:, 1:]
            answered = target != IGNORED
            logits = base.lm_head(hidden[:, :-1][answered])
        return F.cross_entropy(logits.float(), target[answered], reduction="sum")
