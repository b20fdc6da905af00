"""The Triton backend: what the operators call."""

from kernels.triton_forward import finish_states_gradient, forward
from kernels.triton_plan import Saved, Touched, gradients_like, saved_like, touched_like
from kernels.triton_table import table_gradients, touched_items

__all__ = [
    "Saved",
    "Touched",
    "finish_states_gradient",
    "forward",
    "gradients_like",
    "saved_like",
    "table_gradients",
    "touched_items",
    "touched_like",
]
