"""`python -m study.estimate`: the peak memory of trainings on a GPU, predicted without one."""

import argparse
import importlib.util
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from objectives.config import SETTINGS, TrialConfig, settings_of
from objectives.errors import UserError
from objectives.loss_config import CHOICES
from study import cli
from study.cards import SHARE_OF_CARD
from study.conditions import check_settings, loss_choices, settings_of_any, without
from study.estimate_table import CARDS, Row, as_json, as_table
from study.flags import add_data_flags, add_setting_flag
from study.spec import Share, StudySpec, data_names, flag_of, load_spec

if TYPE_CHECKING:
    from kernels.gpu import Gpu
    from objectives.memory_model import DataShape, MemoryEstimate, MemoryModel
    from study.space import Value

SOUGHT = ("batch_size", "negatives", "max_length")
"""Settings whose largest value can be asked for."""

_HOPPER = 9, 132
_MOST_ROWS = 10_000
_MOST_ITEMS, _MOST_USERS, _MOST_LENGTH = 2_000_000_000, 100_000_000, 1_000_000

_DESCRIPTION = """\
Predict the peak memory of trainings on a GPU; none is needed. Several values of a setting make a
grid. Settings have the names that they have in a study."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.build_parser(
        "study.estimate",
        "(--data NAME|PATH|URL | --items V --users U --mean-length M) [options]",
        _DESCRIPTION,
    )
    parser.add_argument(
        "--memory-budget",
        metavar="SIZE|SHARE|CARD",
        help="say what fits in a size such as 24GiB, in what a study takes of a card such as "
        "A100-40GB, or in a share such as 90%% of the card that is here",
    )
    parser.add_argument(
        "--largest",
        metavar="SETTING",
        choices=[flag_of(name)[2:] for name in SOUGHT],
        help="print the largest batch-size, negatives or max-length that fits the budget, for "
        "every configuration of the others",
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="TOML file of a study, such as study.best's"
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    add_data_flags(parser.add_argument_group("data"), is_default=False)
    shape = parser.add_argument_group("data that is not at hand")
    for name, (metavar, _, _, text) in _SHAPE.items():
        shape.add_argument(flag_of(name), metavar=metavar, help=text)
    settings = parser.add_argument_group("settings of a training", "One value or several.")
    for name in SETTINGS:
        add_setting_flag(settings, flag_of(name), name)
    return cli.main(parser, _estimate, argv)


_SHAPE = {
    "items": ("V", 2, _MOST_ITEMS, "items of the catalogue"),
    "users": ("U", 1, _MOST_USERS, "training sequences"),
    "mean_length": ("M", 2, _MOST_LENGTH, "items of a sequence; all are taken to have so many"),
}


def _estimate(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    data_flags = data_names()
    named = {name: given[name] for name in [*data_flags, "memory_budget"]}
    spec = load_spec(named, arguments.config)
    sought = arguments.largest and arguments.largest.replace("-", "_")
    settings = _settings(given, spec, sought)
    sizes = _sizes(given)
    asked = next((name for name in data_flags if given[name] is not None), None)
    if sizes and asked is not None:
        raise UserError(f"{flag_of(asked)} and --items: say which data in one of both ways")
    if not sizes and "data" not in spec.model_fields_set:
        raise UserError("name the data with --data, or its size: --items, --users, --mean-length")
    if sought and spec.memory_budget is None:
        raise UserError(f"--largest {arguments.largest}: name the --memory-budget that it is for")
    _check_triton()

    from objectives.memory_model import MemoryModel

    gpu, budget = _gpu_and_budget(spec)
    data = _data_shape(spec, sizes)
    grid = list(_grid(settings, data, sought))
    varying = [name for name, values in settings.items() if len(values) > 1]
    model = MemoryModel(data, gpu)
    rows = []
    for values, config in grid:
        shown = {name: values[name] for name in varying if name in values}
        if sought:
            assert budget is not None
            rows.append(_largest(model, config, shown, sought, budget))
        else:
            rows.append(_row(model, config, shown, budget))
    if sought and not any(row.fits for row in rows):
        assert budget is not None
        raise UserError(_floor(rows, sought, budget))
    if arguments.json:
        print(json.dumps(as_json(rows, data, budget, sought), indent=2))
    else:
        print(as_table(rows, budget, sought))
    return cli.OK


def _check_triton() -> None:
    if importlib.util.find_spec("triton") is None:
        raise UserError(
            "a prediction runs the code of a GPU, which needs Triton: use Linux, where pip "
            "installs it with ParetoCut"
        )
    from kernels._backend import forced_backend

    try:
        forced = forced_backend()
    except ValueError as error:
        raise UserError(str(error)) from None
    if forced == "eager":
        raise UserError("PARETOCUT_KERNELS=eager: predictions are those of Triton; unset it")


def _settings(
    given: dict[str, Any], spec: StudySpec, sought: str | None
) -> dict[str, list["Value"]]:
    """The values of the settings that were asked for: flags, then what a study fixes."""
    from study.space import parse_value

    for name in spec.space:
        if name not in SETTINGS:
            raise UserError(f"space.{name}: there is no such setting; --help lists them")
    settings: dict[str, list[Value]] = {}
    flags: dict[str, str] = {}
    is_other_loss = any(given[name] is not None for name in CHOICES)
    for name in dict.fromkeys([*CHOICES, *SETTINGS]):
        flag, raw = flag_of(name), given[name]
        if name == sought:
            if raw is not None:
                raise UserError(f"{flag}: its largest value is sought; leave one of both out")
            continue
        if raw is None and name in spec.space:
            if is_other_loss and name not in settings_of_any(loss_choices(settings)):
                continue  # that of a loss of the study
            flag, raw = f"space.{name}", spec.space[name]
            if isinstance(raw, list) and len(raw) != 1:
                shown = " ".join(str(value) for value in raw)
                raise UserError(f"{flag} {shown}: it is open in the study; give {flag_of(name)}")
        if raw is not None:
            items = raw if isinstance(raw, list) else [raw]
            settings[name] = list(dict.fromkeys(parse_value(name, item, flag) for item in items))
            flags[name] = flag
    choices = loss_choices(settings)
    check_settings(settings, choices, flags.__getitem__)
    if sought and (lacking := [each for each in choices if sought not in settings_of(each)]):
        raise UserError(f"--largest {flag_of(sought)[2:]}: {without(sought, lacking)}")
    count = math.prod(len(values) for values in settings.values())
    if count > _MOST_ROWS:
        raise UserError(f"the grid has {count:,} configurations; give fewer than {_MOST_ROWS:,}")
    return settings


def _sizes(given: dict[str, Any]) -> dict[str, int]:
    """The size of data that is not at hand, or nothing."""
    sizes = {}
    for name, (_, least, most, _) in _SHAPE.items():
        if (text := given[name]) is None:
            continue
        try:
            sizes[name] = int(text)
        except ValueError:
            raise UserError(f"{flag_of(name)} {text}: not an integer") from None
        if not least <= sizes[name] <= most:
            raise UserError(f"{flag_of(name)} {text}: use {least} to {most:,}")
    if missing := [flag_of(name) for name in _SHAPE if sizes and name not in sizes]:
        raise UserError(f"the size of the data needs {' and '.join(missing)}, too")
    return sizes


def _gpu_and_budget(spec: StudySpec) -> tuple["Gpu", int | None]:
    """The card that is here, or else a Hopper; and the budget in bytes, if there is one."""
    import torch

    from kernels.gpu import Gpu, gpu_of
    from study.budget import total_memory
    from study.environment import choose_device

    device = choose_device("auto")
    budget = spec.memory_budget
    if isinstance(budget, Share):
        if device.type != "cuda":
            raise UserError(
                f"--memory-budget {100 * budget.fraction:g}%: there is no card here to take a "
                "share of; write a size such as 24GiB, or a card such as A100-40GB"
            )
        budget = budget.of(total_memory(device))
    gpu = gpu_of(torch.device("cuda", 0)) if device.type == "cuda" else None
    return gpu or Gpu(*_HOPPER), budget


def _data_shape(spec: StudySpec, sizes: dict[str, int]) -> "DataShape":
    from objectives.memory_model import DataShape

    if sizes:
        return DataShape.of_length(sizes["items"], sizes["users"], sizes["mean_length"])

    from objectives.data import prepare

    data = prepare(spec.data_config)
    for note in data.notes:
        cli.say(f"{data.name}: {note}")
    return DataShape.of(data)


def _grid(
    settings: dict[str, list["Value"]], data: "DataShape", sought: str | None
) -> Iterator[tuple[dict[str, "Value"], TrialConfig]]:
    """The product of the settings, each with those that its loss has, and its configurations."""
    from study.space import limits

    defaults: dict[str, Value] = {sought: 1} if sought else {}
    for name, (limit, why) in limits(data.num_items, len(data.lengths)).items():
        for value in settings.get(name, []):
            if int(value) > limit:
                raise UserError(f"{flag_of(name)} {value}: {why}; use at most {limit}")
        # Those of small data are smaller.
        defaults.setdefault(name, min(limit, SETTINGS[name].default))
    seen = set()
    for chosen in itertools.product(*settings.values()):
        product = dict(zip(settings, chosen, strict=True))
        known = settings_of(product)
        values = {name: value for name, value in product.items() if name in known}
        if tuple(values.items()) in seen:
            continue
        seen.add(tuple(values.items()))
        try:
            yield values, TrialConfig.from_flat({**defaults, **values})
        except ValidationError as error:
            raise UserError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def _with(config: TrialConfig, name: str, value: int) -> TrialConfig:
    return TrialConfig.from_flat({**config.flat(), name: value})


def _row(
    model: "MemoryModel",
    config: TrialConfig,
    shown: dict[str, "Value"],
    budget: int | None,
    *,
    is_most: bool = False,
) -> Row:
    """The prediction for the budget, or for the smallest card that the training fits."""
    card, estimate = None, None
    for card_size in CARDS:
        limit = Share(SHARE_OF_CARD).of(card_size << 30)
        estimate = _predict(model, config, limit)
        if estimate.peak <= limit:
            card = card_size
            break
    assert estimate is not None
    if budget is not None:
        estimate = _predict(model, config, budget)
    fits = None if budget is None else estimate.peak <= budget
    return Row(shown, config.resolved(model.data.num_items), estimate, card, fits, is_most)


def _predict(model: "MemoryModel", config: TrialConfig, budget: int) -> "MemoryEstimate":
    try:
        return model.predict(config, budget)
    except ValueError as error:
        # No GPU could train it: the kernels say why.
        raise UserError(str(error)) from error


def _largest(
    model: "MemoryModel",
    config: TrialConfig,
    shown: dict[str, "Value"],
    name: str,
    budget: int,
) -> Row:
    """The largest value of a setting that fits; 1, if that does not."""
    from study.space import largest_fitting

    def fits(value: int) -> bool:
        return _predict(model, _with(config, name, value), budget).peak <= budget

    # A few larger ones, which fillers happen to suit, may fit too; the next does not.
    most = _most(model.data)[name]
    fitting = largest_fitting(1, most, fits)
    found = _with(config, name, fitting)
    return _row(model, found, shown, budget, is_most=fitting == most)


def _most(data: "DataShape") -> dict[str, int]:
    """The largest values that the data allows, or has a use for."""
    from study.space import limits

    largest = {
        name: limit for name, (limit, _) in limits(data.num_items, len(data.lengths)).items()
    }
    return {**largest, "max_length": data.lengths.longest}


def _floor(rows: list[Row], sought: str, budget: int) -> str:
    from study.budget import format_bytes

    least = min(rows, key=lambda row: row.estimate.peak)
    parts = least.estimate.parts
    largest = max(parts, key=lambda part: parts[part])
    settings = ", ".join(f"{name} {value}" for name, value in {**least.shown, sought: 1}.items())
    return (
        f"--memory-budget {format_bytes(budget)}: {settings} needs "
        f"{format_bytes(least.estimate.peak)}, most of it for {largest} "
        f"({format_bytes(parts[largest])}); raise the budget or lower another setting"
    )


if __name__ == "__main__":
    sys.exit(main())
