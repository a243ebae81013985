"""Opening base models: as released or with MOSS, in full or in 4 bits.

A base is a native folder or hub id of a family, a folder that `scripts/merge.py` wrote, or "miniature".
"""

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.utils.hub import extract_commit_hash

from moss_vllm.core import MOSS
from moss_vllm.runtime.files import read_json
from moss_vllm.runtime.provenance import faults, read_header
from moss_vllm.runtime.quiet import quiet
from moss_vllm.vlm import fit
from moss_vllm.vlm.attention import choose_attention
from moss_vllm.vlm.families import MOSS_SETTINGS, Family, family_of, find_family
from moss_vllm.vlm.places import (
    base_fingerprint,
    base_record,
    base_weight_files,
    find_file,
    is_hub_id,
    miniature_name,
    resolve,
)

TO_TRAIN = "moss_to_train"  # in the record of a merged model without MOSS: the sizes that its own base names


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
    """A base model as released, or with a new zero-initialised MOSS.

    MOSS is float32 whatever the other weights are: run the model under autocast. The attribute `opened_from`
    of the model has base_model, base_revision and base_fingerprint.

    Args:
        source: as for `resolve`.
        moss: settings of a new MOSS; a base with MOSS must have the same ones.
        revision: of a hub id.
        dtype: of all weights but MOSS's; float32 if not given.
        attention: transformers' name of an implementation; None: `choose_attention`.
        quantize: keep the language model's linear layers in 4 bits (NF4), and compute in bfloat16.
        empty: make names and shapes alone, on torch's meta device, which takes no memory.

    Raises:
        FileNotFoundError: a path that does not exist, or a hub id that cannot be reached.
        ImportError: `quantize` without bitsandbytes.
        ValueError: a model of no family, wrong MOSS settings, or a missing weight that is not the new MOSS's.
    """
    path, dtype = resolve(source), dtype or torch.float32
    config, header = _open_config(source, revision)
    origin = _origin(path, revision)
    family = family_of(config)
    trained_moss = family.has_moss(config)
    if moss is not None:
        config = _with_moss(source, config, moss)
    loader = family.moss_model if family.has_moss(config) else family.model
    if not trained_moss and any(".moss." in name for name in header):
        raise ValueError(
            f"{source}: its weights have a MOSS that its config.json does not describe; merge the checkpoint "
            "again"
        )
    new = None if trained_moss else ".moss."
    fit.check_model(source, lambda: loader(copy.deepcopy(config)), header, new=new)
    blame(path, ["generation_config.json"], revision)  # transformers ignores a broken one in silence
    if attention is None:
        attention, _ = choose_attention("cuda" if torch.cuda.is_available() else "cpu", dtype)
    try:
        with quiet():  # transformers' report of missing weights lists all of MOSS; ours is below
            model, info = loader.from_pretrained(
                path,
                config=config,
                revision=revision,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                output_loading_info=True,
                **({"quantization_config": _four_bits(family)} if quantize else {}),
                **({"device_map": "meta"} if empty else {}),
            )
    except (TypeError, LookupError, AttributeError, RecursionError, StrictDataclassError) as error:
        raise ValueError(
            f"{source}: cannot be opened ({fit.describe_error(error)}); fetch it again"
        ) from error
    missing = [key for key in info["missing_keys"] if trained_moss or ".moss." not in key]
    if wrong := sorted(missing) + sorted(info["unexpected_keys"]):
        raise ValueError(
            f"{source}: weights missing or left over: {', '.join(wrong[:10])}; use a complete checkpoint"
        )
    if any(value.dtype == torch.float64 for value in header.values()):
        _check_finite(source, model)
    if config.tie_word_embeddings:
        _check_tied(source, model)
    for module in model.modules():
        if isinstance(module, MOSS):
            module.float()  # with its BatchNorm statistics
    model.opened_from = origin
    return cast(PreTrainedModel, model)


