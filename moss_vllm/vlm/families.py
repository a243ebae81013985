"""The families of Video-LLMs that MOSS is attached to, and all that differs between them: a row per family.

The files beside this one, and the rooms above, ask here for a model's family; only this file and those of
`hosts/` name the modules of one. VideoLLaMA3 has classes of its own with MOSS; the others stay transformers'
own, to which `hosts/` attaches it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from moss_vllm.training.optim import Rate
from moss_vllm.vlm.hosts import chat as host_chat
from moss_vllm.vlm.hosts.by_frame import INTERNVL, LLAVA_ONEVISION, PERCEPTION_LM, SMOLVLM
from moss_vllm.vlm.hosts.by_grid import GLM4V, QWEN2_VL, QWEN3_VL, QWEN25_VL
from moss_vllm.vlm.hosts.host import Host
from moss_vllm.vlm.hosts.memory import TOWERS, estimate_memory_of
from moss_vllm.vlm.hosts.opening import HostModel, add_moss
from moss_vllm.vlm.hosts.positions import place_by_model, place_by_time, place_in_order
from moss_vllm.vlm.memory import Memory
from moss_vllm.vlm.video_llama3 import chat, memory, model, original

MOSS_TYPE = "moss_"  # before the model_type of a released model: one with MOSS


@dataclass(frozen=True)
class Family:
    """What training, checkpoints and evaluation need to know of a kind of model.

    Args:
        title: its name in messages.
        config, model: transformers' classes, as released.
        moss_model: what opens the same model with MOSS: a class, or a `HostModel`.
        processor: the class of its processor.
        add_moss: a released config and `moss_*` settings -> the config with MOSS.
        tower: name of the vision tower; `moss` below it is MOSS.
        projector: pattern of the names of the modules between tower and language model, trained whole.
        language_model: name of the language model.
        lora_targets: pattern of the names of the linear layers with LoRA.
        chat: conversations about clips as inputs of the model; `vlm/video_llama3/chat.py` and the objects of
            `vlm/hosts/chat.py` have the same functions.
        place: the model and its inputs -> the inputs, with `position_ids` where the family's language model
            has places in time and space.
        estimate_memory: the memory of a training step; None where it is not counted.
        compresses: whether its processor can drop tokens of patches that did not change.
    """

    title: str
    config: type[PretrainedConfig]
    model: Any
    moss_model: Any
    processor: Any
    add_moss: Callable[..., PretrainedConfig]
    tower: str
    projector: str
    language_model: str
    lora_targets: str
    chat: Any
    place: Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]
    estimate_memory: Callable[..., Memory] | None
    compresses: bool = False

    @property
    def model_types(self) -> tuple[str, str]:
        """Of config.json, without and with MOSS."""
        return self.config.model_type, MOSS_TYPE + self.config.model_type

    @property
    def opens_stock_classes(self) -> bool:
        """Whether a model with MOSS is of transformers' own class, to which MOSS is attached."""
        return isinstance(self.moss_model, HostModel)

    @property
    def mixes_lengths(self) -> bool:
        """Whether a batch may have clips of different numbers of frames."""
        return self.title != LLAVA_ONEVISION.title

    def has_moss(self, config: PretrainedConfig) -> bool:
        """Whether a model of this config has MOSS."""
        return hasattr(config.vision_config, next(iter(MOSS_SETTINGS)))

    def moss_settings(self, config: PretrainedConfig) -> dict[str, Any] | None:
        """Every setting of the MOSS of a config, as json stores it; None for a config without."""
        if not self.has_moss(config):
            return None
        values = {name: getattr(config.vision_config, name) for name in MOSS_SETTINGS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def trained_whole(self, base: PreTrainedModel) -> list[str]:
        """Names of the modules that are trained whole beside LoRA: the projector's, and MOSS."""
        names = [name for name, _ in base.named_modules() if re.fullmatch(self.projector, name)]
        return [*names, *([f"{self.tower}.moss"] if self.has_moss(base.config) else [])]

    def encoded_by(self, base: nn.Module) -> nn.Module:
        """The module that gives the language model its video tokens."""
        inside = self.projector.startswith(re.escape(self.tower))
        return base.get_submodule(self.tower if inside else self.projector.replace("\\", ""))

    def frames_per_step(self, config: PretrainedConfig) -> int:
        """Frames that the encoder makes one step of time of."""
        return self.moss_model.host.frames_per_step(config) if self.opens_stock_classes else 1

    @property
    def not_quantized(self) -> list[str]:
        """Names of the modules that stay in full where a base is opened in 4 bits."""
        return [self.tower, self.projector.partition("(")[0].replace("\\", "").rstrip("."), "lm_head"]

    @property
    def rates(self) -> tuple[Rate, ...]:
        """Which parameter trains at which rate: Sec. 4.5 of the paper."""
        tower, language_model = re.escape(self.tower), re.escape(self.language_model)
        return (
            # peft keeps a frozen original beside each module it saves: first row.
            Rate("originals", r"\.original_module\.", None),
            Rate("moss", rf"{tower}\.moss\.", 1e-3),
            Rate("projector", rf"{self.projector}\.", 1e-4),
            Rate("llm lora", rf"{language_model}\..*\.lora_[AB]\.", 1e-5),
            Rate("frozen", rf"({tower}|{language_model}|lm_head)\.|\.image_newline$", None),
        )


def _of_host(
    host: Host,
    config: Any,
    stock: Any,
    processor: Any,
    *,
    chat: Any,
    place: Callable[..., dict[str, Tensor]] = place_in_order,
    language_model: str = "model.language_model",
) -> Family:
    """The row of a family whose classes stay transformers' own."""
    return Family(
        title=host.title,
        config=config,
        model=stock,
        moss_model=HostModel(stock, host),
        processor=processor,
        add_moss=partial(add_moss, host),
        tower=host.tower,
        projector=host.projector,
        language_model=language_model,
        lora_targets=rf"{re.escape(language_model)}\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
        chat=chat,
        place=place,
        estimate_memory=estimate_memory_of(host) if host.title in TOWERS else None,
    )


VIDEO_LLAMA3 = Family(
    title="VideoLLaMA3",
    config=transformers.VideoLlama3Config,
    model=transformers.VideoLlama3ForConditionalGeneration,
    moss_model=model.MossVideoLlama3ForConditionalGeneration,
    processor=transformers.VideoLlama3Processor,
    add_moss=model.moss_config,
    tower="model.vision_model",
    projector=r"model\.projector",
    language_model="model.language_model",
    # Full paths from the root: leaf names alone ("q_proj") would also match the vision tower.
    lora_targets=r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
    chat=chat,
    place=place_in_order,
    estimate_memory=memory.estimate_training_memory,
    compresses=True,
)
HOST_FAMILIES = (
    _of_host(
        QWEN25_VL,
        transformers.Qwen2_5_VLConfig,
        transformers.Qwen2_5_VLForConditionalGeneration,
        transformers.Qwen2_5_VLProcessor,
        chat=host_chat.QWEN25_VL_CHAT,
        place=place_by_time,
    ),
    _of_host(
        QWEN3_VL,
        transformers.Qwen3VLConfig,
        transformers.Qwen3VLForConditionalGeneration,
        transformers.Qwen3VLProcessor,
        chat=host_chat.QWEN3_VL_CHAT,
        place=place_by_model,
    ),
    _of_host(
        SMOLVLM,
        transformers.SmolVLMConfig,
        transformers.SmolVLMForConditionalGeneration,
        transformers.SmolVLMProcessor,
        language_model="model.text_model",
        chat=host_chat.SMOLVLM_CHAT,
    ),
    _of_host(
        QWEN2_VL,
        transformers.Qwen2VLConfig,
        transformers.Qwen2VLForConditionalGeneration,
        transformers.Qwen2VLProcessor,
        chat=host_chat.QWEN2_VL_CHAT,
        place=place_by_time,
    ),
    _of_host(
        GLM4V,
        transformers.Glm4vConfig,
        transformers.Glm4vForConditionalGeneration,
        transformers.Glm4vProcessor,
        chat=host_chat.GLM4V_CHAT,
        place=partial(place_by_model, frame_token="image_token_id"),
    ),
    _of_host(
        INTERNVL,
        transformers.InternVLConfig,
        transformers.InternVLForConditionalGeneration,
        transformers.InternVLProcessor,
        chat=host_chat.INTERNVL_CHAT,
    ),
    _of_host(
        LLAVA_ONEVISION,
        transformers.LlavaOnevisionConfig,
        transformers.LlavaOnevisionForConditionalGeneration,
        transformers.LlavaOnevisionProcessor,
        chat=host_chat.LLAVA_ONEVISION_CHAT,
    ),
    _of_host(
        PERCEPTION_LM,
        transformers.PerceptionLMConfig,
        transformers.PerceptionLMForConditionalGeneration,
        transformers.PerceptionLMProcessor,
        chat=host_chat.PERCEPTION_LM_CHAT,
    ),
)
VIDEO_LLM_FAMILIES = (VIDEO_LLAMA3, *HOST_FAMILIES)
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
        if model_type in family.model_types:
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
        if type(processor) is family.processor:
            return family
    names = ", ".join(family.title for family in VIDEO_LLM_FAMILIES)
    raise ValueError(f"its processor is a {type(processor).__name__}, of none of the families {names}")
