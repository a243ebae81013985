"""Locks between processes: a file that one process holds; the system frees it when that process is killed."""

from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from moss_vllm.runtime.files import is_still


class Lock:
    """A lock file, which is removed when it is dropped."""

    def __init__(self, file: Path) -> None:
        self.file, self.lock = file, FileLock(file)

    def take(self, *, wait: bool = False) -> bool:
        """Whether this process holds it now; without `wait` another process may.

        Raises: OSError where no file can be made or locked.
        """
        try:
            self.lock.acquire(blocking=wait)
        except Timeout:
            return False
        self.state = self.file.stat()
        return True

    def drop(self) -> None:
        """Let go. The file is removed, unless it is another process's: that may have made the folder anew."""
        if self.lock.is_locked and is_still(self.file, self.state):
            with suppress(OSError):  # Windows does not remove an open file
                self.file.unlink()
        self.lock.release()

    def is_held(self) -> bool:
        """Whether a living process holds it."""
        if not self.file.exists():
            return False
        if not self.take():
            return True
        self.drop()
        return False
