"""The search: specification, space, budget, storage, tracking, worker and commands."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from study.interface import Study

__all__ = ["Study"]


def __getattr__(name: str) -> Any:
    # The commands import this package, and are to start at once.
    if name == "Study":
        from study.interface import Study

        return Study
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
