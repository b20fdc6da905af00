"""Losses and ranking for large catalogues. Imports nothing else of the project."""

from kernels.candidate_ce import sampled_cross_entropy
from kernels.candidates import AliasTable, Explicit, InBatch, LogUniform, Popularity, Uniform
from kernels.full_ce import full_cross_entropy
from kernels.ranking import top_k

__all__ = [
    "AliasTable",
    "Explicit",
    "InBatch",
    "LogUniform",
    "Popularity",
    "Uniform",
    "full_cross_entropy",
    "sampled_cross_entropy",
    "top_k",
]
