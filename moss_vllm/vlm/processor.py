"""The processor of a base model or a checkpoint; one of another kind, or that names code, is refused."""

from pathlib import Path
from typing import Any

from transformers import AutoProcessor, VideoLlama3Processor

from moss_vllm.vlm import fit
from moss_vllm.vlm.base import blame, check_kind, resolve

PROCESSOR_FILES = ["processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"]
PROCESSOR_FILES += ["tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"]


def load_processor(source: str | Path, revision: str | None = None) -> VideoLlama3Processor:
    """The processor of a base model.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: another kind of model.
    """
    check_kind(source, revision)
    return open_processor(resolve(source), revision)


def open_processor(folder: str | Path, revision: str | None = None) -> VideoLlama3Processor:
    """The processor of a folder or hub id; one that names code is refused, without a question."""
    how: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        processor = AutoProcessor.from_pretrained(str(folder), **how)
    except Exception as error:  # of tokenizers, which has no class of its own, and many more
        blame(folder, PROCESSOR_FILES, revision)
        raise ValueError(
            f"{folder}: its processor cannot be read ({fit.tell(error)}); use a complete checkpoint"
        ) from error
    if not isinstance(processor, VideoLlama3Processor):
        raise ValueError(
            f"{folder}: its processor is a {type(processor).__name__}, not VideoLLaMA3's; use a complete "
            "checkpoint"
        )
    return processor


def check_processor(source: str | Path, processor: VideoLlama3Processor, config: Any) -> None:
    """ValueError for a processor that writes other patches or tokens than the model of `config` reads."""
    names = {
        "patch_size": [config.vision_config.patch_size, processor.image_processor.patch_size],
        "patch_size of videos": [config.vision_config.patch_size, processor.video_processor.patch_size],
        "image_token_id": [config.image_token_id, processor.image_token_id],
        "video_token_id": [config.video_token_id, processor.video_token_id],
    }
    wrong = [
        f"{name} {own}, the model's is {wanted}" for name, (wanted, own) in names.items() if own != wanted
    ]
    last, rows = max(processor.tokenizer.get_vocab().values()), config.text_config.vocab_size
    if last >= rows:
        wrong.append(f"a token {last}, the model knows {rows}")
    if wrong:
        raise ValueError(f"{source}: its processor has {'; '.join(wrong)}; take both from one checkpoint")
