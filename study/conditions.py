"""Which settings there are, by the losses of a study or a grid."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from objectives.config import settings_of
from objectives.errors import UserError
from objectives.loss_config import CHOICES, LOSSES, choices_of, loss_class, loss_name


def loss_choices(options: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of values of `CHOICES`; those that have no options are left out."""
    names = [name for name in CHOICES if name in options]
    products = itertools.product(*(options[name] for name in names))
    return [dict(zip(names, chosen, strict=True)) for chosen in products]


def settings_of_any(choices: Iterable[Mapping[str, Any]]) -> set[str]:
    """The settings that some trial has, one for each of these choices."""
    return set().union(*map(settings_of, choices))


def check_settings(
    names: Iterable[str], choices: Sequence[Mapping[str, Any]], flag: Callable[[str], str]
) -> None:
    """Refuses settings that no loss of these choices has.

    Args:
        names: The settings.
        choices: See `loss_choices`.
        flag: How the user wrote a setting.

    Raises:
        UserError: There is one; it names the losses that have it.
    """
    known = settings_of_any(choices)
    for name in names:
        if name not in known:
            raise UserError(f"{flag(name)}: {without(name, choices)}")


def without(name: str, choices: Iterable[Mapping[str, Any]]) -> str:
    """That the losses of these choices do not have a setting, and which ones do."""
    lacking = [loss for loss in LOSSES if any(loss_class(choice) is loss for choice in choices)]
    having = [loss for loss in LOSSES if name in loss.model_fields]
    losses, others = _named(lacking, having), _named(having, lacking)
    return (
        f"loss{'es' if len(losses) > 1 else ''} {_joined(losses, 'and')} "
        f"{'have' if len(losses) > 1 else 'has'} no such setting; "
        f"{_joined(others, 'and')} {'have' if len(others) > 1 else 'has'}"
    )


def _named(losses: Iterable[type], others: Iterable[type]) -> list[str]:
    """The losses by name; with their candidates, where these make the difference to others."""
    candidates: dict[str, list[str]] = {}
    for loss in losses:
        candidates.setdefault(loss_name(loss), []).extend(choices_of(loss).get("candidates", ()))
    ambiguous = {loss_name(loss) for loss in others}
    return [
        f"{name} with candidates {_joined(words, 'or')}" if name in ambiguous else name
        for name, words in candidates.items()
    ]


def _joined(words: Sequence[str], last: str) -> str:
    *head, tail = words
    return f"{', '.join(head)} {last} {tail}" if head else tail
