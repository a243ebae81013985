"""What several scripts' tests share."""

from pathlib import Path

import pytest


@pytest.fixture
def here(request, monkeypatch):
    """Do the jobs of the module's SCRIPT in this process; the names of the files that were read, in order."""
    names = []

    def run(work, jobs, *, workers, limit_s):
        for job in list(jobs):
            names.append(Path(getattr(job, "path", None) or job[0]).name)
            yield job, work(job)

    monkeypatch.setattr(request.module.SCRIPT, "run_isolated", run)
    return names
