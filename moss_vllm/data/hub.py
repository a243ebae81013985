"""Data sets of the hub: one split at one commit, fetched whole and once, then read like files on disk.

A repository with an annotation of a known name is fetched as the folder that it is, with the videos beside;
of any other the files of one split, as `datasets` finds them. An interrupted download goes on.
"""

import glob
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from moss_vllm.data.annotations import VIDEO_SUFFIXES
from moss_vllm.data.favor import TRAIN_FILES, TRAIN_FOLDERS
from moss_vllm.data.motionbench import CAPTION_FILES, CAPTION_FOLDERS
from moss_vllm.data.rows import BadRow
from moss_vllm.data.tables import SplitFiles, find_split

KIND = "data set"  # the place in messages
WAIT_S = 10.0


class Fetched(NamedTuple):
    """A folder with what was fetched, the commit it is of, and its table if it is one."""

    root: Path
    revision: str
    table: SplitFiles | None


def fetch(repo_id: str, split: str | None, revision: str | None) -> Fetched:
    """Fetch what is to be read of a data set.

    Raises: BadRow for a repository, revision or split that the hub does not show, or no network.
    """
    info = look_up(repo_id, revision)
    names = [file.rfilename for file in info.siblings]
    known = [name for name in (*TRAIN_FILES, *CAPTION_FILES) if name in names]
    if known and split is None:
        root = download(repo_id, info.sha, [*known, *videos_beside(names)])
        return Fetched(root, info.sha, None)
    module, urls = find_split(f"hf://datasets/{repo_id}", split, repo_id, revision=info.sha)
    files = [url.partition(f"@{info.sha}/")[2] for url in urls]
    root = download(repo_id, info.sha, map(glob.escape, files))
    return Fetched(root, info.sha, SplitFiles(module, [root / file for file in files], root))


def look_up(repo_id: str, revision: str | None, *, sizes: bool = False) -> Any:
    """What the hub says of a data set at a revision: its commit and its files, with their `sizes`.

    Raises: as `fetch`.
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
        raise BadRow(repo_id, KIND, reason, f"where there is a network, {get}; and give {folder}") from error


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
