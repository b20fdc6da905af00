"""Sequential transformers and item tables."""

from models.config import ModelConfig

__all__ = ["ModelConfig"]
