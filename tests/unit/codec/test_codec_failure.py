from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from typing import Any

import bson
import codec_errors as e
import pytest

from streamline import errors
from streamline.codec import (
    CODEC_OPTIONS,
    Failure,
    decode_exception,
    encode_exception,
    failure_from_doc,
    failure_to_doc,
)

NOW = datetime(2026, 2, 28, 12, 30, 1, 123456)  # noqa: DTZ001 - naive ones are carried too


def enc(exc: BaseException, **more: Any) -> Failure:
    return encode_exception(exc, code="STEP_FAILED", **more)


def raised(exc: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise exc from cause
    except BaseException as caught:
        return caught


def unicode_error() -> Exception:
    try:
        b"\xff".decode()
    except UnicodeDecodeError as error:
        return error
    raise AssertionError


def json_error() -> Exception:
    try:
        json.loads("{]")
    except json.JSONDecodeError as error:
        return error
    raise AssertionError


def import_error() -> Exception:
    try:
        import nothing_of_that_name  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        return error
    raise AssertionError


def noted() -> Exception:
    error = ValueError("x")
    error.add_note("first")
    error.add_note("second")
    return error


EXCEPTIONS = [
    ValueError("x", 1, None),
    ValueError(),
    KeyError("missing"),
    FileNotFoundError(2, "No such file", "/tmp/x"),
    OSError("just text"),
    ConnectionResetError(104, "reset"),
    unicode_error(),
    json_error(),
    import_error(),
    StopIteration(5),
    AttributeError("no", name="field"),
    SyntaxError("bad", ("f.py", 1, 2, "text")),
    noted(),
    e.Declined("1234", amount=5),
    e.Slotted("why"),
    e.Frozen(NOW, (1, 2)),
    e.Attrs(5),
    e.Outer.Inner("x"),
    e.OwnNew("x"),
    ExceptionGroup("two", [ValueError("a"), ExceptionGroup("in", [KeyError("b")])]),
    e.Many("many", [e.Declined("1", amount=2)]),
    errors.StepTimeout("slow", run_id="r", step="charge"),
    errors.NonDeterminism("no", run_id="r", position=3, recorded="a", asked=("b", "c")),
    errors.RunFailed("no", run_id="r", error_code=errors.ErrorCode.STEP_FAILED),
    errors.MaxRetriesExceeded("no", run_id="r", step="s", type_name="a:B"),
    errors.RetryAfter("30s", "busy"),
]


def facts(exc: BaseException) -> dict[str, Any]:
    names = (
        "errno strerror filename encoding object start end reason msg name path value lineno "
        "offset text doc pos colno _hidden message"
    )
    held = {name: getattr(exc, name) for name in names.split() if hasattr(exc, name)}
    own = {k: v for k, v in vars(exc).items() if k != "__streamline_origin__"}
    return held | own | {"parts": [repr(part) for part in getattr(exc, "exceptions", ())]}


@pytest.mark.parametrize("exc", EXCEPTIONS)
def test_exception_comes_back_as_it_was(exc: Exception) -> None:
    failure = enc(raised(exc), step="charge")
    e.INITS.clear()

    back = decode_exception(failure)

    assert e.INITS == []
    assert type(back) is type(exc)
    assert str(back) == str(exc)
    if not isinstance(exc, ExceptionGroup | SyntaxError):  # their args hold more than data
        assert back.args == exc.args
    assert facts(back) == facts(exc)
    assert "test_codec_failure.py" in failure.traceback


@pytest.mark.parametrize(
    "exc",
    [*EXCEPTIONS, e.Unpicky(object()), e.BrokenStr(object()), e.Fatal("x"), SystemExit(3)],
    ids=lambda exc: type(exc).__name__,
)
def test_encoding_what_was_decoded_gives_the_same(exc: BaseException) -> None:
    failure = enc(raised(exc, KeyError("cause")), step="charge")

    assert enc(decode_exception(failure), step="charge") == failure
    assert enc(raised(decode_exception(failure)), step="charge").traceback.startswith(
        failure.traceback
    )


@pytest.mark.parametrize("exc", EXCEPTIONS)
def test_failure_is_stored_and_read_unchanged(exc: Exception) -> None:
    failure = enc(raised(exc, noted()))
    document = bson.decode(bson.encode(failure_to_doc(failure)), CODEC_OPTIONS)

    assert failure_from_doc(document) == failure


def test_document_that_is_no_failure_is_corruption() -> None:
    with pytest.raises(errors.DataCorruption, match="a stored error"):
        failure_from_doc({"code": 1})


def test_cause_is_kept() -> None:
    back = decode_exception(enc(raised(ValueError("x"), raised(e.Declined("1", amount=2)))))

    assert isinstance(back.__cause__, e.Declined)
    assert back.__cause__.amount == 2


def test_step_of_a_decoded_exception_is_kept_when_it_is_raised_on() -> None:
    back = decode_exception(enc(ValueError("x"), step="charge"))

    assert enc(back).step == "charge"
    assert enc(raised(KeyError(), back)).cause == enc(ValueError("x"), step="charge")


def test_change_to_a_decoded_exception_is_encoded() -> None:
    back = decode_exception(enc(e.Declined("1", amount=2)))
    back.add_note("later")
    back.amount = 3  # type: ignore[attr-defined]

    again = enc(back)
    assert (again.notes, again.attributes["amount"]) == (["later"], 3)


def test_what_cannot_be_carried_is_left_out() -> None:
    exc = e.Declined("1", amount=2)
    exc.socket = object()  # type: ignore[attr-defined]
    exc.args = (object(),)

    failure = enc(exc)

    assert failure.args is None
    assert failure.attributes == {"card": "1", "amount": 2}


@pytest.mark.parametrize(
    "exc",
    [
        e.BrokenStr("x"),
        e.BrokenDict("x"),
        ValueError("\ud800", 2**70),
        ValueError({1: object()}),
        e.Fatal(),
        KeyboardInterrupt(),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_any_exception_can_be_encoded_and_decoded(exc: BaseException) -> None:
    failure = enc(raised(exc))

    bson.encode(failure_to_doc(failure))
    assert isinstance(decode_exception(failure), Exception)


def test_cyclic_causes_end() -> None:
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first

    failure = enc(first)

    assert failure.cause is not None
    assert failure.cause.cause is None


def test_huge_exception_is_cut_to_the_limit() -> None:
    exc: BaseException = ValueError("x" * 10**6, list(range(10**5)))
    exc.add_note("n" * 10**6)
    for _ in range(100):
        exc = raised(ExceptionGroup("g" * 10**5, [exc] * 100), exc)  # type: ignore[list-item]

    failure = enc(exc, limit=10_000)

    assert len(bson.encode(failure_to_doc(failure))) < 20_000
    assert failure.message.endswith("characters in all]")


def test_class_that_is_not_loaded_gives_a_stand_in() -> None:
    failure = Failure(code="STEP_FAILED", type="nowhere:Gone", message="no funds", step="charge")

    back = decode_exception(failure, run_id="o-1")

    assert type(back) is errors.StepFailed
    assert "nowhere" not in sys.modules
    assert (back.run_id, back.step, back.type_name) == ("o-1", "charge", "nowhere:Gone")
    assert str(back) == "Gone: no funds"


def test_stand_in_after_the_last_attempt_says_so() -> None:
    failure = Failure(code="MAX_RETRIES_EXCEEDED", type="nowhere:Gone", message="")

    assert type(decode_exception(failure)) is errors.MaxRetriesExceeded


@pytest.mark.parametrize(
    "name",
    [
        "builtins:SystemExit",
        "builtins:int",
        "builtins:eval",
        "os:system",
        "codec_errors:NOT_A_CLASS",
        "codec_errors:Outer.__init__",
        "codec_errors:Outer.__class__",
        "codec_errors:",
        "codec_errors",
        "",
        ":",
        "builtins:ValueError.__subclasses__",
    ],
)
def test_name_of_anything_but_an_exception_class_gives_a_stand_in(name: str) -> None:
    failure = Failure(code="STEP_FAILED", type=name, message="x", args=["x"])

    assert type(decode_exception(failure)) is errors.StepFailed


def test_hostile_attributes_change_nothing_but_data() -> None:
    failure = enc(e.Declined("1", amount=1))
    hostile = {"__class__": "x", "__dict__": {}, "__traceback__": 1, "__cause__": 1, "ok": 1}
    back = decode_exception(
        Failure(code="X", type=failure.type, message="m", args=["m"], attributes=hostile)
    )

    assert type(back) is e.Declined
    assert back.__traceback__ is None
    assert back.ok == 1  # type: ignore[attr-defined]


def test_annotated_attributes_come_back_as_their_types() -> None:
    back = decode_exception(enc(errors.RetryAfter(timedelta(seconds=5))))

    assert isinstance(back, errors.RetryAfter)
    assert back.delay == timedelta(seconds=5)
