"""Which items and users are kept.

Shapes: M interactions, V items of the source.
"""

import numpy as np

from objectives.config import DataConfig
from objectives.data.log import Log
from objectives.errors import UserError


def keep_enough(log: Log, num_items: int, config: DataConfig, notes: list[str]) -> Log:
    """Items of enough users, then users of enough of these items.

    Once, as in the CCE- paper, or, for the k-core, until nothing changes.

    Args:
        log: All interactions.
        num_items: V.
        config: What is enough.
        notes: What is dropped is added.

    Raises:
        UserError: Nothing is left, or nothing to rank.
    """
    if config.k_core is None:
        popular = _popular(log, num_items, config.min_item_users)
        result = _active(popular, config.min_user_items)
        if rare := _count(log, num_items) - _count(popular, num_items):
            notes.append(
                f"dropped {rare:,} items of fewer than {config.min_item_users} users "
                f"({len(log.items) - len(popular.items):,} interactions)"
            )
        if few := len(log.users) - len(result.users):
            notes.append(
                f"dropped {few:,} users of fewer than {config.min_user_items} of these items "
                f"({len(popular.items) - len(result.items):,} interactions)"
            )
        wanted = (
            f"items of fewer than {config.min_item_users} users and users of fewer than "
            f"{config.min_user_items} items are dropped; lower --min-item-users or "
            "--min-user-items"
        )
    else:
        before, result = None, log
        while before is not result:
            before = result
            result = _active(_popular(result, num_items, config.k_core), config.k_core)
        if dropped := len(log.items) - len(result.items):
            notes.append(
                f"{config.k_core}-core: dropped "
                f"{_count(log, num_items) - _count(result, num_items):,} items and "
                f"{len(log.users) - len(result.users):,} users ({dropped:,} interactions)"
            )
        wanted = (
            f"all items have {config.k_core} users and all users {config.k_core} items; lower "
            "--k-core"
        )
    if len(result.items) == 0:
        raise UserError(f"{config.data}: no interaction is left once {wanted}")
    if _count(result, num_items) < 2:
        raise UserError(f"{config.data}: only one item is left; there is nothing to rank")
    return result


def _popular(log: Log, num_items: int, min_users: int) -> Log:
    users_V = np.bincount(log.items[log.is_first], minlength=num_items)
    return log.where((users_V >= min_users)[log.items])


def _active(log: Log, min_items: int) -> Log:
    return log.of_users(log.count(log.is_first) >= min_items)


def _count(log: Log, num_items: int) -> int:
    """Items that occur."""
    return int(log.occurring(num_items).sum())