def moss_to_train(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """Every setting of the MOSS to train on a base: the base's own MOSS; or the sizes its record names and,
    for the others, the paper's.

    Raises: as `load_base`.
    """
    config, record = _open_config(source, revision)[0], base_record(source, revision)
    sizes = record.get(TO_TRAIN) or record.get("moss") or {}
    if not isinstance(sizes, dict):
        raise ValueError(f"{source}: its record has moss={fit.shorten(sizes)}, not names with values")
    moss_settings = family_of(config).moss_settings
    return moss_settings(config) or cast(dict[str, Any], moss_settings(_with_moss(source, config, sizes)))


def is_miniature(source: str | Path) -> bool:
    """Whether the record of a base says that it is a miniature, or merged from a checkpoint of one.

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


def _open_config(source: str | Path, revision: str | None) -> tuple[PretrainedConfig, dict[str, Tensor]]:
    """The config of a base and the header of its weights, compared before anything is made of the config."""
    settings, path = check_kind(source, revision), resolve(source)
    headers = [read_header(file, "fetch it again") for file in base_weight_files(path, revision)]
    header = {name: value for one in headers for name, value in one.items()}
    fit.check_counts(source, settings, header)
    family = find_family(settings["model_type"], source)
    try:
        if family.opens_stock_classes and settings["model_type"] != family.config.model_type:
            config = family.config.from_dict({**settings, "model_type": family.config.model_type})
        else:
            config = AutoConfig.from_pretrained(path, revision=revision)
    except (ValueError, TypeError, LookupError, AttributeError, StrictDataclassError) as error:
        raise ValueError(
            f"{source}: its config.json cannot be used ({fit.describe_error(error)}); fetch it again"
        ) from error
    vision = settings.get("vision_config")
    if family.has_moss(config) or settings["model_type"] != family.config.model_type:
        absent = [name for name in MOSS_SETTINGS if not isinstance(vision, dict) or name not in vision]
        if absent:
            raise ValueError(
                f"{source}: config.json does not describe its MOSS: vision_config has no "
                f"{', '.join(absent)}; merge the checkpoint again"
            )
    return config, header


def autocast(model: nn.Module) -> AbstractContextManager[Any]:
    """The context to run a model in: half precision where the base's weights have it."""
    weight = cast(Any, model).get_input_embeddings().weight  # never trained, never in 4 bits
    half = weight.dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(weight.device.type, weight.dtype) if half else nullcontext()


def blame(path: str | Path, names: Iterable[str], revision: str | None) -> None:
    """ValueError that names the first of these files that exists and holds no JSON."""
    for name in names:
        if file := find_file(path, name, revision):
            read_json(file, "use a complete checkpoint")


def check_kind(source: str | Path, revision: str | None) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it describes a model of no family.
    """
    # AutoConfig would ask whether to run the code of the authors' release, so it is read as JSON first.
    file = find_file(resolve(source), "config.json", revision)
    if file is None:
        raise FileNotFoundError(f"{source}: has no config.json that can be fetched; check the name")
    settings = read_json(file, "fetch it again")
    find_family(settings.get("model_type"), source)
    return settings


def _origin(path: str, revision: str | None) -> dict[str, Any]:
    """What finds this base again: the commit of a hub id, the absolute path of a folder."""
    fingerprint = {"base_fingerprint": base_fingerprint(path, revision)}
    if is_hub_id(path):
        commit = extract_commit_hash(str(find_file(path, "config.json", revision)), None)
        return {"base_model": path, "base_revision": commit or revision, **fingerprint}
    place = miniature_name(path) or str(Path(path).resolve())
    return {"base_model": place, "base_revision": None, **fingerprint}


def _with_moss(source: str | Path, config: PretrainedConfig, moss: dict[str, Any]) -> PretrainedConfig:
    family = family_of(config)
    own = family.moss_settings(config)
    if own is None:
        try:
            return family.add_moss(config, **moss)
        except StrictDataclassError as error:
            raise ValueError(
                f"MOSS settings {fit.shorten(moss)} are wrong: {fit.describe_error(error)}; correct them"
            ) from error
    wanted = {name: list(value) if isinstance(value, tuple) else value for name, value in moss.items()}
    differing = [
        f"{name}={own.get(name)} (asked for: {fit.shorten(value)})"
        for name, value in wanted.items()
        if value != own.get(name)
    ]
    if differing:
        raise ValueError(
            f"{source} has a MOSS already, with {', '.join(differing)}; ask for the same, or for none"
        )
    return config


def _four_bits(family: Family) -> BitsAndBytesConfig:
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
        llm_int8_skip_modules=family.not_quantized,  # despite "int8", read for 4 bits too
    )


def _check_finite(source: str | Path, model: nn.Module) -> None:
    """Numbers beyond the range of the type that the weights are opened in become infinite in silence."""
    if wrong := faults(model.state_dict(), model.state_dict()):
        raise ValueError(f"{source}: of its weights {wrong}; use weights of float32 or less")


def _check_tied(source: str | Path, model: Any) -> None:
    """A loader that ignores a missing head leaves a random one (huggingface/transformers#45040)."""
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        raise ValueError(
            f"{source}: its config ties the head to the embedding and the loaded head is another tensor; "
            "install a version of transformers named in the README"
        )
