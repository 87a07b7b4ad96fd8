"""Who a worker is, and whether it is dead."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from streamline.worker.identity import WorkerId

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_an_id_survives_its_text():
    me = WorkerId.new()
    assert WorkerId.parse(str(me)) == me
    assert me.pid == os.getpid()


def test_two_workers_of_one_process_differ():
    assert WorkerId.new() != WorkerId.new()


@pytest.mark.parametrize("text", ["", "w1", "a/b/c/d/e/f", "a/b/c/1/e", "a/b/c/1/e/2/3", "////1/1"])
def test_other_ids_are_nobodys(text):
    parsed = WorkerId.parse(text)
    assert parsed is None or not parsed.is_dead


def test_a_host_name_with_slashes_does_not_spoil_the_id(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "a/b")
    assert WorkerId.parse(str(WorkerId.new())) is not None


@linux
def test_a_living_process_is_not_dead():
    assert not WorkerId.new().is_dead


def stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


@linux
def test_a_process_that_ended_is_dead_also_as_a_zombie():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = stat(child.pid)[19]
    one = msgspec.structs.replace(WorkerId.new(), pid=child.pid, started=started)
    assert not one.is_dead
    child.kill()
    while stat(child.pid)[0] != "Z":
        time.sleep(0.001)
    assert one.is_dead  # a zombie
    child.communicate()
    assert one.is_dead


@linux
def test_a_pid_used_again_is_not_mistaken_for_the_dead_one():
    mine = WorkerId.new()
    assert msgspec.structs.replace(mine, started=str(int(mine.started) - 1)).is_dead


@linux
@pytest.mark.parametrize("field", ["host", "boot", "namespace"])
def test_a_worker_elsewhere_is_never_said_to_be_dead(field):
    elsewhere = msgspec.structs.replace(WorkerId.new(), pid=2**22 + 1, **{field: "other"})
    assert not elsewhere.is_dead


def test_where_proc_is_missing_nobody_is_said_to_be_dead(monkeypatch):
    monkeypatch.setattr("streamline.worker.identity._place", lambda: ("host", "", ""))
    monkeypatch.setattr("streamline.worker.identity._start_time", lambda pid: None)
    assert not WorkerId.new().is_dead
