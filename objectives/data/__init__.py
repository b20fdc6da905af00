"""Data of a trial: named sets and files, filtered, encoded, split and batched."""

from objectives.data.prepare import PreparedData, Sequences, Targets, prepare

__all__ = ["PreparedData", "Sequences", "Targets", "prepare"]
