"""`PayloadCodec`: what stands between payloads and the database; `AesGcm`, which encrypts them.

Works on BSON-native data, after the codec of values and before the store. Knows no runs beyond
their ids; which fields are payloads is the store's business.
"""

from __future__ import annotations

import hmac
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import bson

from streamline.codec.options import CODEC_OPTIONS
from streamline.errors import DataCorruption, ValidationError

_KEY_BYTES = 32
_NONCE_BYTES = 12
_MAX_CIPHERS = 4096
_MISSING = "AesGcm needs the package cryptography: pip install 'streamline-durable[crypto]'"


class PayloadCodec(ABC):
    """Encodes payloads on their way to the database, and decodes them on their way back.

    Rules: `decode` gives back what `encode` was given, for the same run and field; both are called
    in the event loop, often, and must not block; what `encode` returns must be BSON-native.
    """

    seals_context: bool = False
    """Whether the runs' context, which is there to be queried, is a payload too."""
    accepts_plain: bool = False
    """Whether `decode` takes what was stored without a codec; then such runs are driven as well."""

    @abstractmethod
    def encode(self, native: Any, *, run_id: str, field: str) -> Any:
        """Return what is to be stored in the place of a payload.

        Args:
            native: BSON-native data; never None.
            run_id: The run that it belongs to.
            field: Its place in the run.
        """

    @abstractmethod
    def decode(self, stored: Any, *, run_id: str, field: str) -> Any:
        """Return the payload again.

        Raises:
            DataCorruption: It isn't what `encode` returned for this run and field.
        """


class AesGcm(PayloadCodec):
    """Encrypts payloads with AES-256-GCM, bound to their run and to their place in it.

    A stored payload is `{"key": "2026-01", "aes_gcm": <bytes>}`. To rotate keys, first give all
    processes the new key, then make it the `current` one, and drop the old one when no run that was
    written under it is needed any more.

    Args:
        keys: Key id -> 32 random bytes, such as `os.urandom(32)`.
        current: The id of the key to encrypt with; all are tried for decryption by their ids.
        seal_context: Encrypt the runs' context too; it can't be queried any more.
        accept_plain: Take payloads that were stored without encryption, for the time that it takes
            to move over. Whoever can write to the database can then replace payloads.
    """

    def __init__(
        self,
        keys: Mapping[str, bytes],
        *,
        current: str,
        seal_context: bool = False,
        accept_plain: bool = False,
    ) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise ValidationError(_MISSING) from error
        for key_id, key in keys.items():
            if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
                raise ValidationError(
                    f"the key {key_id!r} must be {_KEY_BYTES} random bytes, os.urandom(32)"
                )
        if current not in keys:
            raise ValidationError(f"the current key {current!r} is not among {sorted(keys)}")
        self.seals_context = seal_context
        self.accepts_plain = accept_plain
        self._keys = dict(keys)
        self._current = current
        self._cipher = AESGCM
        self._invalid = InvalidTag
        self._ciphers: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def __repr__(self) -> str:
        return f"AesGcm(keys={sorted(self._keys)}, current={self._current!r})"

    def encode(self, native: Any, *, run_id: str, field: str) -> Any:
        plain = bson.encode({"v": native}, codec_options=CODEC_OPTIONS)
        nonce = os.urandom(_NONCE_BYTES)
        cipher = self._cipher_of(self._current, run_id)
        sealed = cipher.encrypt(nonce, plain, _bound(run_id, field))
        return {"key": self._current, "aes_gcm": nonce + sealed}

    def decode(self, stored: Any, *, run_id: str, field: str) -> Any:
        if not _is_envelope(stored):
            if self.accepts_plain:
                return stored
            raise _corrupt(run_id, field, "it is not encrypted")
        key_id, sealed = stored["key"], stored["aes_gcm"]
        if key_id not in self._keys:
            raise _corrupt(
                run_id, field, f"its key {key_id!r} is not among those given, {sorted(self._keys)}"
            )
        nonce, text = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            plain = self._cipher_of(key_id, run_id).decrypt(nonce, text, _bound(run_id, field))
        except (self._invalid, ValueError) as error:
            raise _corrupt(
                run_id, field, "it was changed or moved, or its key id has another key now"
            ) from error
        return bson.decode(plain, codec_options=CODEC_OPTIONS)["v"]

    def _cipher_of(self, key_id: str, run_id: str) -> Any:
        """Return the cipher of one run.

        A key of its own for each run (HKDF-Expand, RFC 5869): with random nonces one key is good
        for 2^32 messages, which all runs together may reach within weeks, and one never does.
        """
        found = self._ciphers.get((key_id, run_id))
        if found is not None:
            self._ciphers.move_to_end((key_id, run_id))
            return found
        derived = hmac.digest(
            self._keys[key_id], b"streamline/1/" + run_id.encode() + b"\1", "sha256"
        )
        cipher = self._ciphers[key_id, run_id] = self._cipher(derived)
        if len(self._ciphers) > _MAX_CIPHERS:
            self._ciphers.popitem(last=False)
        return cipher


def _bound(run_id: str, field: str) -> bytes:
    # With the length, so that no other pair of texts gives the same bytes.
    return f"{len(run_id)}:{run_id}/{field}".encode()


def _is_envelope(stored: Any) -> bool:
    return (
        isinstance(stored, dict)
        and stored.keys() == {"key", "aes_gcm"}
        and isinstance(stored["key"], str)
        and isinstance(stored["aes_gcm"], bytes)
    )


def _corrupt(run_id: str, field: str, why: str) -> DataCorruption:
    return DataCorruption(
        f"The payload {field!r} of run {run_id!r} can't be decrypted: {why}. Give the codec the "
        "key that it was written with, or restore the document; then `retry` the run.",
        run_id=run_id,
    )
