"""Publish a checkpoint, or a model of scripts/merge.py, on the Hugging Face hub, with a filled model card.

    python scripts/push.py runs/favor_lora/step-000360 OWNER/NAME --results RUN/result.json
    python scripts/push.py CKPT OWNER/NAME --dry-run           # writes the folder to --out, uploads nothing

What goes up, in one commit: safetensors, json and the processor's files of the folder itself, and README.md
made from its record. Optimizer state, logs and all else stay; they are named. Log in with `hf auth login`
first. Without a network, or where the upload fails, the folder is written to --out and can be uploaded later.
"""

import os
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from moss_vllm.errors import errors_in_one_line
from moss_vllm.flags import Flags, answer_help
from moss_vllm.screen import plain, say


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="step-NNNNNN or merged folder")
    parser.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME on the hub; made if it is not there")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    add = parser.add_argument
    add("--results", type=Path, nargs="+", default=[], help="result.json files of eval/*.py for the card")
    add("--license", default="other", help="license of the weights, by the hub's name for it")
    out = "folder to write with --dry-run or without a network (default: runs/push/NAME)"
    add("--out", type=Path, help=out)
    add("--dry-run", action="store_true", help="write the folder to --out, upload nothing")
    return parser


if __name__ == "__main__":
    answer_help(options)

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.constants import is_offline_mode

from moss_vllm.vlm.adapter import PICKLE_FILE, read_json
from moss_vllm.vlm.base import MERGED_FILE
from moss_vllm.vlm.card import model_card, read_result
from moss_vllm.vlm.checkpoint import FILES, RUN_FILE, read_run
from moss_vllm.vlm.video_llama3 import MossVideoLlama3Config

CARD = "README.md"
TOKEN = re.compile(r"hf_[A-Za-z0-9]{16,}")


@errors_in_one_line()
def main(argv: list[str] | None = None) -> str:
    """Check, make the card, upload or write; returns the address or the folder."""
    args = options().parse_args(argv)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.repo_id):
        raise ValueError(f"REPO_ID is {args.repo_id!r}; it must be OWNER/NAME")
    folder = args.checkpoint.expanduser()
    run, merged = read_record(folder)
    results = [read_result(file.expanduser(), run) for file in args.results]
    has_moss = not merged or is_moss(
        folder
    )  # a merged model's record may name sizes for a MOSS to be attached
    card_run = run if has_moss else {**run, "moss": None}
    card = model_card(args.repo_id, card_run, merged=merged, licence=args.license, results=results)
    files = choose_files(folder)
    refuse_tokens([card, *(file.read_text() for file in files if file.name in (RUN_FILE, MERGED_FILE))])

    out = args.out or Path("runs/push", args.repo_id.split("/")[1])
    if args.dry_run or is_offline_mode():
        why = "dry run" if args.dry_run else "the hub is switched off (HF_HUB_OFFLINE)"
        write_folder(files, card, out)
        say(f"{why}: nothing is uploaded; {out} is ready. {how_to_upload(args.repo_id, out, args.private)}")
        return str(out)
    try:
        address = upload(args.repo_id, files, card, private=args.private)
    except Exception as error:  # the hub's client and what it is built on raise several kinds
        write_folder(files, card, out)
        reason = TOKEN.sub("hf_***", " ".join(str(error).split()))
        then = how_to_upload(args.repo_id, out, args.private)
        raise SystemExit(plain(f"error: not uploaded: {reason}; {out} is ready. {then}")) from None
    say(f"uploaded {len(files) + 1} files: {address}")
    return address


def read_record(folder: Path) -> tuple[dict[str, Any], bool]:
    """run.json of a checkpoint or merged.json of a merged model, and whether it is a merged one."""
    if (folder / RUN_FILE).is_file():
        return read_run(folder), False
    if (folder / MERGED_FILE).is_file():
        return read_json(folder / MERGED_FILE), True
    raise FileNotFoundError(
        f"{folder} has no {RUN_FILE} and no {MERGED_FILE}; give a step-NNNNNN folder or a merged model"
    )


def is_moss(folder: Path) -> bool:
    """Whether a merged model has MOSS."""
    return read_json(folder / "config.json").get("model_type") == MossVideoLlama3Config.model_type


def choose_files(folder: Path) -> list[Path]:
    """The files to publish; those that stay are told."""
    if (folder / PICKLE_FILE).exists():
        raise ValueError(f"{folder / PICKLE_FILE} is a pickle, which can run code when opened; remove it")
    inside = sorted(folder.iterdir())
    chosen = [path for path in inside if path.is_file() and any(fnmatch(path.name, each) for each in FILES)]
    if not any(path.suffix == ".safetensors" for path in chosen):
        raise FileNotFoundError(f"{folder} has no safetensors file; the checkpoint is incomplete")
    if left := [path.name + "/" * path.is_dir() for path in inside if path not in chosen]:
        say(f"not published, {len(left)}: {', '.join(left)}")
    return chosen


def refuse_tokens(texts: list[str]) -> None:
    """A command line of run.json may hold an access token."""
    if any(TOKEN.search(text) for text in texts):
        raise ValueError(f"{RUN_FILE} or the card holds what looks like an access token (hf_...); remove it")


def write_folder(files: list[Path], card: str, out: Path) -> None:
    """Copy what would be uploaded; `out` appears when all of it is there."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there and not empty; name another --out")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for file in files:
            shutil.copyfile(file, part / file.name)
        (part / CARD).write_text(card)
        if out.exists():
            out.rmdir()
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def upload(repo_id: str, files: list[Path], card: str, *, private: bool) -> str:
    """One commit: a repository is never seen with half of a checkpoint."""
    api = HfApi()
    # None leaves a repository that is there as it is.
    address = api.create_repo(repo_id, private=private or None, exist_ok=True)
    operations = [CommitOperationAdd(file.name, str(file)) for file in files]
    operations.append(CommitOperationAdd(CARD, card.encode()))
    api.create_commit(repo_id, operations, commit_message="Upload with moss_vllm")
    return str(address)


def how_to_upload(repo_id: str, out: Path, private: bool) -> str:
    """The command that uploads the folder."""
    return f"Upload it: hf auth login && hf upload {repo_id} {out}{' --private' * private}"


if __name__ == "__main__":
    main()
