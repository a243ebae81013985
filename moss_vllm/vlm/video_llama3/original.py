"""The configs, tokenizer and processor of the authors' VideoLLaMA3 release in transformers' own classes.

Reference: inference/transformers_api/ and videollama3/model/ of DAMO-NLP-SG/VideoLLaMA3. The Python files of
a release are never read.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    PreTrainedTokenizerFast,
    VideoLlama3Config,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from moss_vllm.runtime.files import read_json
from moss_vllm.vlm.video_llama3.miniature import CHAT_TEMPLATE

MODEL_TYPE, VISION_TYPE, PROJECTOR_TYPE = "videollama3_qwen2", "videollama3_vision_encoder", "mlp2x_gelu"
FEATURE_TOKEN = "<image>"
RELEASE_REMEDY = "the release is incomplete or damaged, download it again"
IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"

# Fields copied by name; a missing one has the same default in both projects' classes.
TEXT_FIELDS = """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads hidden_act max_position_embeddings initializer_range rms_norm_eps use_cache
    tie_word_embeddings use_sliding_window sliding_window max_window_layers attention_dropout
    bos_token_id eos_token_id pad_token_id""".split()
VISION_FIELDS = """hidden_size intermediate_size num_hidden_layers num_attention_heads num_channels
    patch_size hidden_act layer_norm_eps attention_dropout""".split()
IMAGE_FIELDS = "do_resize resample do_rescale rescale_factor do_normalize do_convert_rgb".split()
REQUIRED_FIELDS = [*TEXT_FIELDS[:6], "image_token_index"]
TOKENIZER_FIELDS = "bos_token eos_token pad_token unk_token model_max_length padding_side".split()
# The authors' defaults, where transformers has others.
IMAGE_DEFAULTS = {"patch_size": 14, "min_tokens": 16, "max_tokens": 16384}
PROCESSOR_DEFAULTS = {"image_merge_size": 1, "video_merge_size": 2, "fps": 1, "max_frames": 128}
# Fields that are read under another name, or that concern only the authors' classes.
OTHER_FIELDS = """rope_theta rope_scaling vision_encoder_config vision_encoder mm_projector_type torch_dtype
    image_token_index use_token_compression image_mean image_std chat_template model_type architectures
    auto_map transformers_version _name_or_path image_processor_type processor_class""".split()


def read_settings(source: Path) -> dict[str, Any]:
    """config.json of a release, with the encoder's settings under `vision_encoder_config`.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: another kind of model, or no settings of its encoder.
    """
    if not (source / "config.json").is_file():
        raise FileNotFoundError(
            f"{source}: no config.json there; give the folder of a downloaded release (hf download "
            "DAMO-NLP-SG/VideoLLaMA3-2B --local-dir FOLDER)"
        )
    settings = read_json(source / "config.json", RELEASE_REMEDY)
    kind = settings.get("model_type")
    if kind == VideoLlama3Config.model_type:
        raise ValueError(f"{source}: is native already (model_type '{kind}'); use it without conversion")
    # A training run stores the encoder's hub id under the second name, a release its settings under either.
    vision = settings.get("vision_encoder_config") or settings.get("vision_encoder")
    projector = settings.get("mm_projector_type", PROJECTOR_TYPE)
    if kind == MODEL_TYPE and not isinstance(vision, dict):
        raise ValueError(
            f"{source}: config.json has vision_encoder={vision!r} and no vision_encoder_config, as a "
            "training run saves it; put the encoder's config.json into it under that name, and the encoder's "
            "preprocessor_config.json beside it"
        )
    vision_kind = vision.get("model_type", VISION_TYPE) if isinstance(vision, dict) else None
    if (kind, vision_kind, projector) != (MODEL_TYPE, VISION_TYPE, PROJECTOR_TYPE):
        raise ValueError(
            f"{source}: model '{kind}' with encoder '{vision_kind}' and projector '{projector}' is not "
            f"VideoLLaMA3, which has '{MODEL_TYPE}', '{VISION_TYPE}' and '{PROJECTOR_TYPE}'"
        )
    if missing := [name for name in REQUIRED_FIELDS if settings.get(name) is None]:
        raise ValueError(f"{source}: config.json has no {', '.join(missing)}; download it again")
    return {**settings, "vision_encoder_config": vision}


def native_config(
    settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, *, dtype: str
) -> VideoLlama3Config:
    """The native config of the model."""
    scaling = dict(settings.get("rope_scaling") or {})
    rope = {
        "rope_theta": settings.get("rope_theta", 10000.0),
        "rope_type": scaling.pop("type", "default"),
        **scaling,
    }
    text = {name: settings[name] for name in TEXT_FIELDS if name in settings}
    vision = settings["vision_encoder_config"]
    vocabulary = tokenizer.get_vocab()
    return VideoLlama3Config(
        text_config={"model_type": "qwen2", **text, "rope_parameters": rope, "dtype": dtype},
        vision_config={**{name: vision[name] for name in VISION_FIELDS if name in vision}, "dtype": dtype},
        image_token_id=vocabulary[IMAGE_TOKEN],
        video_token_id=vocabulary[VIDEO_TOKEN],
        tie_word_embeddings=text.get("tie_word_embeddings", False),
        architectures=["VideoLlama3ForConditionalGeneration"],
        dtype=dtype,
    )


def native_tokenizer(source: Path, settings: Mapping[str, Any]) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """The release's tokenizer, and the placeholders that were added to it.

    The authors use one placeholder, <image>, for features of images and frames; transformers has one for
    images and one for videos. Qwen2.5 has both, unused. The model never reads the embedding of a placeholder.

    Raises:
        ValueError: it cannot be read, or belongs to another release.
    """
    fields = read_json(source / "tokenizer_config.json", RELEASE_REMEDY)
    try:
        tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(
            f"{source / 'tokenizer.json'}: cannot be read ({error}); download it again"
        ) from error
    vocabulary = tokenizer.get_vocab()
    index, own = settings["image_token_index"], vocabulary.get(FEATURE_TOKEN)
    rows, last = settings["vocab_size"], max(vocabulary.values())
    if own != index or last >= rows:
        raise ValueError(
            f"{source}: config.json has {rows} tokens and image_token_index {index}, the tokenizer counts to "
            f"{last} and has {FEATURE_TOKEN} at {own}; take both from one release"
        )
    if lacking := [token for token in ("<|im_start|>", "<|im_end|>") if token not in vocabulary]:
        raise ValueError(f"{source}: the tokenizer has no {', '.join(lacking)}; it is not VideoLLaMA3's")
    added = [token for token in (IMAGE_TOKEN, VIDEO_TOKEN) if token not in vocabulary]
    tokenizer.add_special_tokens(added)
    kept = {name: fields[name] for name in TOKENIZER_FIELDS if fields.get(name) is not None}
    # A token is written as text, or as the fields of an AddedToken.
    kept = {name: value["content"] if isinstance(value, dict) else value for name, value in kept.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **kept), added


def native_processor(
    source: Path, settings: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast
) -> VideoLlama3Processor:
    """The release's preprocessing. Its limits count merged tokens, and transformers' limits count pixels.

    Raises:
        ValueError: patches of another size than the encoder's.
    """
    images = IMAGE_DEFAULTS | read_json(source / "preprocessor_config.json", RELEASE_REMEDY)
    options = PROCESSOR_DEFAULTS | _read_optional(source / "processor_config.json")
    patch = settings["vision_encoder_config"].get("patch_size", 16)
    if images["patch_size"] != patch:
        raise ValueError(
            f"{source}: patch_size is {images['patch_size']} in preprocessor_config.json, {patch} in the "
            "vision encoder's config; take both from one release"
        )
    common = {name: images[name] for name in IMAGE_FIELDS if name in images}
    common["image_mean"] = images.get("image_mean") or OPENAI_CLIP_MEAN
    common["image_std"] = images.get("image_std") or OPENAI_CLIP_STD

    def sizes(merge: int) -> dict[str, Any]:
        pixels = (patch * merge) ** 2
        size = {"shortest_edge": images["min_tokens"] * pixels, "longest_edge": images["max_tokens"] * pixels}
        return {"patch_size": patch, "merge_size": merge, "size": size}

    return VideoLlama3Processor(
        image_processor=VideoLlama3ImageProcessor(**common, **sizes(options["image_merge_size"])),
        tokenizer=tokenizer,
        video_processor=VideoLlama3VideoProcessor(
            **common,
            **sizes(options["video_merge_size"]),
            fps=options["fps"],
            max_frames=options["max_frames"],
            use_token_compression=settings.get("use_token_compression", True),
        ),
        chat_template=CHAT_TEMPLATE,
    )


def generation_settings(source: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The release's generation settings, with the token ids of its config where they have none."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: settings[name] for name in names if settings.get(name) is not None}
    generation = ids | _read_optional(source / "generation_config.json")
    return {name: value for name, value in generation.items() if name != "transformers_version"}


def not_carried(source: Path, settings: Mapping[str, Any]) -> list[str]:
    """Settings of the release that the native format has no place for, such as learning rates."""
    images = read_json(source / "preprocessor_config.json", RELEASE_REMEDY)
    files: dict[str, tuple[Mapping[str, Any], Iterable[str]]] = {
        "": (settings, TEXT_FIELDS),
        "vision_encoder_config.": (settings["vision_encoder_config"], VISION_FIELDS),
        "preprocessor_config.": (images, [*IMAGE_FIELDS, *IMAGE_DEFAULTS]),
        "processor_config.": (_read_optional(source / "processor_config.json"), PROCESSOR_DEFAULTS),
    }
    return [
        prefix + name
        for prefix, (fields, carried) in files.items()
        for name in fields
        if name not in {*carried, *OTHER_FIELDS}
    ]


def _read_optional(file: Path) -> dict[str, Any]:
    return read_json(file, RELEASE_REMEDY) if file.is_file() else {}
