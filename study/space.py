"""What a trial may vary, on condition of its loss."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from objectives.config import SETTINGS, TrialConfig, settings_of
from objectives.errors import UserError
from objectives.loss_config import CHOICES
from study.conditions import check_settings, loss_choices, settings_of_any, without

if TYPE_CHECKING:
    import optuna

Value = int | float | str

# Their values only make sense together with others: a range would hit few that do.
NO_RANGE = ("width", "num_heads")


@dataclass(frozen=True)
class Range:
    """All numbers from low to high; searched logarithmically where both are positive."""

    low: int | float
    high: int | float

    def suggest(self, trial: "optuna.trial.BaseTrial", name: str) -> Value:
        """One value for the trial."""
        log = self.low > 0
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=log)
        return trial.suggest_float(name, self.low, self.high, log=log)

    def at(self, share: float) -> int | float:
        """The value at a share of the range, the nearest within it."""
        share = min(max(share, 0.0), 1.0)
        if self.low > 0:
            value = float(self.low * (self.high / self.low) ** share)
        else:
            value = self.low + share * (self.high - self.low)
        if isinstance(self.low, int) and isinstance(self.high, int):
            value = round(value)
        return min(max(value, self.low), self.high)

    def distribution(self) -> "optuna.distributions.BaseDistribution":
        """What `suggest` draws from."""
        return _distribution_of(self)


@dataclass(frozen=True)
class Choices:
    """One of a few values."""

    values: tuple[Value, ...]

    def suggest(self, trial: "optuna.trial.BaseTrial", name: str) -> Value:
        """One value for the trial."""
        value = trial.suggest_categorical(name, list(self.values))
        assert value is not None
        return value

    def distribution(self) -> "optuna.distributions.BaseDistribution":
        """What `suggest` draws from."""
        return _distribution_of(self)


def _distribution_of(part: Range | Choices) -> "optuna.distributions.BaseDistribution":
    """As Optuna has it of a trial for which the part has suggested a value."""
    import optuna

    first = part.low if isinstance(part, Range) else part.values[0]
    trial = optuna.trial.FixedTrial({"it": first})
    part.suggest(trial, "it")
    return trial.distributions["it"]


@dataclass(frozen=True)
class Space:
    """What is open and what is fixed.

    Attributes:
        open: Settings that a trial chooses if its loss has them; first those that say which these
            are.
        fixed: Settings with one value for all trials that have them; the others have their
            defaults.
        num_items: V, by which `auto` is resolved.
        spent: The setting, if any, that every trial takes as much of as fits; see `spend`.
    """

    open: dict[str, Range | Choices]
    fixed: dict[str, Value]
    num_items: int
    spent: dict[str, Range] = field(default_factory=dict)

    def suggest(self, trial: "optuna.trial.BaseTrial") -> TrialConfig:
        """The configuration of a trial, in which nothing is `auto` and nothing is spent."""
        suggested: dict[str, Value] = {}
        for name, part in self.open.items():
            if name in settings_of({**self.fixed, **suggested}):
                suggested[name] = part.suggest(trial, name)
        return self._config(suggested)

    def spend(self, config: TrialConfig, fits: Callable[[TrialConfig], bool]) -> dict[str, Value]:
        """The most of the spent setting with which the configuration fits, or the least there is.

        Nothing, if the configuration's loss has no such setting: it takes what it takes.

        Args:
            config: The configuration.
            fits: Whether one fits; more does not where less does not.
        """
        found: dict[str, Value] = {}
        for name, part in self.spent.items():
            if name not in config.flat():
                continue

            def value_fits(value: int, name: str = name) -> bool:
                return fits(self._config({**config.flat(), name: value}))

            found[name] = largest_fitting(int(part.low), int(part.high), value_fits)
        return found

    def with_spent(self, config: TrialConfig, spent: Mapping[str, Value]) -> TrialConfig:
        """The configuration with so much of the spent setting."""
        return self._config({**config.flat(), **spent})

    def _config(self, chosen: Mapping[str, Value]) -> TrialConfig:
        least = {name: part.low for name, part in self.spent.items()}
        return TrialConfig.from_flat({**self.fixed, **least, **chosen}).resolved(self.num_items)

    def smallest(self) -> list[TrialConfig]:
        """The configurations with the least of every number, for every choice of words."""
        return self._least_of_ranges(but=())

    def structures(self) -> list[TrialConfig]:
        """The same for every choice of widths and heads, too: these allocate other tensors."""
        return self._least_of_ranges(but=NO_RANGE)

    def _least_of_ranges(self, but: tuple[str, ...]) -> list[TrialConfig]:
        least: dict[str, Value] = {}
        words: dict[str, tuple[Value, ...]] = {}
        for name, part in {**self.open, **self.spent}.items():
            if isinstance(part, Range):
                least[name] = part.low
            elif isinstance(part.values[0], str) or name in but:
                words[name] = part.values
            else:
                least[name] = min(part.values, key=float)
        configs = (
            TrialConfig.from_flat({**self.fixed, **least, **dict(zip(words, chosen, strict=True))})
            for chosen in itertools.product(*words.values())
        )
        # Choices that differ in what their loss does not have are one.
        return list(dict.fromkeys(configs))

    def as_dict(self) -> dict[str, Any]:
        """The space as the user would write it, with the defaults of what its losses have."""
        known = settings_of_any(_choices({**self.open, **self.fixed}))
        defaults = {name: each.default for name, each in SETTINGS.items() if name in known}
        shown = {
            name: [part.low, part.high] if isinstance(part, Range) else list(part.values)
            for name, part in {**self.open, **self.spent}.items()
        }
        return {**defaults, **self.fixed, **shown}


def build_space(
    asked: dict[str, Any], num_items: int, num_sequences: int, spend: str | None = None
) -> Space:
    """The space that the user asked for, with the default ranges for what was not named.

    Args:
        asked: Setting -> one value (fixed), two numbers (a range), or more values or words
            (choices).
        num_items: V; negatives range to V-1, items of a bucket to V, and `auto` is resolved by it.
        num_sequences: Training sequences; the batch size ranges to that.
        spend: A setting that is not searched; see `Space.spend`.

    Raises:
        UserError: A setting is unknown or of no loss of the space, a value or a combination is not
            possible.
    """
    for name in asked:
        if name not in SETTINGS:
            raise UserError(
                f"--space.{name}: there is no such setting; choose from {', '.join(SETTINGS)}"
            )
    parts = {name: _parse(name, raw) for name, raw in asked.items()}
    choices = _choices(parts)
    check_settings(asked, choices, lambda name: f"--space.{name}")
    known = settings_of_any(choices)
    for name, default in _defaults(num_items, num_sequences).items():
        if name in known and name not in asked:
            parts[name] = _parse(name, default)
    updates = parts.get("table_updates")
    if isinstance(updates, Choices) and "auto" in updates.values:
        raise UserError(
            "--space.table_updates: auto stands for one of the others; leave it out of the choices"
        )
    for name, (limit, why) in limits(num_items, num_sequences).items():
        if name in parts and (largest := _largest(parts[name])) > limit:
            raise UserError(f"--space.{name} {largest:g}: {why}; use at most {limit}")
    parts = {name: parts[name] for name in (*CHOICES, *parts) if name in parts}
    space = Space(
        {name: part for name, part in parts.items() if isinstance(part, (Range, Choices))},
        {name: part for name, part in parts.items() if not isinstance(part, (Range, Choices))},
        num_items,
    )
    if spend is not None:
        if spend not in known:
            raise UserError(f"--spend-budget {spend}: {without(spend, choices)}")
        part = space.open.pop(spend, None)
        if not isinstance(part, Range):
            raise UserError(
                f"--spend-budget {spend}: it has no range to take from; give two numbers to "
                f"--space.{spend}"
            )
        space = replace(space, spent={spend: part})
    _check_combinations(space)
    return space


def largest_fitting(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number from low to high that fits; low, if none does.

    By doubling, then bisection: whether one fits that is far too large may take long to say.
    """
    while low < high:
        tried = min(high, max(low + 1, 2 * low))
        if not fits(tried):
            high = tried - 1
            break
        low = tried
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def limits(num_items: int, num_sequences: int) -> dict[str, tuple[int, str]]:
    """Setting -> its largest value for data of this size, and why."""
    return {
        "batch_size": (num_sequences, f"the data has {num_sequences:,} training sequences"),
        "negatives": (num_items - 1, f"the catalogue has {num_items:,} items"),
        "bucket_items": (num_items, f"the catalogue has {num_items:,} items"),
    }


