"""One folder for what was trained on a model that `attach` gave MOSS.

    moss.json            kind of model, sizes of MOSS; the base by place, revision and fingerprint
    moss.safetensors     MOSS with its BatchNorm statistics, and projector, by their names in the model
or, of a PeftModel,
    adapter_model.safetensors, adapter_config.json    peft's files, in which MOSS and projector are too

Nothing in a folder can name code: weights are safetensors, and of peft's settings those of `LORA` are read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from moss_vllm.runtime.files import read_json, readable, whole_file, write_whole
from moss_vllm.runtime.provenance import RUN_FILE, faults, read_header
from moss_vllm.runtime.quiet import quiet
from moss_vllm.runtime.versions import versions
from moss_vllm.vlm import fit
from moss_vllm.vlm.adapter import ADAPTER_CONFIG, ADAPTER_FILE, PICKLE_FILE, UNREAD
from moss_vllm.vlm.attach import (
    attach,
    attached,
    complete_sizes,
    find_host,
    stock_model,
    trained_modules,
    weight_marks,
)
from moss_vllm.vlm.hosts.opening import new_moss
from moss_vllm.vlm.places import base_fingerprint

MOSS_FILE, MOSS_RECORD = "moss.safetensors", "moss.json"
RECORDED: dict[str, Any] = {
    "base_model": str,
    "base_revision": str | None,
    "base_fingerprint": str,
    "sizes": dict,
}
RECORDED |= {"model_type": str, "adapter": bool}
# Settings of LoRA that are saved and read; all others must be peft's defaults.
LORA = tuple(
    "r lora_alpha lora_dropout target_modules exclude_modules modules_to_save use_rslora use_dora "
    "rank_pattern alpha_pattern layers_to_transform layers_pattern".split()
)
SILENT_LORA = {*UNREAD, "peft_type"}
# peft looks this name up before anything else, and fails with it as the error: it would put the adapter on a
# model without MOSS, and drop MOSS in silence.
ONLY_BY_LOAD = "LORA with MOSS: open it with moss_vllm.load; peft alone would leave MOSS out"
OTHER_FOLDER = "use another folder, or save it again"


def save_attached(model: nn.Module, folder: str | Path) -> None:
    """Write what was trained on a model with MOSS; moss.json comes last: a folder with it is complete.

    Args:
        model: from `attach`, or peft's LoRA on it with `modules_to_save=trained_modules(model)`.
        folder: to write to.

    Raises:
        ValueError: no MOSS; a base that cannot be found again; trained weights that the folder would not
            hold; an adapter that cannot be read again; weights that are not finite. Nothing is written then.
    """
    folder = Path(folder)
    host, tower = attached(model)
    base = stock_model(model)
    adapter = model if isinstance(model, PeftModel) else None
    if adapter is not None:
        _check_adapter(adapter)
    _check_unchanged(base, weight_marks(base, host), tower.base_marks)
    place = str(base.config._name_or_path or "")
    if not place:
        raise ValueError(
            "the base of this model has no name to open it by again; write it with save_pretrained before "
            "MOSS is attached, open it from there by from_pretrained, and attach MOSS to that"
        )
    revision = getattr(base.config, "_commit_hash", None)
    record = {
        "model_type": base.config.model_type,
        "sizes": tower.moss_sizes,
        "base_model": str(Path(place).resolve()) if Path(place).is_dir() else place,
        "base_revision": revision,
        "base_fingerprint": base_fingerprint(place, revision),
        "adapter": adapter is not None,
        "versions": versions(),
    }
    state = _whole_state(model) if adapter is None else _adapter_state(adapter)
    if wrong := faults(state, dict.fromkeys(state)):
        raise ValueError(f"{folder} is not written: of the trained weights {wrong}; the run diverged")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MOSS_RECORD).unlink(missing_ok=True)
    if adapter is not None:
        has_card = (folder / "README.md").exists()
        adapter.save_pretrained(str(folder), save_embedding_layers=False)
        if not has_card:
            (folder / "README.md").unlink(missing_ok=True)  # peft's form of a model card
        readable(folder / ADAPTER_FILE)
        settings = {**read_json(folder / ADAPTER_CONFIG), "peft_type": ONLY_BY_LOAD}
        write_whole(folder / ADAPTER_CONFIG, json.dumps(settings, indent=2, sort_keys=True) + "\n")
    else:
        with whole_file(folder / MOSS_FILE) as part:
            save_file({name: value.contiguous() for name, value in state.items()}, part)
        readable(folder / MOSS_FILE)
    write_whole(folder / MOSS_RECORD, json.dumps(record, indent=2) + "\n")


def load_attached(folder: str | Path, *, base: str | Path | None = None, **options: Any) -> Any:
    """Open the base of a folder from `save_attached`, attach MOSS, and load what was trained; in eval mode.

    Args:
        folder: what `save_attached` wrote.
        base: where the base is now, if not where moss.json says.
        options: of transformers' from_pretrained, such as dtype or attn_implementation.

    Returns:
        The model with MOSS; a PeftModel, if one was saved. Weights of MOSS are float32.

    Raises:
        FileNotFoundError: a file of the folder, or the base, is not there.
        ValueError: another base, a file that cannot be read, weights or settings that do not fit, a pickle.
    """
    folder = Path(folder).expanduser()
    record = _read_record(folder)
    file = folder / (ADAPTER_FILE if record["adapter"] else MOSS_FILE)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; the folder is incomplete, {OTHER_FOLDER}")
    header = read_header(file, OTHER_FOLDER)
    fit.check_orders(str(folder / MOSS_RECORD), record["sizes"].get("orders"), header)
    lora = _read_lora(folder) if record["adapter"] else None
    model = _open_base(folder, record, base, options)
    attach(model, **_fitting_sizes(folder, model, record["sizes"], header))
    if lora is not None:
        model = _with_adapter(folder, model, lora, file)
    else:
        weights, wanted = load_file(file), _whole_state(model)
        if wrong := faults(weights, wanted):
            raise ValueError(f"{file} does not fit its base: of the weights {wrong}; {OTHER_FOLDER}")
        model.load_state_dict(weights, strict=False)
    return model.eval()


def _whole_state(model: nn.Module) -> dict[str, Tensor]:
    """Weights and statistics of the modules that are trained whole, by their names in the model."""
    return {
        f"{module}.{name}": value
        for module in trained_modules(model)
        for name, value in model.get_submodule(module).state_dict().items()
    }


def _adapter_state(model: PeftModel) -> dict[str, Tensor]:
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def _check_unchanged(model: Any, now: Mapping[str, Any], start: Mapping[str, Any]) -> None:
    """ValueError for weights trained since MOSS was attached that are neither MOSS's, nor the projector's."""
    changed = [
        name
        for name, (dtype, mark) in now.items()
        if name in start and start[name] != (dtype, mark)
        if start[name][0] == dtype
    ]
    if changed:
        raise ValueError(
            f"{len(changed)} weights beside MOSS and projector have changed since MOSS was attached "
            f"({', '.join(changed[:3])}, ...), and moss_vllm.save would lose that: train them by "
            "peft's LoRA, or write the detached model with save_pretrained as a base of its own"
        )


def _check_adapter(model: PeftModel) -> None:
    """ValueError for an adapter that `load_attached` would not open as it is."""
    if list(model.peft_config) != ["default"]:
        raise ValueError(
            f"adapters {', '.join(model.peft_config)}: one adapter, named 'default', can be saved"
        )
    config = model.peft_config["default"]
    if not isinstance(config, LoraConfig):
        raise ValueError(f"a {type(config).__name__} cannot be saved with MOSS; use peft's LoraConfig")
    if missing := set(trained_modules(model)) - set(config.modules_to_save or ()):
        raise ValueError(
            f"peft does not hold {', '.join(sorted(missing))}; give LoraConfig "
            "modules_to_save=moss_vllm.trained_modules(model)"
        )
    _check_lora("this adapter", json.loads(json.dumps(config.to_dict(), default=sorted)))


def _check_lora(place: Any, settings: Mapping[str, Any]) -> None:
    defaults = LoraConfig().to_dict()
    other = [
        name
        for name, value in settings.items()
        if name not in {*LORA, *SILENT_LORA} and (value or None) != (defaults.get(name) or None)
    ]
    if other:
        shown = ", ".join(
            f"{fit.shorten(name, quoted=False)}={fit.shorten(settings[name])}" for name in other
        )
        raise ValueError(
            f"{place}: {shown} of peft's LoRA is not supported with MOSS; leave it at its default"
        )


def _read_record(folder: Path) -> dict[str, Any]:
    if (folder / RUN_FILE).is_file():
        raise ValueError(f"{folder} is a checkpoint of a recipe: open it with moss_vllm.vlm.checkpoint.load")
    file = folder / MOSS_RECORD
    record = read_json(file, "give a folder that moss_vllm.save wrote")
    for name, kind in RECORDED.items():
        if not isinstance(record.get(name, ...), kind):
            raise ValueError(
                f"{file}: {name}={fit.shorten(record.get(name))} is not what moss_vllm.save writes"
            )
    return record


def _open_base(folder: Path, record: Mapping[str, Any], base: Any, options: dict[str, Any]) -> Any:
    place = str(base if base is not None else record["base_model"])
    revision = None if base is not None or Path(place).is_dir() else record["base_revision"]
    remedy = f"if the base has moved, give its place: moss_vllm.load({str(folder)!r}, base=...)"
    try:
        mark = base_fingerprint(place, revision)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the base of {folder} is not there: {error}; {remedy}") from error
    if mark != record["base_fingerprint"]:
        raise ValueError(
            f"{place} is not the base of {folder} (fingerprint {mark}, not "
            f"{fit.shorten(record['base_fingerprint'])}); {remedy}"
        )
    with quiet():
        model = AutoModelForImageTextToText.from_pretrained(
            place, revision=revision, use_safetensors=True, **options
        )
    if model.config.model_type != record["model_type"]:
        raise ValueError(
            f"{place} is a {model.config.model_type}, and {folder / MOSS_RECORD} names "
            f"{fit.shorten(record['model_type'])}; {remedy}"
        )
    return model


def _fitting_sizes(
    folder: Path, model: Any, sizes: dict[str, Any], header: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The sizes, if the MOSS that they describe has the shapes of the weights; none of it is made."""
    host = find_host(model)
    tower = host.tower_of(model)
    try:
        settings = complete_sizes(tower, host, sizes)
    except ValueError as error:
        raise ValueError(f"{folder / MOSS_RECORD}: {error}; {OTHER_FOLDER}") from error
    failed = f"{folder / MOSS_RECORD}: sizes {fit.shorten(sizes)} are wrong"
    wanted = fit.make_empty(lambda: new_moss(host.width(tower), settings), failed).state_dict()
    stored = {name.partition(".moss.")[2]: value for name, value in header.items() if ".moss." in name}
    if wrong := faults(stored, wanted):
        raise ValueError(f"{folder}: the weights of MOSS do not fit its sizes: {wrong}; {OTHER_FOLDER}")
    return settings


