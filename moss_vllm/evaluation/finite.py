"""Numbers that are not finite end an evaluation: any answer made of them would be made up."""

import math
from collections.abc import Sequence

from moss_vllm.runtime.errors import RunStopped


def refuse_not_finite(checkpoint: str, names: Sequence[str], values: Sequence[float]) -> None:
    """Look at a number of each question.

    Args:
        names: what a message calls the questions; they are counted if there are none.

    Raises:
        RunStopped: a value is NaN or infinite; names checkpoint and question.
    """
    for number, value in enumerate(values):
        if not math.isfinite(value):
            name = names[number] if names else f"question {number + 1} of {len(values)}"
            raise RunStopped(
                f"checkpoint {checkpoint} has no answer to {name}: its numbers are not finite ({value}); in "
                "fp16 they may overflow: pass --precision bf16 or fp32; in those its weights are broken: use "
                "another checkpoint"
            )
