"""A model's own generation config in greedy answers, applied by transformers' logits processors."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

LogitsRule = Callable[[Tensor, Tensor], Tensor]  # token ids (1, S) so far, logits (1, C) -> logits (1, C)

# Settings that change the likeliest token are followed; with these values they change nothing.
FOLLOWED: dict[str, Any] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), 1.0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), 0),
    **dict.fromkeys(("min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty")),
    "remove_invalid_values": False,
}
# Settings incompatible with greedy decoding of this model alone are not followed; a line on stderr says so.
NOT_FOLLOWED: dict[str, Any] = {
    **{"num_beams": 1, "num_return_sequences": 1, "guidance_scale": 1.0, "token_healing": False},
    **dict.fromkeys(("stop_strings", "max_time", "penalty_alpha", "dola_layers", "watermarking_config")),
    **dict.fromkeys(("constraints", "force_words_ids")),
}
# Arguments of `generate` for greedy answers; None because it warns of sampling settings otherwise.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
GREEDY: dict[str, Any] = {
    **NOT_FOLLOWED,
    **dict.fromkeys((*SAMPLING, "max_length", "prompt_lookup_num_tokens")),
    "do_sample": False,
}


def followed(model: PreTrainedModel) -> dict[str, Any]:
    """Settings of the model's generation config that change its greedy answers."""
    return _set(model, FOLLOWED)


def not_followed(model: PreTrainedModel) -> str:
    """A line about settings that greedy answers cannot follow; empty if there are none."""
    ignored = ", ".join(f"{name}={value!r}" for name, value in _set(model, NOT_FOLLOWED).items())
    return f"the model's generation config has {ignored}: not followed, answers are greedy" if ignored else ""


def end_ids(model: PreTrainedModel) -> list[int]:
    """Tokens at which `generate` ends an answer."""
    ends: Any = model.generation_config.eos_token_id
    return list(ends) if isinstance(ends, Sequence) else [] if ends is None else [ends]


def _set(model: PreTrainedModel, usual: dict[str, Any]) -> dict[str, Any]:
    values = {name: getattr(model.generation_config, name, None) for name in usual}
    return {
        name: str(value) if isinstance(value, dict) else value  # json has no tuples of tokens as keys
        for name, value in values.items()
        if value is not None and value != usual[name]
    }


def logits_processors(model: PreTrainedModel, ids: Tensor, max_new_tokens: int) -> Sequence[LogitsRule]:
    """The logits processors that `generate` uses after a prompt.

    Shape:
        ids: (S,), on the model's device.
    """
    generate: Any = model.generate
    arguments = {"max_new_tokens": max_new_tokens, "custom_generate": _take_processors, **GREEDY}
    rules: Sequence[LogitsRule] = generate(
        input_ids=ids[None], attention_mask=torch.ones_like(ids[None]), **arguments
    )
    return rules


def _take_processors(
    model: Any,
    input_ids: Any,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    **_: Any,
) -> Any:
    return logits_processor


def logits_rule(
    model: PreTrainedModel, prompts: Sequence[Sequence[Tensor]], max_new_tokens: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """The generation config's changes to logits (V, N, C) after the new tokens (V, N, T).

    Shape:
        prompts: of each video its questions' token ids (S,).
    """
    embeddings: Any = model.get_input_embeddings()
    rows = [
        (v, n, ids.to(embeddings.weight.device))
        for v, some in enumerate(prompts)
        for n, ids in enumerate(some)
    ]
    if not logits_processors(model, rows[0][2], max_new_tokens):
        return lambda new, logits: logits
    rules = [logits_processors(model, ids, max_new_tokens) for _, _, ids in rows]

    def process(new: Tensor, logits: Tensor) -> Tensor:
        for (video, number, ids), rule in zip(rows, rules, strict=True):
            before = torch.cat([ids, new[video, number]])[None]
            row = logits[video, number][None]
            for each in rule:
                row = each(before, row)
            logits[video, number] = row[0]
        return logits

    return process
