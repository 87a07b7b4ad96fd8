"""Changing one document and getting it back, in one command."""

from __future__ import annotations

from typing import Any

from pymongo import ReturnDocument
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import WriteConcernError

from streamline.store.connection import Document


async def find_and_modify(
    collection: AsyncCollection[Document], fits: Document, change: Any, fields: Any = None
) -> Document | None:
    """Update the first document that fits; returns it as it is afterwards, or None.

    Raises:
        PyMongoError: As `find_one_and_update`.
    """
    try:
        return await collection.find_one_and_update(
            fits, change, projection=fields, return_document=ReturnDocument.AFTER
        )
    except AttributeError as error:
        # PyMongo (4.20) trips over a write concern error with labels, such as a step-down leaves,
        # where the codec has decoders of types: it tries to change a RawBSONDocument.
        if "RawBSONDocument" not in str(error):
            raise
        raise WriteConcernError("the write may not be durable: PyMongo lost the reason") from error
