"""A MongoDB of one's own: `Streamline()` without a server runs a `mongod` in a local directory.

Knows nothing of runs: it hands out a connection string. Blocking work runs in threads.
"""

from streamline.store.embedded.binary import find_mongod
from streamline.store.embedded.mongod import EmbeddedMongod

__all__ = ["EmbeddedMongod", "find_mongod"]