def _read_lora(folder: Path) -> dict[str, Any]:
    """The settings of LoRA in a folder, as arguments of LoraConfig."""
    if (folder / PICKLE_FILE).exists():
        raise ValueError(f"{folder / PICKLE_FILE} is a pickle, which can run code when opened; remove it")
    file = folder / ADAPTER_CONFIG
    settings = read_json(file, OTHER_FOLDER)
    if settings.get("peft_type") not in (ONLY_BY_LOAD, "LORA"):
        raise ValueError(
            f"{file}: peft_type={fit.shorten(settings.get('peft_type'))} is not LoRA; {OTHER_FOLDER}"
        )
    _check_lora(file, settings)
    return {name: settings[name] for name in LORA if settings.get(name) is not None}


def _with_adapter(folder: Path, model: Any, lora: dict[str, Any], file: Path) -> PeftModel:
    whole = lora.get("modules_to_save")
    if not isinstance(whole, list) or any(name not in whole for name in trained_modules(model)):
        raise ValueError(
            f"{folder / ADAPTER_CONFIG}: modules_to_save={fit.shorten(whole)} lacks MOSS or the projector; "
            f"{OTHER_FOLDER}"
        )
    try:
        with quiet():
            opened = cast(PeftModel, get_peft_model(model, LoraConfig(**lora)))
    except Exception as error:  # peft raises many kinds at a senseless value
        raise ValueError(
            f"{folder / ADAPTER_CONFIG}: peft cannot use it ({fit.describe_error(error)}); {OTHER_FOLDER}"
        ) from error
    weights = load_file(file)
    if wrong := faults(weights, _adapter_state(opened)):
        raise ValueError(f"{file} does not fit its base: of the weights {wrong}; {OTHER_FOLDER}")
    set_peft_model_state_dict(opened, weights)
    return opened
