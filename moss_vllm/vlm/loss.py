"""What fine-tuning a Video-LLM minimises."""

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

from moss_vllm.training.loop import Objective
from moss_vllm.vlm.video_llama3.chat import IGNORED
from moss_vllm.vlm.video_llama3.model import VideoMOSS


class AnswerLoss(Objective):
    """Sum of the cross entropy over answer tokens; only their logits are ever computed.

    With 150,000 words and 5,000 video tokens a clip, logits of every position would be gigabytes.
    """

    gather_whole = (VideoMOSS,)  # runs once for each clip size of a batch

    def forward(self, labels: Tensor, **inputs: Tensor) -> Tensor:
        """Loss of one micro-batch from `data.chat.collate`."""
        base = cast(Any, self.model).get_base_model()  # LoRA layers sit inside it
        with self.autocast(labels.device):
            hidden = base.model(**inputs, use_cache=False).last_hidden_state
            target = labels[:, 1:]
            spoken = target != IGNORED
            logits = base.lm_head(hidden[:, :-1][spoken])
        return F.cross_entropy(logits.float(), target[spoken], reduction="sum")
