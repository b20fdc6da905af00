"""The memory budget: its default, its floor, and what a peak says of a configuration."""

from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

from objectives.errors import UserError
from objectives.trial import InfeasibleTrial
from study.cards import SHARE_OF_CARD
from study.space import Space
from study.spec import Share

if TYPE_CHECKING:
    import torch

    from objectives.sequential import SequentialObjective

_SHARE_OF_MACHINE = 0.5

_MOST_STRUCTURES = 12
"""So many at most are traced before a study begins, the others when a trial asks for them."""

CONSTRAINT = "memory"
"""Name of the constraint that every trial carries."""


def constraint(peak_bytes: int, budget: int) -> float:
    """Violation of the budget, relative to it; feasible at or below 0."""
    return peak_bytes / budget - 1


def total_memory(device: "torch.device") -> int:
    """Bytes of the card, or of the machine without one."""
    if device.type == "cuda":
        import torch

        total: int = torch.cuda.get_device_properties(device).total_memory
        return total
    return int(psutil.virtual_memory().total)


def resolve_budget(asked: int | Share | None, device: "torch.device") -> int:
    """The budget in bytes: as asked, a share of the device's memory, or the default share of it.

    Raises:
        UserError: There is not so much memory.
    """
    if asked is None:
        asked = Share(SHARE_OF_CARD if device.type == "cuda" else _SHARE_OF_MACHINE)
    total = total_memory(device)
    if isinstance(asked, Share):
        return asked.of(total)
    if asked > total:
        raise UserError(
            f"--memory-budget {format_bytes(asked)}: the {_owner(device)} has "
            f"{format_bytes(total)}; ask for no more than that"
        )
    return asked


def _owner(device: "torch.device") -> str:
    if device.type != "cuda":
        return "machine"
    import torch

    return f"card ({torch.cuda.get_device_name(device)})"


def check_floor(objective: "SequentialObjective", space: Space, budget: int) -> None:
    """Measures one step of the smallest configuration and refuses a budget below its peak.

    Before, what the configurations allocate is traced where that is predicted: a structure takes
    about a second, which is not to be spent on a trial that is refused.

    Raises:
        UserError: The budget is below what the smallest configuration needs.
    """
    for structure in space.structures()[:_MOST_STRUCTURES]:
        with suppress(InfeasibleTrial):
            objective.check(structure, budget)
    floors = []
    for smallest in space.smallest():
        chosen = {name: value for name, value in smallest.flat().items() if name in space.open}
        shown = ", ".join(f"{name} {value}" for name, value in chosen.items())
        try:
            objective.check(smallest, budget)
            floors.append((objective.probe(smallest, budget, room=objective.room), shown))
        except InfeasibleTrial as error:
            floors.append((error.peak_bytes, shown))
    peak, shown = min(floors)
    if peak > budget:
        raise UserError(
            f"--memory-budget {format_bytes(budget)}: the smallest configuration"
            f"{f' ({shown})' if shown else ''} needs {format_bytes(peak)}; raise the budget, or "
            "lower --space.max_length or --space.width"
        )


def format_bytes(count: float) -> str:
    """Bytes for people: KiB, MiB or GiB."""
    if count < 2**20:
        return f"{count / 2**10:.1f} KiB"
    if count < 2**30:
        return f"{count / 2**20:.1f} MiB"
    return f"{count / 2**30:.2f} GiB"
