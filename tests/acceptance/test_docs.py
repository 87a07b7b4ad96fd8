"""The documents say what is so: their code is valid, and what they name is there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import streamline
from streamline.errors import ErrorCode
from streamline.events import EVENT_NAMES

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def python_blocks(path: Path) -> list[str]:
    blocks: list[str] = FENCE.findall(path.read_text(encoding="utf-8"))
    return [block for block in blocks if not block.startswith("--8<--")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_in_documents_is_valid_and_imports_what_exists(path: Path) -> None:
    for block in python_blocks(path):
        tree = compile(block, str(path), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "streamline":
                missing = [a.name for a in node.names if not hasattr(streamline, a.name)]
                assert missing == []


def test_every_test_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "README.md").read_text(encoding="utf-8")))
    sources = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("*.py"))
    assert named
    assert {name for name in named if f"def {name}(" not in sources} == set()


def test_the_readmes_example_and_its_test_run(tmp_path: Path) -> None:
    blocks = python_blocks(ROOT / "README.md")
    example = next(block for block in blocks if "async def checkout" in block)
    test = next(block for block in blocks if "async def test_" in block)
    (tmp_path / "test_readme.py").write_text(f"{example}\n{test}", encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n", encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "1 passed" in result.stdout, result.stdout + result.stderr


def test_every_error_code_is_explained() -> None:
    text = (ROOT / "docs/production/errors.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", text, re.MULTILINE)) == set(ErrorCode)


def test_every_event_is_listed() -> None:
    text = (ROOT / "docs/reference/errors.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+:[\w-]+)`", text)) == EVENT_NAMES


def test_every_public_name_is_in_the_reference() -> None:
    reference = "\n".join(
        page.read_text(encoding="utf-8") for page in (ROOT / "docs/reference").glob("*.md")
    )
    shown = set(re.findall(r"^::: streamline\.(?:context\.)?(\w+)$", reference, re.MULTILINE))
    errors = {name for name in streamline.__all__ if hasattr(streamline.errors, name)}
    told = {name for name in streamline.__all__ if f"`{name}`" in reference}
    assert set(streamline.__all__) - shown - errors - told == set()
