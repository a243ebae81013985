"""Opening the processor of a base model or a checkpoint; one that names code is refused."""

from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from moss_vllm.vlm import fit
from moss_vllm.vlm.base import blame, check_kind
from moss_vllm.vlm.families import family_with
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


def check_processor(source: str | Path, processor: Any, config: Any) -> None:
    """ValueError for a processor that writes other patches or tokens than the model of `config` reads."""
    pairs = {
        "patch_size": [config.vision_config.patch_size, processor.image_processor.patch_size],
        "patch_size of videos": [config.vision_config.patch_size, processor.video_processor.patch_size],
        "image_token_id": [config.image_token_id, processor.image_token_id],
        "video_token_id": [config.video_token_id, processor.video_token_id],
    }
    wrong = [
        f"{name} {own}, the model's is {wanted}" for name, (wanted, own) in pairs.items() if own != wanted
    ]
    last, rows = max(processor.tokenizer.get_vocab().values()), config.text_config.vocab_size
    if last >= rows:
        wrong.append(f"a token {last}, the model has {rows}")
    if wrong:
        raise ValueError(f"{source}: its processor has {'; '.join(wrong)}; take both from one checkpoint")
