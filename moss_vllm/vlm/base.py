"""Opening base models: VideoLLaMA3 as released, or with MOSS, in full or in 4 bits, and knowing them again.

A base is a native VideoLLaMA3 folder or hub id, a folder that `scripts/merge.py` wrote, or "miniature".
"""

import copy
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
)
from transformers.utils.hub import extract_commit_hash

from moss_vllm.runtime.files import read_json
from moss_vllm.runtime.provenance import faults, read_header
from moss_vllm.runtime.quiet import quiet
from moss_vllm.vlm import fit
from moss_vllm.vlm.attention import choose_attention
from moss_vllm.vlm.video_llama3.miniature import MINIATURE
from moss_vllm.vlm.video_llama3.model import (
    MOSS_FIELDS,
    MossVideoLlama3Config,
    MossVideoLlama3ForConditionalGeneration,
    moss_config,
    moss_settings,
)

AUTHORS_MODEL_TYPE = "videollama3_qwen2"
# What a base says of itself beside its config: the miniature's record, and that of `scripts/merge.py`.
MERGED_FILE = "merged.json"
RECORDS = ("miniature.json", MERGED_FILE)
TO_TRAIN = "moss_to_train"  # in MERGED_FILE of a model without MOSS: the sizes that its own base names
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
IN_FULL = ["model.vision_model", "model.projector", "lm_head"]  # of a base in 4 bits


def load_base(
    source: str | Path,
    *,
    moss: dict[str, Any] | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    attention: str | None = None,
    quantize: bool = False,
    empty: bool = False,
) -> PreTrainedModel:
    """VideoLLaMA3 as released, or with a new zero-initialised MOSS of the settings given.

    MOSS is float32 whatever the rest is: run it under autocast. The model gets an attribute `opened_from`:
    base_model, base_revision and base_fingerprint.

    Args:
        source: as for `resolve`.
        moss: settings of a new MOSS; for a base that has one already, they must be the same.
        revision: of a hub id.
        dtype: of the weights but MOSS's; float32 if not given.
        attention: transformers' name of an implementation; None: `choose_attention`.
        quantize: keep the language model's linear layers in 4 bits (NF4), computed in bfloat16.
        empty: names and shapes alone, on torch's meta device: takes no memory.

    Raises:
        FileNotFoundError: a path that does not exist.
        ImportError: `quantize` without bitsandbytes.
        ValueError: another kind of model, wrong MOSS settings, or weights other than a new MOSS's missing.
    """
    path, dtype = resolve(source), dtype or torch.float32
    config, header = _open_config(source, revision)
    origin = _origin(path, revision)
    trained_moss = isinstance(config, MossVideoLlama3Config)
    if moss is not None:
        config = _with_moss(source, config, moss)
    loader: Any = VideoLlama3ForConditionalGeneration
    if isinstance(config, MossVideoLlama3Config):
        loader = MossVideoLlama3ForConditionalGeneration
    new = None if trained_moss else ".moss."
    fit.check_model(source, lambda: loader(copy.deepcopy(config)), header, new=new)
    blame(path, ["generation_config.json"], revision)  # transformers takes a broken one for none, in silence
    if attention is None:
        attention, _ = choose_attention("cuda" if torch.cuda.is_available() else "cpu", dtype)
    try:
        with quiet():  # its report of missing weights lists all of MOSS; ours is below
            model, info = loader.from_pretrained(
                path,
                config=config,
                revision=revision,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                output_loading_info=True,
                **({"quantization_config": _four_bits()} if quantize else {}),
                **({"device_map": "meta"} if empty else {}),
            )
    except (TypeError, LookupError, AttributeError, RecursionError, StrictDataclassError) as error:
        raise ValueError(f"{source}: cannot be opened ({fit.tell(error)}); fetch it again") from error
    missing = [key for key in info["missing_keys"] if trained_moss or ".moss." not in key]
    if wrong := sorted(missing) + sorted(info["unexpected_keys"]):
        raise ValueError(
            f"{source}: weights missing or left over: {', '.join(wrong[:10])}; use a complete checkpoint"
        )
    if any(value.dtype == torch.float64 for value in header.values()):
        _check_finite(source, model)
    if config.tie_word_embeddings:
        _check_tied(source, model)
    if isinstance(model, MossVideoLlama3ForConditionalGeneration):
        model.model.vision_model.moss.float()  # with its BatchNorm statistics
    model.opened_from = origin
    return cast(PreTrainedModel, model)


