"""VideoLLaMA3 as its authors release it (remote code) -> transformers' own format, weight by weight.

    model.vision_encoder.*          -> model.vision_model.*   (training saves vision_encoder.vision_encoder.*)
    model.mm_projector.*            -> model.projector.*
    model.embed_tokens|layers|norm  -> model.language_model.*
    lm_head                         -> lm_head; nothing where it is tied to the embedding

Every weight must have a place and every place a weight, or nothing is written. `original.py` converts the
configs, the tokenizer and the processor.
"""

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoProcessor, VideoLlama3Config, VideoLlama3ForConditionalGeneration

from moss_vllm.runtime.files import is_filled, read_json, readable
from moss_vllm.runtime.progress import show_progress
from moss_vllm.vlm.fit import HEAD
from moss_vllm.vlm.places import INDEX, WEIGHTS
from moss_vllm.vlm.video_llama3 import original

FILE_BYTES = 10**9  # of a file of the output, and roughly of the memory in use
TYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PREFIXES = (  # the first that fits is replaced
    ("model.vision_encoder.vision_encoder.", "model.vision_model."),
    ("model.vision_encoder.", "model.vision_model."),
    ("model.mm_projector.", "model.projector."),
    ("model.", "model.language_model."),
)
EMBEDDING_WEIGHT = "model.language_model.embed_tokens.weight"
CONVERTED_PARTS: dict[str, tuple[str, ...]] = {
    "vision encoder": ("model.vision_model.",),
    "projector": ("model.projector.",),
    "language model": ("model.language_model.", "lm_head."),
}
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Weight:
    """One tensor on disk."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Conversion:
    """Summary of what was written."""

    tensors: dict[str, int]  # by part of the model
    parameters: dict[str, int]
    dtypes: dict[str, int]  # number of tensors of each type
    tied: bool
    added_tokens: list[str]
    new_rows: int  # of the embedding, for added tokens beyond its last row
    not_carried: list[str]  # settings that the native format has no place for


def convert(source: Path, out: Path) -> Conversion:
    """Write the release in the folder `source` to `out` in the native format.

    Args:
        source: config.json, safetensors, tokenizer and preprocessor files.
        out: a folder that does not exist or is empty.

    Raises:
        FileNotFoundError: a file of the release is missing.
        FileExistsError: `out` is not empty.
        ValueError: another kind of model, or weights that do not fit its config; the error names all of them.
    """
    settings = original.read_settings(source)
    _check_place(source, out)
    weights = read_headers(weight_files(source))
    tokenizer, added = original.native_tokenizer(source, settings)
    dtype = TYPE_NAMES[Counter(weight.dtype for weight in weights).most_common(1)[0][0]]
    config = original.native_config(settings, tokenizer, dtype=dtype)
    processor = original.native_processor(source, settings, tokenizer)
    unused = original.not_carried(source, settings)
    shapes = native_shapes(config)
    places = place_weights(source, weights, shapes)

    stored, width = shapes[EMBEDDING_WEIGHT]
    rows = max(stored, config.image_token_id + 1, config.video_token_id + 1)
    shapes |= {name: (rows, width) for name in (EMBEDDING_WEIGHT, HEAD) if name in shapes}
    language: Any = config.text_config
    language.vocab_size = rows

    part = out.with_name(f".{out.name}.part")
    if part.exists():
        raise FileExistsError(
            f"{part}: belongs to a conversion that was killed or is running; remove it if none is running"
        )
    part.mkdir(parents=True)
    try:
        config.save_pretrained(part)
        processor.save_pretrained(part)
        generation = original.generation_settings(source, settings)
        (part / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        write_weights(places, shapes, part, like=settings["image_token_index"])
        _check_written(part, shapes, config)
        if out.exists():
            out.rmdir()
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)

    parts = {
        title: [shape for name, shape in shapes.items() if name.startswith(prefixes)]
        for title, prefixes in CONVERTED_PARTS.items()
    }
    return Conversion(
        tensors={title: len(of_part) for title, of_part in parts.items()},
        parameters={title: sum(map(math.prod, of_part)) for title, of_part in parts.items()},
        dtypes=dict(Counter(TYPE_NAMES[weight.dtype] for weight in places.values())),
        tied=HEAD not in shapes,
        added_tokens=added,
        new_rows=rows - stored,
        not_carried=unused,
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a release.

    Raises:
        FileNotFoundError: there are none, or not all that the index names.
        ValueError: pickled weights, an adapter, or files that the index does not name.
    """
    for name in ("adapter_config.json", "non_lora_trainables.bin"):
        if (folder / name).exists():
            raise ValueError(f"{folder}: {name} belongs to a LoRA run; merge it into its base model first")
    present = {file.name for file in folder.glob("*.safetensors")}
    pickled = [file.name for end in ("bin", "pt", "pth") for file in folder.glob(f"*.{end}")]
    if pickled and not present:
        raise ValueError(
            f"{folder}: the weights are pickled ({', '.join(sorted(pickled))}), and opening such a file "
            "can run code; use a release with safetensors"
        )
    listed = {WEIGHTS}
    if (folder / INDEX).is_file():
        listed = set(read_json(folder / INDEX, original.RELEASE_REMEDY)["weight_map"].values())
    if missing := sorted(listed - present):
        raise FileNotFoundError(f"{folder}: {', '.join(missing)} not there; download the release again")
    if extra := sorted(present - listed):
        raise ValueError(
            f"{folder}: {', '.join(extra)} not named by {INDEX}; move files of other models elsewhere"
        )
    return [folder / name for name in sorted(listed)]