def _choices(parts: Mapping[str, Range | Choices | Value]) -> list[dict[str, Value]]:
    """Every choice of a loss that a space leaves."""
    options = {name: parts[name] for name in CHOICES if name in parts}
    return loss_choices(
        {
            name: part.values if isinstance(part, Choices) else [part]
            for name, part in options.items()
        }
    )


def _defaults(num_items: int, num_sequences: int) -> dict[str, int | list[int] | list[float]]:
    """What a setting ranges over that the user does not name, but the space has."""
    return {
        "negatives": _default_range(16, min(8192, num_items - 1)),
        "bucket_items": _default_range(64, min(4096, num_items)),
        "batch_size": _default_range(8, min(4096, num_sequences)),
        "learning_rate": [1e-4, 1e-2],
    }


def _default_range(low: int, high: int) -> int | list[int]:
    return [low, high] if low < high else high


def _parse(name: str, raw: Any) -> Range | Choices | Value:
    items = raw if isinstance(raw, list) else [raw]
    values = [parse_value(name, item, f"--space.{name}") for item in items]
    if not values:
        raise UserError(f"--space.{name}: give at least one value")
    if len(values) == 1:
        return values[0]
    if len(set(values)) < len(values):
        raise UserError(f"--space.{name}: a value stands there twice")
    if len(values) > 2 or isinstance(values[0], str) or name in NO_RANGE:
        return Choices(tuple(values))
    low, high = values
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    if low > high:
        raise UserError(f"--space.{name} {low} {high}: the range is inverted; write {high} {low}")
    return Range(low, high)