def resolve(source: str | Path) -> str:
    """The path or hub id behind `source`; "miniature" is the one in this package.

    Raises:
        FileNotFoundError: it is or looks like a path and no model is there.
    """
    if str(source) == "miniature":
        return str(MINIATURE)
    path = Path(source).expanduser()
    if (not is_hub_id(source) or path.is_dir()) and not (path / "config.json").is_file():
        if (path / "run.json").is_file():
            raise FileNotFoundError(
                f"{source} is a checkpoint; go on with it by --resume, or merge it first: python "
                f"scripts/merge.py {source} OUT, and give OUT"
            )
        if steps := sorted(path.glob("step-*")):
            raise FileNotFoundError(
                f"{source} is the folder of a run; give one of its checkpoints, such as {steps[-1]}"
            )
        raise FileNotFoundError(
            f"{source}: no config.json there; give a checkpoint folder, a native VideoLLaMA3 folder, "
            "a hub id (owner/name) or 'miniature'"
        )
    return str(path) if path.is_dir() else str(source)


def is_hub_id(source: str | Path) -> bool:
    """Does it look like owner/name, and is no folder of that name here?"""
    text = str(source)
    looks_local = isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1
    return not looks_local and not Path(text).is_dir()


def find_file(source: str | Path, name: str, revision: str | None = None) -> Path | None:
    """A file of a folder or hub repository (fetched if need be); None where it has none of the name."""
    if not is_hub_id(source):
        file = Path(source) / name
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(str(source), name, revision=revision))
    except EntryNotFoundError:  # also what an offline cache without it says
        return None


