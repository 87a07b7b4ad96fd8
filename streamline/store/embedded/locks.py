"""Advisory locks on files, which the kernel releases when their holder dies, however it dies.

`flock` rather than `fcntl` locks: it belongs to the open file, so two engines in one process
exclude each other as two processes do.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from streamline.errors import ServerUnavailable
from streamline.store.embedded.deadline import Deadline

if sys.platform != "win32":
    import fcntl


class FileLock:
    """An open lock file. It is never unlinked: a second file of its name would be another lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pid = os.getpid()
        # O_CLOEXEC is Python's default, so that mongod doesn't inherit, and so keep, the lock.
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def try_exclusive(self) -> bool:
        """Take it alone; on failure a shared lock that was held is gone too."""
        return _flock(self._descriptor, exclusive=True)

    def try_shared(self) -> bool:
        """Take it with others."""
        return _flock(self._descriptor, exclusive=False)

    def exclusive(self, deadline: Deadline) -> None:
        """Take it alone, waiting for others.

        Raises:
            ServerUnavailable: Others held it until the deadline.
        """
        while not self.try_exclusive():
            deadline.pause(f"{self._path} stayed locked: another process starts or stops mongod.")

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def release(self) -> None:
        """Give it up and close the file."""
        # A forked child shares the open file: unlocking there would unlock the parent, and closing
        # here wouldn't unlock while the child lives.
        if os.getpid() == self._pid and sys.platform != "win32":
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)


def is_locked(path: Path) -> bool:
    """Tell whether some process holds an exclusive lock on a file, which may be missing."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _flock(descriptor, exclusive=False)
    finally:
        os.close(descriptor)


def _flock(descriptor: int, *, exclusive: bool) -> bool:
    if sys.platform == "win32":
        raise ServerUnavailable(
            "The embedded MongoDB needs Linux or macOS. Run a MongoDB server, and set "
            "STREAMLINE_MONGODB_URI."
        )
    mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
