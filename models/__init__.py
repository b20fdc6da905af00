"""Sequential transformers and item tables."""

from models.config import SASRecConfig

__all__ = ["SASRecConfig"]