def base_record(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """What a base model says of itself: how it was made and is used; nothing for others' bases."""
    path = resolve(source)
    for name in RECORDS:
        if file := find_file(path, name, revision):
            return read_json(file, "fetch it again")
    return {}


def moss_to_train(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """Every setting of the MOSS to train on a base: its own; or the sizes it names, and the paper's.

    Raises: as `load_base`.
    """
    config, record = _open_config(source, revision)[0], base_record(source, revision)
    named = record.get(TO_TRAIN) or record.get("moss") or {}
    if not isinstance(named, dict):
        raise ValueError(f"{source}: its record has moss={fit.shorten(named)}, not names with values")
    own = moss_settings(config)
    return own or cast(dict[str, Any], moss_settings(_with_moss(source, config, named)))


def is_miniature(source: str | Path) -> bool:
    """Whether a base is a miniature by its own record, or merged from a checkpoint of one.

    Raises:
        FileNotFoundError: no model is there.
    """
    record = base_record(source)
    if "merged_from" not in record:
        return bool(record)
    try:
        return is_miniature(record["base_model"])
    except FileNotFoundError:
        return False


def base_fingerprint(source: str | Path, revision: str | None = None) -> str:
    """A digest of the name and shape of every weight in the base's files, and of its first row.

    Values are rounded to bfloat16: a copy saved in bfloat16 has the fingerprint of its float32 original.

    Raises:
        ValueError: there are no safetensors files, or one cannot be read.
    """
    weights: dict[str, bytes] = {}
    for file in _weight_files(resolve(source), revision):
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():
                    part = opened.get_slice(name)
                    if 0 in part.get_shape():
                        raise ValueError(f"{file}: its weight {name} is empty; fetch it again")
                    row = part[:1] if part.get_shape() else opened.get_tensor(name)
                    values = row.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
                    weights[name] = f"{name} {list(part.get_shape())}".encode() + values
        except SafetensorError as error:
            raise ValueError(f"{file}: cannot be read as safetensors ({error}); fetch it again") from error
    return hashlib.sha256(b"".join(weights[name] for name in sorted(weights))).hexdigest()[:16]


def _weight_files(path: str, revision: str | None) -> list[Path]:
    files = [find_file(path, WEIGHTS, revision)]
    if files == [None] and (index := find_file(path, INDEX, revision)):
        places = read_json(index, "fetch it again").get("weight_map")
        names: Any = list(places.values()) if isinstance(places, dict) else [None]
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError(f"{index}: its weight_map is not names of weights with files; fetch it again")
        files = [find_file(path, name, revision) for name in sorted(set(names))]
    if not files or None in files:
        raise ValueError(f"{path}: has no {WEIGHTS}, or not all its shards; use a complete checkpoint")
    return cast(list[Path], files)


def _open_config(source: str | Path, revision: str | None) -> tuple[PretrainedConfig, dict[str, Tensor]]:
    """The config of a base and the header of its weights; they are compared before lists are made of it."""
    settings, path = check_kind(source, revision), resolve(source)
    headers = [read_header(file, "fetch it again") for file in _weight_files(path, revision)]
    header = {name: value for one in headers for name, value in one.items()}
    fit.check_counts(source, settings, header)
    try:
        config = AutoConfig.from_pretrained(path, revision=revision)
    except (ValueError, TypeError, LookupError, AttributeError, StrictDataclassError) as error:
        raise ValueError(
            f"{source}: its config.json cannot be used ({fit.tell(error)}); fetch it again"
        ) from error
    vision = settings.get("vision_config")
    if isinstance(config, MossVideoLlama3Config):
        absent = [name for name in MOSS_FIELDS if not isinstance(vision, dict) or name not in vision]
        if absent:
            raise ValueError(
                f"{source}: config.json does not say what its MOSS is: vision_config has no "
                f"{', '.join(absent)}; merge the checkpoint again"
            )
    return cast(PretrainedConfig, config), header


def blame(path: str | Path, names: Iterable[str], revision: str | None) -> None:
    """ValueError that names the first of these files that is there and no JSON."""
    for name in names:
        if file := find_file(path, name, revision):
            read_json(file, "use a complete checkpoint")


def check_kind(source: str | Path, revision: str | None) -> dict[str, Any]:
    """What config.json says; ValueError if it is of another kind of model."""
    # Read as json first: AutoConfig answers the authors' release with a question about running its code.
    file = find_file(resolve(source), "config.json", revision)
    if file is None:
        raise FileNotFoundError(f"{source}: has no config.json that can be fetched; check the name")
    settings = read_json(file, "fetch it again")
    kind = settings.get("model_type")
    if kind not in (VideoLlama3Config.model_type, MossVideoLlama3Config.model_type):
        remedy = "give a native VideoLLaMA3 folder or hub id"
        if kind == AUTHORS_MODEL_TYPE:
            remedy = (
                "convert the authors' release first: python scripts/convert_videollama3.py SOURCE OUT, "
                "where SOURCE is its folder and OUT what to give here"
            )
        raise ValueError(
            f"{source}: model_type '{kind}' is not native VideoLLaMA3 "
            f"('{VideoLlama3Config.model_type}'); {remedy}"
        )
    return settings


def _origin(path: str, revision: str | None) -> dict[str, Any]:
    """What finds this base again: of the hub by its commit, of a folder by its absolute path."""
    known = {"base_fingerprint": base_fingerprint(path, revision)}
    if is_hub_id(path):
        commit = extract_commit_hash(str(find_file(path, "config.json", revision)), None)
        return {"base_model": path, "base_revision": commit or revision, **known}
    place = "miniature" if path == str(MINIATURE) else str(Path(path).resolve())
    return {"base_model": place, "base_revision": None, **known}


def _with_moss(source: str | Path, config: PretrainedConfig, moss: dict[str, Any]) -> MossVideoLlama3Config:
    found = moss_settings(config)
    if found is None:
        try:
            return moss_config(config, **moss)
        except StrictDataclassError as error:
            raise ValueError(
                f"MOSS settings {fit.shorten(moss)} are wrong: {fit.tell(error)}; correct them"
            ) from error
    asked = {name: list(value) if isinstance(value, tuple) else value for name, value in moss.items()}
    other = [name for name in asked if asked[name] != found.get(name)]
    if other:
        told = ", ".join(
            f"{name}={found.get(name)} (asked for: {fit.shorten(asked[name])})" for name in other
        )
        raise ValueError(f"{source} has a MOSS already, with {told}; ask for the same, or for none")
    return cast(MossVideoLlama3Config, config)


def _four_bits() -> BitsAndBytesConfig:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'a base in 4 bits needs bitsandbytes ({error}): pip install -e ".[quantize]" in a clone'
        ) from error
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=IN_FULL,  # its name says int8, and it is read for 4 bits too
    )


def _check_finite(source: str | Path, model: nn.Module) -> None:
    """Numbers beyond the range of the type that the weights are opened in become infinite without a word."""
    if wrong := faults(model.state_dict(), model.state_dict()):
        raise ValueError(f"{source}: of its weights {wrong}; use weights of float32 or less")


def _check_tied(source: str | Path, model: Any) -> None:
    """A loader that shrugs at a missing head leaves a random one (huggingface/transformers#45040)."""
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        raise ValueError(
            f"{source}: its config ties the head to the embedding and the loaded head is another tensor; "
            "install a version of transformers named in the README"
        )
