"""Where a base model or a checkpoint is: a folder, the hub or this package; and which base it is."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open

from moss_vllm.runtime.files import read_json
from moss_vllm.vlm.fit import describe_error

MINIATURE = Path(__file__).parent / "weights" / "miniature"
MINIATURES = {name: MINIATURE.with_name(name) for name in ("miniature", "miniature_qwen2_5_vl")}
# The record of a base, beside its config: the miniature's, and the one that `scripts/merge.py` writes.
MERGED_FILE = "merged.json"
RECORDS = ("miniature.json", MERGED_FILE)
CONFIGS = ("config.json", "run.json")  # a base has the first, a checkpoint the second
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def resolve(source: str | Path) -> str:
    """The path or hub id of `source`; names in `MINIATURES` are folders in this package.

    Raises:
        FileNotFoundError: it is or looks like a path, and no model is there.
    """
    if str(source) in MINIATURES:
        return str(MINIATURES[str(source)])
    path = Path(source).expanduser()
    if (not is_hub_id(source) or path.is_dir()) and not (path / "config.json").is_file():
        if (path / "run.json").is_file():
            raise FileNotFoundError(
                f"{source} is a checkpoint; continue its training by --resume, or merge it first: python "
                f"scripts/merge.py {source} OUT, and give OUT"
            )
        if steps := sorted(path.glob("step-*")):
            raise FileNotFoundError(
                f"{source} is the folder of a run; give one of its checkpoints, such as {steps[-1]}"
            )
        if (path / "moss.json").is_file():
            raise FileNotFoundError(
                f"{source} was written by `moss attach` or moss_vllm.save; moss_vllm.load opens it. Here "
                "give the model itself, or a checkpoint of recipes/favor_lora.py"
            )
        raise FileNotFoundError(
            f"{source}: no config.json there; give a checkpoint folder, a model folder, "
            f"a hub id (owner/name), {' or '.join(map(repr, MINIATURES))}"
        )
    return str(path) if path.is_dir() else str(source)


def miniature_name(path: str | Path) -> str | None:
    """The name in `MINIATURES` of a folder in this package; None for any other place."""
    return next((name for name, folder in MINIATURES.items() if str(folder) == str(path)), None)


def is_hub_id(source: str | Path) -> bool:
    """Whether it looks like owner/name and no folder has that name."""
    text = str(source)
    looks_local = isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1
    return not looks_local and not Path(text).is_dir()


def find_file(source: str | Path, name: str, revision: str | None = None) -> Path | None:
    """A file of a folder or hub repository, fetched if it is not cached; None where there is none.

    Raises:
        FileNotFoundError: a hub repository that is not cached and cannot be reached.
    """
    if not is_hub_id(source):
        file = Path(source) / name
        return file if file.is_file() else None
    check_reachable(str(source), revision)
    try:
        return Path(hf_hub_download(str(source), name, revision=revision))
    except EntryNotFoundError:  # raised for a file that is not cached without a network, too
        return None


@cache
def check_reachable(repo_id: str, revision: str | None) -> None:
    """FileNotFoundError for a hub repository of which nothing is cached and which the hub does not show.

    The hub's client retries each file of such a repository for half a minute. This asks once, and once only
    for a repository that is there: errors are not cached.
    """
    if any(isinstance(try_to_load_from_cache(repo_id, name, revision=revision), str) for name in CONFIGS):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repo_id, CONFIGS[0], revision=revision), timeout=10)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision}" if revision else ""
        raise FileNotFoundError(
            f"{repo_id}: the hub shows no such repository{at}; check the name, and log in by hf auth login "
            "if it is private or gated"
        ) from error
    except EntryNotFoundError:  # a checkpoint has no config.json
        return
    except Exception as error:  # of requests or httpx, by the version of huggingface_hub
        raise FileNotFoundError(
            f"{repo_id}: is not cached, and the hub cannot be reached ({describe_error(error)}); where "
            f"there is a network, download it: hf download {repo_id} --local-dir FOLDER; and give "
            "FOLDER in its place"
        ) from error


def base_record(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """How this package made a base model; empty for a base that others made."""
    path = resolve(source)
    for name in RECORDS:
        if file := find_file(path, name, revision):
            return read_json(file, "fetch it again")
    return {}


def base_weight_files(path: str, revision: str | None) -> list[Path]:
    """The safetensors files of a base.

    Raises:
        ValueError: there are none, or not all that the index names.
    """
    files = [find_file(path, WEIGHTS, revision)]
    if files == [None] and (index := find_file(path, INDEX, revision)):
        weight_map = read_json(index, "fetch it again").get("weight_map")
        names: Any = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError(f"{index}: its weight_map is not names of weights with files; fetch it again")
        files = [find_file(path, name, revision) for name in sorted(set(names))]
    if not files or None in files:
        raise ValueError(f"{path}: has no {WEIGHTS}, or not all its shards; use a complete checkpoint")
    return cast(list[Path], files)


def base_fingerprint(source: str | Path, revision: str | None = None) -> str:
    """A digest of the name, shape and first row of every weight in the base's files.

    Values are rounded to bfloat16: a copy saved in bfloat16 has the fingerprint of its float32 original.

    Raises:
        ValueError: there are no safetensors files, or one cannot be read.
    """
    weights: dict[str, bytes] = {}
    for file in base_weight_files(resolve(source), revision):
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
