# Beanie's base class is annotated, but its package lacks the marker `py.typed`, and so
# `pyright --verifytypes` won't read it. This is what it says; only `make types` looks here.
from pydantic import BaseModel

class LazyModel(BaseModel): ...