def parse_value(name: str, raw: Any, flag: str) -> Value:
    """One value, checked against the setting's type and bounds.

    Args:
        name: The setting.
        raw: As the user wrote it.
        flag: Where, for the message.

    Raises:
        UserError: It does not fit.
    """
    setting = SETTINGS[name]
    kind = type(setting.default)
    typed: Value
    try:
        if kind is str:
            typed = str(raw)
        elif isinstance(raw, bool) or not math.isfinite(float(raw)):
            raise ValueError
        else:
            typed = float(raw)
            if kind is int:
                if typed != int(typed):
                    raise ValueError
                typed = int(typed)
    except (TypeError, ValueError):
        number = "an integer" if kind is int else "a number"
        raise UserError(f"{flag} {raw}: not {number}") from None
    if setting.words and typed not in setting.words:
        raise UserError(f"{flag} {raw}: choose from {', '.join(setting.words)}")
    # Here only the setting's own bounds are judged: some loss has it, one head suits any width.
    others: dict[str, Value] = {"num_heads": 1}
    if setting.losses:
        others["loss"] = setting.losses[0]
    if name == "num_heads":
        others["width"] = typed
    try:
        TrialConfig.from_flat({**others, name: typed})
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"{flag} {raw}: {message[:1].lower()}{message[1:]}") from None
    return typed


def _largest(part: Range | Choices | Value) -> float:
    if isinstance(part, Range):
        return part.high
    values = part.values if isinstance(part, Choices) else (part,)
    return max(float(value) for value in values)


def _check_combinations(space: Space) -> None:
    options: dict[str, tuple[Value, ...]] = {}
    for name, part in space.open.items():
        is_word = isinstance(part, Choices) and isinstance(part.values[0], str)
        if isinstance(part, Choices) and (is_word or name in NO_RANGE):
            options[name] = part.values
    for values in itertools.product(*options.values()):
        try:
            TrialConfig.from_flat({**space.fixed, **dict(zip(options, values, strict=True))})
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(f"--space: {message}") from None
