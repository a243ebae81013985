"""The families of Video-LLMs that MOSS is attached to, and all that differs between them: a row per family.

The files beside this one, and the rooms above, ask here for a model's family; only this file names the
modules of one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import (
    PretrainedConfig,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
    VideoLlama3Processor,
)

from moss_vllm.training.optim import Rate
from moss_vllm.vlm.memory import Memory
from moss_vllm.vlm.video_llama3 import chat, memory, model, original


@dataclass(frozen=True)
class Family:
    """What training, checkpoints and evaluation need to know of a kind of model.

    Args:
        title: its name in messages.
        config, model: transformers' classes, as released.
        moss_config, moss_model: those of the same model with MOSS.
        moss: the class of its MOSS.
        processor: the class of its processor.
        add_moss: a released config and `moss_*` settings -> the config with MOSS.
        moss_settings: a config -> every setting of its MOSS; None for a config without.
        make_moss: width of the vision encoder and every setting -> the module.
        layers: section of config.json -> pattern of the weights whose group counts its layers.
        trained_whole: ends of the names of the modules that are trained whole beside LoRA, MOSS apart.
        lora_targets: pattern of the names of the linear layers with LoRA.
        not_quantized: names of the modules that stay in full where a base is opened in 4 bits.
        rates: which parameter trains at which rate.
        encode, collate: conversations about clips -> inputs of the model, one by one and as a batch.
        conversation_text: the layout of a conversation, with the video's token where the video goes.
        text_with_times: the text that the processor makes of a conversation, with one token per frame.
        tokens_per_frame: processor, height and width -> tokens of a frame.
        video_inputs: names of the inputs that an example has only with a video.
        estimate_memory: the memory of a training step.
    """

    title: str
    config: type[PretrainedConfig]
    model: Any
    moss_config: type[PretrainedConfig]
    moss_model: Any
    moss: type[nn.Module]
    processor: Any
    add_moss: Callable[..., PretrainedConfig]
    moss_settings: Callable[[PretrainedConfig], dict[str, Any] | None]
    make_moss: Callable[[int, Mapping[str, Any]], nn.Module]
    layers: Mapping[str, str]
    trained_whole: tuple[str, ...]
    lora_targets: str
    not_quantized: tuple[str, ...]
    rates: tuple[Rate, ...]
    encode: Callable[..., dict[str, Tensor]]
    collate: Callable[..., dict[str, Tensor]]
    conversation_text: Callable[..., str]
    text_with_times: Callable[..., str]
    tokens_per_frame: Callable[..., int]
    video_inputs: tuple[str, ...]
    estimate_memory: Callable[..., Memory]

    def has_moss(self, config: PretrainedConfig) -> bool:
        """Whether a model of this config has MOSS."""
        return isinstance(config, self.moss_config)


VIDEO_LLAMA3 = Family(
    title="VideoLLaMA3",
    config=VideoLlama3Config,
    model=VideoLlama3ForConditionalGeneration,
    moss_config=model.MossVideoLlama3Config,
    moss_model=model.MossVideoLlama3ForConditionalGeneration,
    moss=model.VideoMOSS,
    processor=VideoLlama3Processor,
    add_moss=model.moss_config,
    moss_settings=model.moss_settings,
    make_moss=model.make_moss,
    layers={
        "text_config": r"language_model\..*?layers\.(\d+)\.",
        "vision_config": r"vision_model\..*?layers\.(\d+)\.",
    },
    trained_whole=("projector",),
    # Full paths from the root: leaf names alone ("q_proj") would also match the vision tower.
    lora_targets=r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
    not_quantized=("model.vision_model", "model.projector", "lm_head"),
    # Sec. 4.5 of the paper. peft keeps a frozen original beside each module it saves: first row.
    rates=(
        Rate("originals", r"\.original_module\.", None),
        Rate("moss", r"vision_model\.moss\.", 1e-3),
        Rate("projector", r"\.projector\.", 1e-4),
        Rate("llm lora", r"language_model\..*\.lora_[AB]\.", 1e-5),
        Rate("frozen", r"\.(vision_model|language_model|lm_head)\.", None),
    ),
    encode=chat.encode,
    collate=chat.collate,
    conversation_text=chat.conversation_text,
    text_with_times=chat.text_with_times,
    tokens_per_frame=chat.tokens_per_frame,
    video_inputs=chat.PER_VIDEO,
    estimate_memory=memory.estimate_training_memory,
)
VIDEO_LLM_FAMILIES = (VIDEO_LLAMA3,)
# The settings of MOSS that a config and run.json hold, each with the paper's value; the same in every family.
MOSS_SETTINGS = {name: getattr(model.MossVideoLlama3VisionConfig, name) for name in model.MOSS_FIELDS}
OTHER_MODEL_TYPES = {
    original.MODEL_TYPE: "convert the authors' release first: python scripts/convert_videollama3.py SOURCE "
    "OUT, where SOURCE is its folder and OUT what to give here"
}


def find_family(model_type: Any, source: Any) -> Family:
    """The family of a config.json's model_type.

    Args:
        model_type: with or without MOSS.
        source: named in the error.

    Raises:
        ValueError: no family has it.
    """
    for family in VIDEO_LLM_FAMILIES:
        if model_type in (family.config.model_type, family.moss_config.model_type):
            return family
    names = ", ".join(f"{family.title} ('{family.config.model_type}')" for family in VIDEO_LLM_FAMILIES)
    remedy = OTHER_MODEL_TYPES.get(str(model_type), "give a folder or hub id of one of these")
    raise ValueError(
        f"{source}: model_type '{model_type}' is of none of the families that MOSS attaches to: {names}; "
        f"{remedy}"
    )


def family_of(config: PretrainedConfig) -> Family:
    """The family of an opened model's config."""
    return find_family(config.model_type, "this model")


def family_with(processor: Any) -> Family:
    """The family that a processor belongs to.

    Raises:
        ValueError: it belongs to none.
    """
    for family in VIDEO_LLM_FAMILIES:
        if isinstance(processor, family.processor):
            return family
    names = ", ".join(family.title for family in VIDEO_LLM_FAMILIES)
    raise ValueError(f"its processor is a {type(processor).__name__}, of none of the families {names}")
