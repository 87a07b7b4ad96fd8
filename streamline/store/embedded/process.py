"""Launching and ending the mongod of a directory. Its callers hold the directory's start lock."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

from streamline.errors import ServerUnavailable
from streamline.store.embedded.binary import MONGOD_VARIABLE, find_mongod
from streamline.store.embedded.deadline import Deadline
from streamline.store.embedded.directory import DataDirectory
from streamline.store.embedded.replica_set import HOST, SET_NAME

_PORT_ATTEMPTS = 5
_TERMINATE_S = 15.0
_KILL_S = 10.0
_PORT_PATIENCE_S = 0.2
_OPLOG_MB = 256
_FORKED = re.compile(r"forked process: (\d+)")
_PORT_TAKEN = "address already in use"
# By default each log file is 100 MB, allocated ahead, and a start reads through it: 16 MB ones make
# a new directory 18 MB rather than 300, and a restart a quarter faster (measured).
_ENGINE = "log=(enabled=true,file_max=16MB,prealloc=false)"

_HINTS = (
    ("no space left", "Free some disk space and start again; nothing that was stored is lost."),
    (
        "shared librar",
        f"Install it, or set {MONGOD_VARIABLE} to a mongod made for this system.",
    ),
    ("signal 4", "MongoDB 5 and newer need a CPU with AVX: use a server elsewhere."),
    ("permission denied", "Make the directory readable and writable for this user."),
    ("dbpathinuse", "Another mongod runs on this directory: stop it."),
    ("featurecompatibility", "The data is of another MongoDB version: use that one's mongod."),
    ("invalid feature compat", "The data is of another MongoDB version: use that one's mongod."),
    ("unsupported wiredtiger", "The data is of another MongoDB version: use that one's mongod."),
    ("wt_try_salvage", "The data files are damaged: restore a backup, or try mongod --repair."),
    ("wiredtiger error", "The data files are damaged: restore a backup, or try mongod --repair."),
)
_NO_HINT = "Mend what it complains of, or name another directory."


def launch(directory: DataDirectory, cache_gb: float, deadline: Deadline) -> int:
    """Start mongod and return its port, once it listens.

    The port of last time is preferred: the replica set's configuration names it.

    Raises:
        ServerUnavailable: It didn't start; the message has what it said, and what to do.
    """
    binary = find_mongod()
    directory.rotate_log()
    port = directory.port
    if port is None or not _is_free(port):
        port = _free_port()
    for attempt in range(1, _PORT_ATTEMPTS + 1):
        directory.record_port(port)
        complaint = _run(_command(binary, directory, port, cache_gb), directory, deadline)
        if complaint is None:
            return port
        # Between the choice of a port and its use another process may have taken it.
        if _PORT_TAKEN not in complaint.lower() or attempt == _PORT_ATTEMPTS:
            raise ServerUnavailable(_explained(binary, directory, complaint))
        port = _free_port()
    raise AssertionError("unreachable")


def terminate(
    directory: DataDirectory, pid: int | None = None, *, patience_s: float = _TERMINATE_S
) -> None:
    """End the mongod that runs on a directory, gently if it obeys, and wait until it is gone.

    Args:
        pid: Its pid, when known; needed as long as it hasn't locked the data yet.
        patience_s: How long it may take before it is killed, which loses nothing.

    Raises:
        ServerUnavailable: It can't be signalled, or survived even a SIGKILL.
    """
    pid = pid or directory.mongod_pid()
    if pid is None:
        if not directory.in_use():
            return
        raise ServerUnavailable(
            f"The mongod on {directory.data} isn't a process of this host or container; it was "
            "left running."
        )
    for number, bound_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, _KILL_S)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        if _gone(directory, pid, Deadline(bound_s)):
            return
    raise ServerUnavailable(f"mongod, pid {pid}, on {directory.data} did not end.")


def _command(binary: Path, directory: DataDirectory, port: int, cache_gb: float) -> list[str]:
    # --fork detaches it into its own session, so that no Ctrl-C reaches it and nobody has to reap
    # it, and returns at the very moment when it listens, or with its exit code.
    return [
        str(binary),
        *("--fork", "--quiet", "--nounixsocket"),
        *("--dbpath", str(directory.data)),
        *("--logpath", str(directory.log), "--logappend"),
        *("--bind_ip", HOST, "--port", str(port)),
        *("--replSet", SET_NAME, "--oplogSize", str(_OPLOG_MB)),
        *("--wiredTigerCacheSizeGB", str(cache_gb)),
        *("--wiredTigerEngineConfigString", _ENGINE),
        *("--setParameter", "diagnosticDataCollectionEnabled=false"),
        # A member that isn't primary would wait 15 s for clients to go elsewhere.
        *("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=0"),
    ]


def _run(command: list[str], directory: DataDirectory, deadline: Deadline) -> str | None:
    """Run the launching process; return None when mongod listens, else what went wrong."""
    try:
        launcher = subprocess.Popen(
            command,
            cwd=directory.path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return f"It can't be executed: {error}"
    with launcher:
        output = _output(launcher, deadline)
        if not deadline.remaining_s and launcher.poll() is None:
            launcher.kill()
            forked = _FORKED.search(output)
            pid = int(forked.group(1)) if forked else None
            terminate(directory, pid if pid and directory.is_mongod(pid) else None)
            return f"It did not listen in time.\n{directory.log_tail()}"
    if launcher.returncode == 0:
        return None
    code = launcher.returncode
    ending = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"It {ending}.\n{output.strip()}\n{directory.log_tail()}".rstrip()


def _output(launcher: subprocess.Popen[str], deadline: Deadline) -> str:
    """Return what it prints until it ends, or until the deadline."""
    while True:
        try:
            return launcher.communicate(timeout=0.1)[0]
        except subprocess.TimeoutExpired as waiting:
            # In slices, as the deadline may be brought forward meanwhile.
            if not deadline.remaining_s:
                return (waiting.stdout or b"").decode(errors="replace")


def _explained(binary: Path, directory: DataDirectory, complaint: str) -> str:
    lowered = complaint.lower()
    hint = next((hint for sign, hint in _HINTS if sign in lowered), _NO_HINT)
    return (
        f"mongod ({binary}) did not start on {directory.data}. {complaint}\n{hint} "
        f"(The whole log: {directory.log})"
    )


def _gone(directory: DataDirectory, pid: int, deadline: Deadline) -> bool:
    while directory.in_use() or _alive(pid):
        try:
            deadline.pause("mongod still runs")
        except ServerUnavailable:
            return False
    return True


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        # Without /proc (macOS) the lock on the data, released as it ends, is all there is.
        return False
    # In a container without an init process nobody reaps it: a zombie is gone, too. But not while
    # it has threads, which still hold its port for some milliseconds.
    fields = status.rpartition(")")[2].split()
    return fields[0] not in "ZX" or int(fields[17]) > 1


def _is_free(port: int) -> bool:
    # A mongod that was just killed releases its data before its port; another port costs seconds.
    patience = Deadline(_PORT_PATIENCE_S)
    while not (free := _can_bind(port)) and patience.remaining_s:
        time.sleep(0.01)
    return free


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        # As mongod does: connections of its predecessor in TIME_WAIT don't matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
