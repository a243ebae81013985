"""Publish a checkpoint, or a model of scripts/merge.py, on the Hugging Face hub, with a filled model card.

    python scripts/push.py runs/favor_lora/step-000360 OWNER/NAME --results RUN/result.json
    python scripts/push.py CKPT OWNER/NAME --dry-run           # writes the folder to --out, uploads nothing

One commit uploads the files that the recipe and scripts/merge.py write, by their names, and a README.md
made from the record. Everything else stays and is listed: optimizer state, logs, links, hidden files. An
access key in a file to upload stops the command. In the copy, names replace paths, hosts and accounts.

Log in with `hf auth login` first. Without a network, or if the upload fails, the folder is written to --out
and can be uploaded later.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from moss_vllm.commands import is_starting
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import plain, say


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="step-NNNNNN or merged folder")
    parser.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME on the hub; created if needed")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    add = parser.add_argument
    add("--results", type=Path, nargs="+", default=[], help="result.json files of eval/*.py for the card")
    add("--license", default="other", help="license of the weights, by the hub's name for it")
    out = "folder to write with --dry-run or without a network (default: runs/push/NAME)"
    add("--out", type=Path, help=out)
    add("--dry-run", action="store_true", help="write the folder to --out, upload nothing")
    return parser


if is_starting(__name__):
    answer_help(options)

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.constants import is_offline_mode
from safetensors import safe_open

from moss_vllm.report.model_card import model_card, read_result
from moss_vllm.report.private import find_secrets, hide_secrets, without_path, without_places
from moss_vllm.runtime.files import is_filled, read_json
from moss_vllm.runtime.provenance import RUN_FILE, read_header
from moss_vllm.vlm.adapter import ADAPTER_CONFIG, ADAPTER_FILE, PICKLE_FILE
from moss_vllm.vlm.checkpoint import read_run_file
from moss_vllm.vlm.families import MOSS_SETTINGS, VIDEO_LLM_FAMILIES
from moss_vllm.vlm.places import INDEX, MERGED_FILE, WEIGHTS
from moss_vllm.vlm.processor import PROCESSOR_FILES

CARD = "README.md"
NEEDED = {False: (RUN_FILE, ADAPTER_CONFIG, ADAPTER_FILE), True: (MERGED_FILE, "config.json")}
OTHER_WEIGHTS = (
    "classifier.safetensors",
    "detector.safetensors",
)  # of other tasks
OPTIONAL = ("generation_config.json", WEIGHTS, INDEX)  # of a merged model
TEMPLATE = "chat_template.jinja"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
VOCABULARY = "tokenizer.json"  # uploaded unchanged: its words may look like paths
Contents = dict[str, Path | bytes]


@errors_in_one_line()
def main(argv: list[str] | None = None) -> str:
    """Check the files, make the card, upload or write; returns the address or the folder."""
    args = options().parse_args(argv)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.repo_id):
        raise ValueError(f"REPO_ID is {args.repo_id!r}; it must be OWNER/NAME")
    folder = args.checkpoint.expanduser()
    merged = is_merged(folder)
    files = choose_files(folder, merged)
    run = read_record(folder, merged)
    results = [read_result(file.expanduser(), run) for file in args.results]
    if merged:  # an older record may name sizes of a MOSS that is still to be attached
        run = {**run, "moss": moss_of(folder)}
    contents, hidden = without_this_machine(files)
    card = model_card(
        args.repo_id,
        without_places(run),
        merged=merged,
        licence=args.license,
        results=without_places(results),
    )
    contents[CARD] = card.encode()
    refuse_secrets(folder, contents)
    if hidden:
        say(f"without paths, hosts and accounts of this machine: {', '.join(hidden)}")

    out = args.out or Path("runs/push", args.repo_id.split("/")[1])
    if args.dry_run or is_offline_mode():
        why = "dry run" if args.dry_run else "the hub is switched off (HF_HUB_OFFLINE)"
        write_folder(contents, out)
        for name, content in contents.items():
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            say(f"{size:>15,} bytes  {name}")
        say(f"{why}: nothing is uploaded; {out} is ready. {how_to_upload(args.repo_id, out, args.private)}")
        return str(out)
    try:
        address = upload(args.repo_id, contents, private=args.private)
    except Exception as error:  # the hub's client raises errors of several libraries
        write_folder(contents, out)
        reason = hide_secrets(" ".join(str(error).split()))
        then = how_to_upload(args.repo_id, out, args.private)
        raise SystemExit(plain(f"error: not uploaded: {reason}; {out} is ready. {then}")) from None
    say(f"uploaded {len(contents)} files: {address}")
    return address


def is_merged(folder: Path) -> bool:
    """Whether the folder is a merged model; FileNotFoundError if it is no checkpoint either."""
    for name, merged in ((RUN_FILE, False), (MERGED_FILE, True)):
        if (folder / name).is_file():
            return merged
    raise FileNotFoundError(
        f"{folder} has no {RUN_FILE} and no {MERGED_FILE}; give a step-NNNNNN folder or a merged model"
    )


def read_record(folder: Path, merged: bool) -> dict[str, Any]:
    """run.json of a checkpoint or merged.json of a merged model."""
    if not merged:
        return read_run_file(folder)
    run = read_json(folder / MERGED_FILE, "merge the checkpoint again")
    if not all(isinstance(run.get(name), str) for name in ("base_model", "base_fingerprint")):
        raise ValueError(f"{folder / MERGED_FILE}: does not name its base; merge the checkpoint again")
    return run


def moss_of(folder: Path) -> dict[str, Any] | None:
    """The sizes of a merged model's MOSS, from its config."""
    config = read_json(folder / "config.json", "merge the checkpoint again")
    if config.get("model_type") not in {family.model_types[1] for family in VIDEO_LLM_FAMILIES}:
        return None
    vision = config.get("vision_config")
    if not isinstance(vision, dict) or any(name not in vision for name in MOSS_SETTINGS):
        raise ValueError(f"{folder / 'config.json'}: does not say what MOSS is; merge the checkpoint again")
    return {name: vision[name] for name in MOSS_SETTINGS}


