"""Pydantic models, told by their attributes: this module must not import pydantic.

Fields are read one by one rather than by `model_dump`, which leaves out `exclude`d fields, adds
computed ones, and runs serialisers whose output the model need not accept again.
"""

from __future__ import annotations

from typing import Any


def is_model(type_: Any) -> bool:
    """Whether the class is a pydantic (v2) model; pydantic's dataclasses are dataclasses."""
    return isinstance(type_, type) and hasattr(type_, "__pydantic_root_model__")


def field_names(model: Any) -> list[str]:
    """The names of the model's fields, as attributes."""
    return list(model.__pydantic_fields__)


def known_keys(model: Any) -> set[str]:
    """The keys under which the model looks for its fields: names and aliases."""
    keys = set(model.__pydantic_fields__)
    for field in model.__pydantic_fields__.values():
        aliases = (field.alias, field.validation_alias)
        keys.update(alias for alias in aliases if isinstance(alias, str))
    return keys


def is_root_model(model: Any) -> bool:
    """Whether the model stands for a bare value (`RootModel`)."""
    return bool(model.__pydantic_root_model__)


def extra_of(instance: Any) -> dict[str, Any]:
    """What the model holds beyond its fields (`extra="allow"`)."""
    return dict(getattr(instance, "__pydantic_extra__", None) or {})


def dump_field(instance: Any, name: str) -> Any:
    """Let the model itself make one field JSON-like, for types that only pydantic knows."""
    return instance.model_dump(mode="json", include={name})[name]


def validate(model: Any, value: Any) -> Any:
    """Build the model from what its fields were encoded to.

    Raises:
        ValueError: The value does not fit (pydantic's error is one).
    """
    # A strict model refuses the text that its own datetimes are stored as.
    strict = False if model.model_config.get("strict") else None
    if is_root_model(model):
        return model.model_validate(value, strict=strict)
    return model.model_validate(value, strict=strict, by_name=True, by_alias=True)
