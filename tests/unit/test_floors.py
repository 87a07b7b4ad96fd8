"""What `make floors` tests are the versions that the package promises to work with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
USED = {"attrs", "pytest", "pytest-asyncio"}
"""Beside the dependencies: what the codec and the pytest plugin meet in users' environments."""


def test_the_floors_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    promised = dict(
        re.fullmatch(r"([a-z-]+)>=([0-9.]+)", line).groups()  # type: ignore[union-attr]
        for line in (*project["dependencies"], *extras["crypto"], *extras["dev"])
        if line.partition(">=")[0] in USED or line not in extras["dev"]
    )
    lines = (ROOT / "tests" / "floors.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert tested.keys() == promised.keys()
    for name, version in tested.items():
        assert f"{version}.".startswith(f"{promised[name]}."), name