def choose_files(folder: Path, merged: bool) -> list[Path]:
    """The files to publish, by their names; prints the names of the others."""
    if (folder / PICKLE_FILE).exists():
        raise ValueError(f"{folder / PICKLE_FILE} is a pickle, which can run code when opened; remove it")
    names = {*NEEDED[merged], *PROCESSOR_FILES, TEMPLATE, *(OPTIONAL if merged else ())}
    inside = sorted(folder.iterdir())
    chosen = [
        path
        for path in inside
        if (path.name in names or (merged and SHARD.fullmatch(path.name)))
        and path.is_file()
        and not path.is_symlink()
    ]
    if not merged and any(path.name in OTHER_WEIGHTS for path in inside):
        raise ValueError(
            f"{folder} is a checkpoint of a classifier or detector; this command publishes those of "
            "recipes/favor_lora.py and merged models. Upload the folder itself: hf upload OWNER/NAME "
            f"{folder}"
        )
    missing = {*NEEDED[merged]} - {path.name for path in chosen}
    if missing or not any(path.suffix == ".safetensors" for path in chosen):
        lacking = ", ".join(sorted(missing)) or "safetensors file"
        raise FileNotFoundError(
            f"{folder} has no {lacking}; the checkpoint is incomplete (links are not followed: copy the "
            "folder with cp -rL)"
        )
    if others := [_shown(path) for path in inside if path not in chosen and path.name != CARD]:
        say(f"not published, {len(others)}: {', '.join(others)}")
    return chosen


def _shown(path: Path) -> str:
    kind = " (a link)" if path.is_symlink() else "/" * path.is_dir()
    return path.name.encode("unicode_escape").decode() + kind


def without_this_machine(files: list[Path]) -> tuple[Contents, list[str]]:
    """The content to upload under each name, and the names of the files that had to be changed."""
    contents: Contents = {}
    changed = []
    for file in files:
        contents[file.name] = file
        if file.suffix != ".json" or file.name == VOCABULARY:
            continue
        was = read_json(file, "use a whole checkpoint")
        now = without_places(was) if file.name in (RUN_FILE, MERGED_FILE) else without_path(was)
        if file.name == ADAPTER_CONFIG:
            now = {**now, "base_model_name_or_path": _base_of(file.parent)}
        if now != was:
            contents[file.name] = (json.dumps(now, indent=2) + "\n").encode()
            changed.append(file.name)
    return contents, changed


def _base_of(folder: Path) -> str:
    """The base's name from run.json; peft writes the path from which it was opened."""
    return str(without_places(read_run_file(folder)["base_model"]))


def refuse_secrets(folder: Path, contents: Contents) -> None:
    """ValueError that names every place of a possible access key, or notes in a header of weights."""
    secrets = []
    for name, content in contents.items():
        file = folder / name
        if file.suffix == ".safetensors":
            text = "\n".join(read_header(file))
            with safe_open(file, "pt") as opened:
                notes = {k: v for k, v in (opened.metadata() or {}).items() if k != "format"}
            if notes:
                raise ValueError(
                    f"{file}: its header has notes ({', '.join(sorted(notes))}), and this package writes "
                    "none; save the file without them"
                )
        elif name == CARD:
            text = bytes(content).decode() if isinstance(content, bytes) else ""
        else:
            text = file.read_text(encoding="utf-8")
            if "\\u" in text and file.suffix == ".json" and name != VOCABULARY:
                text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
        secrets += [
            f"{name}: line {line}: {kind}" for line, kind in find_secrets(text, vocabulary=name == VOCABULARY)
        ]
    if secrets:
        raise ValueError(
            f"{folder}: what looks like an access key would be published: {'; '.join(sorted(set(secrets)))}; "
            "remove it there, and withdraw the key if others could read it"
        )


def write_folder(contents: Contents, out: Path) -> None:
    """Write what would be uploaded; `out` appears when it is complete."""
    if is_filled(out):
        raise FileExistsError(f"{out} is there and not empty; name another --out")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for name, content in contents.items():
            if isinstance(content, bytes):
                (part / name).write_bytes(content)
            else:
                shutil.copyfile(content, part / name)
        if out.exists():
            out.rmdir()
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def upload(repo_id: str, contents: Contents, *, private: bool) -> str:
    """Upload in one commit, so that nobody downloads half a checkpoint."""
    api = HfApi()
    # With None, an existing repository stays private or public.
    address = api.create_repo(repo_id, private=private or None, exist_ok=True)
    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in contents.items()
    ]
    api.create_commit(repo_id, operations, commit_message="Upload with moss_vllm")
    return str(address)


def how_to_upload(repo_id: str, out: Path, private: bool) -> str:
    """The command that uploads the folder."""
    return f"Upload it: hf auth login && hf upload {repo_id} {out}{' --private' * private}"