def read_headers(files: Iterable[Path]) -> list[Weight]:
    """Name, shape and type of every weight in the files; the contents stay on disk.

    Raises:
        ValueError: a file that is cut short, or weights of a quantised model.
    """
    weights = []
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():
                    view = opened.get_slice(name)
                    weights.append(Weight(file, name, tuple(view.get_shape()), view.get_dtype()))
        except SafetensorError as error:  # the header has the length of the file
            raise ValueError(
                f"{file}: cannot be read as safetensors ({error}); the file is cut short or damaged, "
                "download it again"
            ) from error
    if unsupported := [
        f"{weight.name} ({weight.dtype})" for weight in weights if weight.dtype not in TYPE_NAMES
    ]:
        raise ValueError(
            f"{weights[0].file.parent}: weights can be {', '.join(TYPE_NAMES)}, not "
            f"{', '.join(unsupported)}; use a release that is not quantised"
        )
    return weights


def native_name(name: str) -> str:
    """The name in the native format, by prefix alone."""
    for old, new in PREFIXES:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def native_shapes(config: VideoLlama3Config) -> Shapes:
    """The shape of every weight of a native checkpoint; a head tied to the embedding is not a weight."""
    with torch.device("meta"):
        model = VideoLlama3ForConditionalGeneration(config)
    model.tie_weights()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if model.lm_head.weight is model.get_input_embeddings().weight:
        del shapes[HEAD]
    return shapes


def place_weights(source: Path, weights: Iterable[Weight], shapes: Shapes) -> dict[str, Weight]:
    """The weight for every native name.

    Raises:
        ValueError: weights without a place, of another shape, twice or missing, all named; or a stored head
            that differs from the embedding it is tied to.
    """
    places: dict[str, Weight] = {}
    wrong = []
    for weight in weights:
        name = native_name(weight.name)
        if name in places:
            wrong.append(f"{weight.name} is the same as {places[name].name}")
        elif name not in shapes and name != HEAD:
            wrong.append(f"{weight.name} has no place")
        elif weight.shape != shapes.get(name, weight.shape):
            wrong.append(f"{weight.name} is {weight.shape} instead of {shapes[name]}")
        places[name] = weight
    wrong += [f"{name} is missing" for name in shapes if name not in places]
    if wrong:
        raise ValueError(
            f"{source}: {len(wrong)} weights do not fit config.json: {'; '.join(wrong)}. Merge adapters, and "
            "take all files from one release"
        )
    if HEAD not in shapes and HEAD in places:
        if not torch.equal(_read(places.pop(HEAD)), _read(places[EMBEDDING_WEIGHT])):
            raise ValueError(
                f"{source}: tie_word_embeddings is true in config.json, but {HEAD} is not the embedding; "
                "make it false if the head was trained"
            )
    return places


def write_weights(places: Mapping[str, Weight], shapes: Shapes, folder: Path, *, like: int) -> None:
    """Copy the weights in the type they are stored in; rows beyond a weight's last repeat its row `like`."""
    sizes = {
        name: math.prod(shapes[name]) * getattr(torch, TYPE_NAMES[weight.dtype]).itemsize
        for name, weight in places.items()
    }
    groups: list[list[str]] = [[]]
    for name in places:
        if groups[-1] and sum(sizes[n] for n in groups[-1]) + sizes[name] > FILE_BYTES:
            groups.append([])
        groups[-1].append(name)
    weight_map: dict[str, str] = {}
    for number, names in show_progress(enumerate(groups, start=1), len(groups), "files written"):
        file = WEIGHTS if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {}
        for name in names:
            tensors[name] = _read(places[name])
            if more := shapes[name][0] - len(tensors[name]):
                tensors[name] = torch.cat([tensors[name], tensors[name][like].expand(more, -1)])
        save_file(tensors, folder / file, {"format": "pt"})
        readable(folder / file)
        weight_map |= dict.fromkeys(names, file)
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _check_place(source: Path, out: Path) -> None:
    if out.resolve() == source.resolve():
        raise ValueError(f"{out}: is the release itself; give another folder to write to")
    if is_filled(out):
        raise FileExistsError(f"{out}: exists and is not an empty folder; give another, or remove it")


def _check_written(folder: Path, shapes: Shapes, config: VideoLlama3Config) -> None:
    processor = AutoProcessor.from_pretrained(str(folder))
    written = {weight.name: weight.shape for weight in read_headers(weight_files(folder))}
    ids = (processor.image_token_id, processor.video_token_id)
    if written != shapes or ids != (config.image_token_id, config.video_token_id) or ids[0] == ids[1]:
        raise RuntimeError(f"{folder}: does not read back as it was written; please report this")


def _read(weight: Weight) -> Tensor:
    with safe_open(weight.file, "pt") as opened:
        return opened.get_tensor(weight.name)
