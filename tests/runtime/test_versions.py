"""Owns: what a result says of the packages and the commit that made it."""

import subprocess
from importlib.metadata import version

import av
import pytest

from moss_vllm.runtime.versions import ABSENT, PACKAGES, git_commit, tell_changes, versions, without_absent


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path):
    """A repository in the folder of another one, with the package in it."""
    root = tmp_path / "other" / "clone"
    (root / "moss_vllm").mkdir(parents=True)
    (root / "moss_vllm" / "__init__.py").write_text("")
    for folder in (root.parent, root):
        git(folder, "init", "-q")
        git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "second")
    return root


def test_a_clone_has_its_commit_and_whether_files_differ_from_it(clone, monkeypatch):
    commit = git(clone, "rev-parse", "HEAD")[:12]
    git(clone, "tag", "v1")
    monkeypatch.setenv("GIT_DIR", str(clone.parent / ".git"))  # as in a hook of the other repository
    assert git_commit(clone) == commit
    (clone / "untracked").touch()
    assert git_commit(clone) == commit
    (clone / "moss_vllm" / "__init__.py").write_text("changed = True")
    assert git_commit(clone) == f"{commit}-dirty"


def test_another_projects_repository_is_not_taken_for_it(clone, monkeypatch):
    git(clone, "rm", "-q", "--cached", "moss_vllm/__init__.py")  # installed into the folder of a repository
    assert git_commit(clone) is None
    (clone / ".git").rename(clone / "moved")
    assert git_commit(clone) is None
    (clone / ".git").mkdir()
    assert git_commit(clone) is None


def test_without_git_there_is_no_commit(clone, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_commit(clone) is None


def test_every_package_has_its_version_or_is_said_to_be_absent():
    found = versions()
    assert list(found) == ["python", *PACKAGES, *sorted(av.library_versions), "git_commit"]
    assert (found["torch"], found["av"]) == (version("torch"), version("av")) and found[
        "flash-attn"
    ] == ABSENT
    assert found["libavcodec"] == ".".join(map(str, av.library_versions["libavcodec"]))
    shown = without_absent({**found, "git_commit": None})
    assert "torch" in shown and not {"flash-attn", "git_commit"} & shown.keys()


def test_the_versions_are_those_of_the_start(monkeypatch):
    at_start = versions()
    at_start.pop("torch")  # a caller's copy
    monkeypatch.setattr("moss_vllm.runtime.versions.version", lambda package: "0")
    assert versions()["torch"] == version("torch")


def test_what_both_recorded_and_differs_is_told():
    was = {"python": "3.11.7", "av": "17.1.0", "decord": ABSENT, "git_commit": None, "old": "1"}
    now = {"python": "3.11.7", "av": "18.1.0", "decord": "0.6.0", "git_commit": "abc-dirty", "new": "1"}
    told = "av 17.1.0 and 18.1.0, decord not installed and 0.6.0, git_commit none and abc-dirty"
    assert tell_changes(was, now) == told and tell_changes(was, was) == tell_changes({}, now) == ""
