"""Classes by name, in the modules that this process has loaded; nothing is ever imported."""

from __future__ import annotations

import sys
from typing import Any


def class_name(cls: type) -> str:
    """Return the name that `loaded_class` takes: `module:qualname`."""
    return f"{cls.__module__}:{cls.__qualname__}"


def loaded_class(name: Any) -> type | None:
    """Return the class of that name, or None.

    Only `__dict__`s are walked: a module's or metaclass's `__getattr__` could import or run code,
    and the name may come from anyone who can write to the database.
    """
    if not isinstance(name, str):
        return None
    module_name, _, qualname = name.partition(":")
    found: Any = _module(module_name)
    for part in qualname.split("."):
        if found is None:
            return None
        found = vars(found).get(part)
        if not isinstance(found, type):
            return None
    return found if isinstance(found, type) else None


def _module(name: str) -> Any:
    module = sys.modules.get(name)
    if module is not None:
        return module
    # `python -m app` loads the module `app` under another name.
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return main if spec is not None and spec.name == name else None
