"""Every example runs as it stands: as a script, in an empty directory, without a MongoDB."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MODULES_OF_EXAMPLES = {"orders.py"}

pytestmark = [pytest.mark.mongo, pytest.mark.timeout(120)]


def run_example(name: str, directory: Path) -> str:
    """Run an example in a directory of its own and return what it printed."""
    chosen = ("STREAMLINE_MONGODB_URI", "NO_COLOR", "FORCE_COLOR")
    environment = {key: value for key, value in os.environ.items() if key not in chosen}
    result = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", str(EXAMPLES / name)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr, result.stderr
    return result.stdout


def mongods_below(directory: Path) -> list[str]:
    """Return the command lines of the servers that run on data below a directory."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in lines if "mongod" in line and f"{directory}/" in line]


def test_every_example_is_tested_here() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")} - MODULES_OF_EXAMPLES
    source = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in scripts if f'"{name}"' not in source} == set()


def test_quickstart_charges_waits_and_ships(tmp_path: Path) -> None:
    output = run_example("quickstart.py", tmp_path)
    assert output.count("charging 42 for o-1") == 1
    assert "asked: Please approve {'order_id': 'o-1', 'amount': 42}" in output
    assert output.endswith("result: o-1 is on its way\n")
    assert (tmp_path / ".streamline").is_dir()
    assert mongods_below(tmp_path) == []


@pytest.mark.kill
def test_crash_recovery_runs_only_the_interrupted_step_again(tmp_path: Path) -> None:
    output = run_example("crash_recovery.py", tmp_path)
    assert "killed with SIGKILL" in output
    assert "calls: {'fetch': 1, 'add_up': 2, 'publish': 1}" in output
    assert "recorded: fetch (claim 1), add_up (claim 2), publish (claim 2)" in output
    assert mongods_below(tmp_path) == []


@pytest.mark.kill
def test_the_demo_keeps_its_promises_through_two_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    output = run_example("order_demo.py", tmp_path)
    assert output.count("killed with SIGKILL") == 2
    assert output.count("approved, and stored:") == 2
    assert len(re.findall(r"^o-\d +done +7 ", output, re.MULTILINE)) == 6
    assert output.count("it ran again with the same key") >= 2
    assert "all 6 runs are done; 42 steps are recorded, each once" in output
    assert "BROKEN" not in output
    assert mongods_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == [], "the demo left files behind"
