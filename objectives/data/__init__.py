"""Data of a trial: named sets and files, filtered, encoded, split and batched."""

from objectives.data.prepare import prepare
from objectives.data.prepared import PreparedData, Sequences, Targets

__all__ = ["PreparedData", "Sequences", "Targets", "prepare"]
