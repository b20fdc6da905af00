"""The Triton backend: what the operators call."""

from kernels.triton_forward import finish_states_gradient, forward
from kernels.triton_plan import Saved, gradients_like, saved_like
from kernels.triton_table import table_gradients

__all__ = [
    "Saved",
    "finish_states_gradient",
    "forward",
    "gradients_like",
    "saved_like",
    "table_gradients",
]
