"""Losses and ranking for large catalogues. Imports nothing else of the project."""

from kernels.candidate_ce import sampled_cross_entropy
from kernels.candidates import AliasTable, Explicit, InBatch, LogUniform, Popularity, Uniform
from kernels.full_ce import full_cross_entropy
from kernels.layer_norm import layer_norm
from kernels.ranking import target_ranks, top_k
from kernels.row_gradient import RowGradient, RowSink, look_up, sum_rows
from kernels.row_optimizers import RowWiseAdagrad, RowWiseAdam
from kernels.row_updates import row_adagrad, row_adam

__all__ = [
    "AliasTable",
    "Explicit",
    "InBatch",
    "LogUniform",
    "Popularity",
    "RowGradient",
    "RowSink",
    "RowWiseAdagrad",
    "RowWiseAdam",
    "Uniform",
    "full_cross_entropy",
    "layer_norm",
    "look_up",
    "row_adagrad",
    "row_adam",
    "sampled_cross_entropy",
    "sum_rows",
    "target_ranks",
    "top_k",
]
