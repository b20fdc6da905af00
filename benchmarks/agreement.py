"""Do SCE, RECE, BCE+ and gBCE give what their authors' released code gives?

python -m benchmarks.agreement [--output FILE]

On small random inputs in float32, on the CPU, with the same random numbers: the loss of both, and
how far the gradients of states and table are apart, as the largest difference over the largest
element. Where the released code departs from its formula, inputs are such that it does not:

- sce: no state is padding, which the released mixture takes in.
- rece: what pads their table has a logit of -10,000 for every state, is an item of ours, and makes
  the number of items a multiple of the chunks; theirs is given a stable argsort.
- bce+, gbce: no negative is its row's target, which the released code trains against itself.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import _peers
from benchmarks._machine import RESULTS, append, machine
from kernels import (
    Explicit,
    calibrated_weight,
    reduced_cross_entropy,
    sampled_binary_cross_entropy,
    scalable_cross_entropy,
)

_SEED = 0
_NUM_SEQUENCES, _LENGTH, _WIDTH = 6, 16, 12
_NUM_ITEMS, _NUM_NEGATIVES, _CALIBRATION = 95, 8, 0.75
_FAR = 1e4

Loss = Callable[[], Tensor]


class Case(NamedTuple):
    """A loss, whose code, and their names and ours of its settings."""

    loss: str
    peer: str
    version: str
    theirs: dict[str, Any]
    ours: dict[str, Any]


def _sce(mix: bool) -> Case:
    theirs = {"n_buckets": 7, "bucket_size_x": 9, "bucket_size_y": 11, "mix_x": mix}
    ours = {"num_buckets": 7, "bucket_rows": 9, "bucket_items": 11, "mix": mix}
    return Case("sce", "scalable-sasrec", "cc08f3e082b6", theirs, ours)


def _rece(rounds: int, neighbours: int, num_buckets: int) -> Case:
    shared = {"rounds": rounds}
    theirs = shared | {"n_buckets": num_buckets, "n_extra_chunks": neighbours}
    ours = shared | {"num_buckets": num_buckets, "neighbours": neighbours}
    return Case("rece", "rece", "69bd892f70f6", theirs, ours)


_BINARY = {"n_neg_samples": _NUM_NEGATIVES, "gbce_t": _CALIBRATION}
CASES = (
    _sce(mix=True),
    _sce(mix=False),
    _rece(1, 0, 4),
    _rece(1, 1, 8),
    _rece(3, 1, 8),
    _rece(4, 0, 6),
    _rece(5, 2, 12),
    Case("bce+", "scalable-sasrec", "cc08f3e082b6", _BINARY, {}),
    Case("gbce", "scalable-sasrec", "cc08f3e082b6", _BINARY, {}),
)


@contextmanager
def _stable_argsort() -> Iterator[None]:
    plain = torch.argsort
    torch.argsort = functools.partial(plain, stable=True)
    try:
        yield
    finally:
        torch.argsort = plain


def _losses(case: Case) -> tuple[tuple[Tensor, Tensor, Loss], tuple[Tensor, Tensor, Loss]]:
    """States, table and loss of theirs and of ours."""
    generator = torch.Generator().manual_seed(_SEED)
    states_BLD = torch.randn(_NUM_SEQUENCES, _LENGTH, _WIDTH, generator=generator)
    table_VD = torch.randn(_NUM_ITEMS, _WIDTH, generator=generator)
    targets_BL = torch.randint(_NUM_ITEMS, (_NUM_SEQUENCES, _LENGTH), generator=generator)
    steps_NK = torch.randint(1, _NUM_ITEMS, (targets_BL.numel(), _NUM_NEGATIVES))
    negatives_NK = (targets_BL.view(-1, 1) + steps_NK) % _NUM_ITEMS
    states_BLD[..., 0] = 1
    states_BLD.requires_grad_()
    theirs_VD, theirs = _peers.sasrec(
        case.peer,
        states_BLD,
        table_VD,
        targets_BL,
        negatives_NK.view(*targets_BL.shape, -1),
        {**case.theirs, "fwd_type": case.loss.removesuffix("+")},
    )
    if case.loss == "rece":
        with torch.no_grad():
            theirs_VD[_NUM_ITEMS:, 0] = -_FAR
        table_VD = theirs_VD.detach()
    ours_ND = states_BLD.detach().view(-1, _WIDTH).requires_grad_()
    ours_VD = table_VD.clone().requires_grad_()

    def ours() -> Tensor:
        inputs = ours_ND, ours_VD, targets_BL.flatten()
        if case.loss == "sce":
            return scalable_cross_entropy(*inputs, **case.ours)
        if case.loss == "rece":
            return reduced_cross_entropy(*inputs, **case.ours)
        weight = 1.0
        if case.loss == "gbce":
            # Their sampling rate is of one item fewer.
            weight = calibrated_weight(_NUM_NEGATIVES, _NUM_ITEMS - 1, _CALIBRATION)
        loss = sampled_binary_cross_entropy(
            *inputs, Explicit(negatives_NK), positive_weight=weight
        )
        return loss / (_NUM_NEGATIVES + 1)

    return (states_BLD, theirs_VD, theirs), (ours_ND, ours_VD, ours)


def compare(case: Case) -> dict[str, Any]:
    """A row."""
    values, gradients = [], []
    with _stable_argsort():
        for states, table, loss in _losses(case):
            torch.manual_seed(_SEED)
            value = loss()
            values.append(value.item())
            gradients.append(torch.autograd.grad(value, (states, table)))
    apart = []
    for theirs, ours in zip(*gradients, strict=True):
        rows = ours.view(-1, _WIDTH)
        difference = theirs.reshape(-1, _WIDTH)[: len(rows)] - rows
        apart.append(float(difference.abs().max() / ours.abs().max()))
    return {
        "loss": case.loss,
        "peer": case.peer,
        "version": case.version,
        "settings": " ".join(f"{name}={value}" for name, value in case.ours.items()),
        "seed": _SEED,
        "ours": round(values[1], 7),
        "theirs": round(values[0], 7),
        "states_gradient_apart": float(f"{apart[0]:.2g}"),
        "table_gradient_apart": float(f"{apart[1]:.2g}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "agreement.csv")
    arguments = parser.parse_args()
    about = machine()
    for case in CASES:
        try:
            row = compare(case)
        except _peers.Unavailable as reason:
            print(f"{case.loss}: {reason}")
            continue
        append(arguments.output, [{**about, **row}])
        print(
            f"{row['loss']:5} {row['settings']:52} ours {row['ours']:.6f} theirs "
            f"{row['theirs']:.6f}, gradients apart {row['states_gradient_apart']:.0e} and "
            f"{row['table_gradient_apart']:.0e}"
        )


if __name__ == "__main__":
    main()
