"""Losses and ranking for large catalogues. Imports nothing else of the project."""

from kernels.candidate_ce import sampled_cross_entropy
from kernels.candidates import AliasTable, Explicit, InBatch, LogUniform, Popularity, Uniform
from kernels.full_ce import full_cross_entropy
from kernels.ranking import target_ranks, top_k
from kernels.row_optimizers import RowWiseAdagrad, RowWiseAdam
from kernels.row_updates import row_adagrad, row_adam

__all__ = [
    "AliasTable",
    "Explicit",
    "InBatch",
    "LogUniform",
    "Popularity",
    "RowWiseAdagrad",
    "RowWiseAdam",
    "Uniform",
    "full_cross_entropy",
    "row_adagrad",
    "row_adam",
    "sampled_cross_entropy",
    "target_ranks",
    "top_k",
]
