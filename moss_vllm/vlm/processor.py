"""Opening the processor of a base model or a checkpoint; one that names code is refused."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from moss_vllm.runtime.quiet import quiet
from moss_vllm.vlm import fit
from moss_vllm.vlm.base import blame, check_kind
from moss_vllm.vlm.families import family_of, family_with
from moss_vllm.vlm.places import resolve

PROCESSOR_FILES = ["processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"]
PROCESSOR_FILES += ["tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"]


def load_processor(source: str | Path, revision: str | None = None) -> Any:
    """The processor of a base model.

    Raises:
        FileNotFoundError: a path that does not exist, or a hub id that cannot be reached.
        ValueError: a model of no family.
    """
    check_kind(source, revision)
    return open_processor(resolve(source), revision)


def open_processor(folder: str | Path, revision: str | None = None) -> Any:
    """The processor of a folder or hub id; none of its code is run, and the user is not asked to allow it.

    Raises:
        ValueError: it cannot be read, or is of no known family.
    """
    settings: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        with quiet():  # of a merged host: that its model_type is not transformers' own
            processor = AutoProcessor.from_pretrained(str(folder), **settings)
    except Exception as error:  # tokenizers raises plain Exception, transformers many kinds
        blame(folder, PROCESSOR_FILES, revision)
        raise ValueError(
            f"{folder}: its processor cannot be read ({fit.describe_error(error)}); use a complete checkpoint"
        ) from error
    try:
        family_with(processor)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}; use a complete checkpoint") from error
    return processor


def fit_clip_settings(
    processor: Any, settings: Mapping[str, Any], asked: Collection[str] = ()
) -> dict[str, Any]:
    """Clip settings as a processor's family takes them: squares of its own size, token compression or none.

    Args:
        processor: of one of the families.
        settings: `short_side_px`, `compress_tokens` and others.
        asked: names of the settings that the user gave, which are not replaced.

    Raises:
        ValueError: one that the user gave is impossible with this family.
    """
    family = family_with(processor)
    square_px = family.chat.frame_size(processor).square_px
    own: dict[str, tuple[Any, str]] = {}
    if not family.compresses:
        own["compress_tokens"] = (False, "has no compression of video tokens")
    if square_px is not None:
        own["short_side_px"] = (square_px, f"takes squares of {square_px} pixels alone")
    for name, (value, why) in own.items():
        if name in asked and settings[name] != value:
            raise ValueError(f"{family.title} {why}; leave {name} out, or set it to {value}")
    return {**settings, **{name: value for name, (value, _) in own.items()}}


def check_processor(source: str | Path, processor: Any, config: Any) -> None:
    """ValueError for a processor that writes other patches or tokens than the model of `config` reads."""
    family, own_family = family_of(config), family_with(processor)
    if family is not own_family:  # Qwen2-VL's processor says nothing of time, which Qwen2.5-VL reads
        raise ValueError(
            f"{source}: its processor is {own_family.title}'s, the model is a {family.title}; take both from "
            "one checkpoint"
        )
    vision, images, videos = config.vision_config, processor.image_processor, processor.video_processor
    pairs = [
        ("patch_size", vision, images),
        ("patch_size", vision, videos),
        ("temporal_patch_size", vision, videos),
        ("image_token_id", config, processor),
        ("video_token_id", config, processor),
    ]
    wrong = []
    for name, of_model, of_processor in pairs:
        wanted, own = getattr(of_model, name, None), getattr(of_processor, name, None)
        if own != wanted and None not in (own, wanted):  # not every family has each
            part = " of videos" if of_processor is videos else ""
            wrong.append(f"{name}{part} {own}, the model's is {wanted}")
    last, rows = max(processor.tokenizer.get_vocab().values()), config.text_config.vocab_size
    if last >= rows:
        wrong.append(f"a token {last}, the model has {rows}")
    if wrong:
        raise ValueError(f"{source}: its processor has {'; '.join(wrong)}; take both from one checkpoint")
