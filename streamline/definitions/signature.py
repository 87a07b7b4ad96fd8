"""What the annotations of a decorated function say about its arguments and its result."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, get_type_hints

from streamline.codec import LargePayload, decode, encode
from streamline.errors import ValidationError
from streamline.model import Input

_ONE_BY_POSITION = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)


class Signature:
    """The typed parameters and the result type of a function.

    Args:
        fn: The function.
        frame_locals: Names visible where it was defined, for annotations that name local classes.
    """

    def __init__(self, fn: Callable[..., Any], frame_locals: Mapping[str, Any] | None) -> None:
        self.fn = fn
        self._signature = inspect.signature(fn)
        self._hints: dict[str, Any] | None = None
        if frame_locals is not None and "<locals>" in fn.__qualname__:
            self._hints = _try_hints(fn, frame_locals)

    @property
    def hints(self) -> dict[str, Any]:
        """The resolved annotations; resolved late, so that they may name what comes later.

        Raises:
            ValidationError: A name in them is not defined.
        """
        if self._hints is None:
            try:
                self._hints = get_type_hints(self.fn, include_extras=True)
            except (NameError, TypeError, AttributeError) as error:
                raise ValidationError(
                    f"the annotations of {self.fn.__qualname__} can't be resolved: {error}. "
                    "Define what they name at module level"
                ) from error
        return self._hints

    @cached_property
    def returns(self) -> Any:
        """The annotation of the result; `Any` if there is none."""
        return self.hints.get("return", Any)

    def encode_input(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        what: str,
        limit: int,
        inline: int | None = None,
    ) -> Input:
        """Return encoded arguments, once they are known to fit the parameters.

        Args:
            args: The positional ones.
            kwargs: The named ones.
            what: A phrase for error messages.
            limit: The largest size, in bytes of BSON.
            inline: Beyond this size they are one `LargePayload`.

        Raises:
            ValidationError: They don't fit the signature or the annotations, or can't be stored.
            PayloadTooLarge: They are larger than `limit` bytes.
        """
        encoded = encode([list(args), kwargs], what=what, limit=limit, inline=inline)
        if isinstance(encoded, LargePayload):
            given = Input().with_payload(encoded)
        else:
            given = Input(args=encoded[0], kwargs=encoded[1])
        self.decode_input(given, what=what)
        return given

    def decode_input(self, given: Input, *, what: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments as the annotations say.

        Raises:
            ValidationError: They don't fit the signature or the annotations.
        """
        args, kwargs = given.arguments()
        if not kwargs and self._binds_by_position(len(args)):
            each = zip(args, self._by_position, strict=False)
            return tuple(
                [
                    decode(value, hint, what=f"argument {name!r} of {what}")
                    for value, (name, hint) in each
                ]
            ), {}
        bound = self._bind(tuple(args), dict(kwargs), what=what)
        for name, value in bound.arguments.items():
            kind = self._signature.parameters[name].kind
            hint = self.hints.get(name, Any)
            where = f"argument {name!r} of {what}"
            if kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(decode(item, hint, what=where) for item in value)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = {
                    key: decode(item, hint, what=where) for key, item in value.items()
                }
            else:
                bound.arguments[name] = decode(value, hint, what=where)
        return bound.args, bound.kwargs

    @cached_property
    def _by_position(self) -> list[tuple[str, Any]]:
        """Name and annotation of the parameters that take one argument each, given by position."""
        return [
            (parameter.name, self.hints.get(parameter.name, Any))
            for parameter in self._signature.parameters.values()
            if parameter.kind in _ONE_BY_POSITION
        ]

    @cached_property
    def _least(self) -> int | None:
        """How many arguments must be given, where all may be by position and none is in a tuple."""
        parameters = self._signature.parameters.values()
        required = [each for each in parameters if each.default is inspect.Parameter.empty]
        plain = [each for each in required if each.kind in _ONE_BY_POSITION]
        takes_more = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters)
        named = any(each.kind is inspect.Parameter.KEYWORD_ONLY for each in required)
        return None if takes_more or named else len(plain)

    def _binds_by_position(self, count: int) -> bool:
        """Whether so many arguments bind to the first parameters, without `inspect` asked: slow."""
        least = self._least
        return least is not None and least <= count <= len(self._by_position)

    def _bind(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, what: str
    ) -> inspect.BoundArguments:
        try:
            return self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ValidationError(
                f"{what} don't fit {self.fn.__qualname__}{self._signature}: {error}"
            ) from error


def _try_hints(fn: Callable[..., Any], frame_locals: Mapping[str, Any]) -> dict[str, Any] | None:
    """Resolve with the names at hand; None if one of them is defined only later."""
    module = sys.modules.get(fn.__module__)
    try:
        return get_type_hints(
            fn, vars(module) if module else None, dict(frame_locals), include_extras=True
        )
    except (NameError, TypeError, AttributeError):
        return None
