"""Losses and ranking for large catalogues. Imports nothing else of the project."""

from kernels.alias_table import AliasTable
from kernels.candidate_ce import sampled_cross_entropy
from kernels.candidates import (
    Explicit,
    InBatch,
    LogUniform,
    Met,
    Mixed,
    Popularity,
    Uniform,
)
from kernels.full_ce import full_cross_entropy
from kernels.layer_norm import layer_norm
from kernels.pointwise import calibrated_weight, sampled_binary_cross_entropy
from kernels.ranking import target_ranks, top_k
from kernels.rece import reduced_cross_entropy
from kernels.row_gradient import RowGradient, RowSink, look_up, sum_rows
from kernels.row_optimizers import RowWiseAdagrad, RowWiseAdam
from kernels.row_updates import row_adagrad, row_adam
from kernels.sce import scalable_cross_entropy

__all__ = [
    "AliasTable",
    "Explicit",
    "InBatch",
    "LogUniform",
    "Met",
    "Mixed",
    "Popularity",
    "RowGradient",
    "RowSink",
    "RowWiseAdagrad",
    "RowWiseAdam",
    "Uniform",
    "calibrated_weight",
    "full_cross_entropy",
    "layer_norm",
    "look_up",
    "reduced_cross_entropy",
    "row_adagrad",
    "row_adam",
    "sampled_binary_cross_entropy",
    "sampled_cross_entropy",
    "scalable_cross_entropy",
    "sum_rows",
    "target_ranks",
    "top_k",
]
