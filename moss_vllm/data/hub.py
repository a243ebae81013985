"""Data sets of the hub: one split at one commit, fetched whole and once, then read like files on disk.

A repository with an annotation of a known name is fetched as the folder that it is, with the videos beside;
of any other the files of one split, as `datasets` finds them. An interrupted download goes on. What was
fetched whole is written down beside the hub's cache, and read from there while the hub cannot be reached.
"""

import glob
import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import filter_repo_objects

from moss_vllm.data.annotations import VIDEO_SUFFIXES
from moss_vllm.data.favor import TRAIN_FILES, TRAIN_FOLDERS
from moss_vllm.data.motionbench import CAPTION_FILES, CAPTION_FOLDERS
from moss_vllm.data.rows import BadRow, digest_rows
from moss_vllm.data.tables import SplitFiles, find_split
from moss_vllm.runtime.files import read_json, write_whole
from moss_vllm.runtime.screen import say

KIND = "data set"  # the place in messages
WAIT_S = 10.0


class Unreachable(BadRow):
    """The hub gives no answer."""


class Fetched(NamedTuple):
    """A folder with what was fetched, the commit it is of, and its table if it is one."""

    root: Path
    revision: str
    table: SplitFiles | None


def fetch(repo_id: str, split: str | None, revision: str | None) -> Fetched:
    """Fetch what is to be read of a data set; without a network, find it as it was fetched before.

    Raises: BadRow for a repository, revision or split that the hub does not show; Unreachable for no network
    and nothing fetched before.
    """
    try:
        info = look_up(repo_id, revision)
    except Unreachable as error:
        return _fetched_before(repo_id, split, revision, error)
    names = [file.rfilename for file in info.siblings]
    known = [name for name in (*TRAIN_FILES, *CAPTION_FILES) if name in names]
    if known and split is None:
        patterns = [*known, *videos_beside(names)]
        root, module = download(repo_id, info.sha, patterns), None
        files = list(filter_repo_objects(names, allow_patterns=patterns))
    else:
        module, urls = find_split(f"hf://datasets/{repo_id}", split, repo_id, revision=info.sha)
        files = [url.partition(f"@{info.sha}/")[2] for url in urls]
        root = download(repo_id, info.sha, map(glob.escape, files))
    told = json.dumps({"revision": info.sha, "module": module, "files": files})
    with suppress(OSError):  # the cache may belong to somebody else
        for asked in (revision, info.sha):
            write_whole(_record(repo_id, split, asked), told)
    return _fetched(root, info.sha, module, files)


def locate(repo_id: str, split: str | None, revision: str | None) -> Fetched:
    """Where the files of a split are on the hub; nothing is fetched. The folder has no meaning then.

    Without a network they are those that were fetched before. Raises: as `fetch`.
    """
    try:
        info = look_up(repo_id, revision)
    except Unreachable as error:
        return _fetched_before(repo_id, split, revision, error)
    module, urls = find_split(f"hf://datasets/{repo_id}", split, repo_id, revision=info.sha)
    return Fetched(Path(), info.sha, SplitFiles(module, urls, Path()))


def _fetched(root: Path, revision: str, module: str | None, files: Sequence[str]) -> Fetched:
    table = SplitFiles(module, [root / file for file in files], root) if module else None
    return Fetched(root, revision, table)


def _record(repo_id: str, split: str | None, revision: str | None) -> Path:
    """The file that says what was fetched of a data set by these words."""
    name = f"{repo_id.replace('/', '--')}-{digest_rows(repo_id, split, revision)}.json"
    return Path(constants.HF_HOME, "moss_vllm", "fetched", name)


def _fetched_before(repo_id: str, split: str | None, revision: str | None, error: Unreachable) -> Fetched:
    """What was fetched by these words, if all of it is in the cache; raises the error if not."""
    file = _record(repo_id, split, revision)
    if not file.is_file():
        raise error
    told = read_json(file, "remove it")
    commit, names = told["revision"], told["files"]
    paths = [try_to_load_from_cache(repo_id, n, revision=commit, repo_type="dataset") for n in names]
    if not paths or not all(isinstance(path, str) for path in paths):
        raise error
    root = Path(str(paths[0])).parents[len(PurePosixPath(names[0]).parts) - 1]
    if int(os.environ.get("RANK", 0)) == 0:
        say(f"{repo_id}: the hub cannot be reached; read as fetched before, commit {commit}", file=sys.stderr)
    return _fetched(root, commit, told["module"], names)


def look_up(repo_id: str, revision: str | None, *, sizes: bool = False) -> Any:
    """What the hub says of a data set at a revision: its commit and its files, with their `sizes`.

    Raises: BadRow for a repository or revision that the hub does not show; Unreachable for no network.
    """
    try:
        return HfApi().dataset_info(repo_id, revision=revision, timeout=WAIT_S, files_metadata=sizes)
    except RevisionNotFoundError as error:
        reason = f"has no revision {revision!r} on the hub"
        raise BadRow(repo_id, KIND, reason, "name a branch, a tag or a commit of it") from error
    except RepositoryNotFoundError as error:
        reason = "is no file or folder here, and the hub shows no data set of this name"
        remedy = "check the name, and log in by hf auth login if it is private or gated"
        raise BadRow(repo_id, KIND, reason, remedy) from error
    except Exception as error:  # of requests or httpx, by the version of huggingface_hub
        reason = f"is no file or folder here, and the hub cannot be reached ({type(error).__name__})"
        folder = repo_id.partition("/")[2]
        get = f"hf download {repo_id} --repo-type dataset --local-dir {folder}"
        remedy = f"where there is a network, {get}; and give {folder}"
        raise Unreachable(repo_id, KIND, reason, remedy) from error


def videos_beside(names: Iterable[str]) -> list[str]:
    """Patterns of the videos of a repository that lie where an annotation's are looked for."""
    patterns = []
    for name in names:
        path = PurePosixPath(name)
        folder = "" if str(path.parent) == "." else str(path.parent)
        if path.suffix.lower() in VIDEO_SUFFIXES and folder in (*TRAIN_FOLDERS, *CAPTION_FOLDERS):
            patterns.append(f"{folder}/*" if folder else glob.escape(name))
    return list(dict.fromkeys(patterns))


def download(repo_id: str, revision: str, patterns: Iterable[str], into: Path | None = None) -> Path:
    """The folder of these files, `into` or in the hub's cache; what is not there is fetched.

    Raises: OSError for a download that ends early.
    """
    try:
        wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(patterns), "local_dir": into}
        return Path(snapshot_download(repo_id, repo_type="dataset", **wanted))
    except Exception as error:  # as in `look_up`
        reason = " ".join(str(error).split())[:300]
        raise OSError(f"{repo_id}: the download ended early ({reason}); the same command goes on") from error
