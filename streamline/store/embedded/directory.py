"""The directory of an embedded MongoDB: its files, and what they tell of the mongod on it.

Whether one runs is never concluded from a stored pid, which may be another process's by now, but
from the lock that mongod itself holds on `mongodb/mongod.lock`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from streamline.store.embedded.locks import is_locked

_LOG_LINES = 12


class DataDirectory:
    """The files under `path`, which is made absolute."""

    def __init__(self, path: Path | str) -> None:
        self.path: Path = Path(path).expanduser().resolve()
        self.data: Path = self.path / "mongodb"
        self.log: Path = self.path / "mongod.log"
        self.start_lock: Path = self.path / "start.lock"
        self.users_lock: Path = self.path / "users.lock"
        self._state = self.path / "mongod.json"
        self._mongod_lock = self.data / "mongod.lock"

    def create(self) -> None:
        """Make the directories, for this user alone: the server asks for no password."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.data.mkdir(mode=0o700, exist_ok=True)
        ignore = self.path / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n", encoding="utf-8")

    @property
    def port(self) -> int | None:
        """The port that was last given to mongod here, if any."""
        try:
            port = json.loads(self._state.read_text(encoding="utf-8"))["port"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return port if isinstance(port, int) else None

    def record_port(self, port: int) -> None:
        """Store the port; before mongod is launched, so that a crash can't lose it."""
        draft = self._state.with_suffix(".new")
        draft.write_text(json.dumps({"port": port}) + "\n", encoding="utf-8")
        draft.replace(self._state)

    def in_use(self) -> bool:
        """Tell whether a mongod runs on the data, starting and stopping ones included."""
        return is_locked(self._mongod_lock)

    def mongod_pid(self) -> int | None:
        """Return the pid of the mongod that runs here, if it is one that may be signalled.

        A lock file's pid may be of another pid namespace (a container that shares the directory),
        so that process must also have been started on this directory.
        """
        try:
            pid = int(self._mongod_lock.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return pid if self.in_use() and self.is_mongod(pid) else None

    def is_mongod(self, pid: int) -> bool:
        """Tell whether a process was started on this directory."""
        return str(self.data) in _command_line(pid)

    def rotate_log(self) -> None:
        """Set the log of the last mongod aside; one such is kept."""
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))

    def log_tail(self) -> str:
        """Return the last lines of the log, shortened for people."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(_shortened(line) for line in lines[-_LOG_LINES:])


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        pass
    if os.path.isdir("/proc/self"):
        return ""
    ps = ["ps", "-ww", "-o", "command=", "-p", str(pid)]  # macOS has no /proc.
    return subprocess.run(ps, capture_output=True, text=True, check=False).stdout


def _shortened(line: str) -> str:
    try:
        entry = json.loads(line)
        attributes = json.dumps(entry["attr"]) if "attr" in entry else ""
        return f"{entry['s']} {entry['msg']} {attributes}"[:400].rstrip()
    except (ValueError, KeyError, TypeError):
        return line[:400]
