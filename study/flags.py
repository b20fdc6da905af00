"""The flags of a specification, for every command that takes them or some of them."""

import argparse

from objectives.config import SETTINGS, DataConfig
from study.spec import SECTIONS, StudySpec, flag_of

_METAVARS = {
    "data": "NAME|PATH|URL",
    "query": "SQL",
    "min_rating": "X",
    "events": "NAME,NAME",
    "split": "SPLIT",
    "split_quantile": "Q",
    "split_date": "DATE",
    "target": "WHICH",
    "min_item_users": "N",
    "min_user_items": "N",
    "k_core": "K",
    "validation_users": "N",
    "study": "NAME",
    "n_trials": "N",
    "timeout": "TIME",
    "patience": "N",
    "recorded": "TABLE",
    "confirm": "K",
    "memory_budget": "SIZE|SHARE|CARD",
    "spend_budget": "SETTING",
    "objectives": "NAME",
    "sampler": "NAME",
    "warm_start": "STUDY",
    "pruning": "NAME",
    "seed": "N",
    "device": "DEVICE",
    "gpus": "all|N,N",
    "gpus_per_trial": "N",
    "workers": "N",
    "max_retries": "N",
    "output_dir": "FOLDER",
    "storage": "URL",
    "tracking_uri": "URI",
}


def add_spec_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every field of a specification and every setting of a trial."""
    add_data_flags(parser.add_argument_group("data"))
    study = parser.add_argument_group("study")
    for name in StudySpec.model_fields:
        if name != "space" and name not in DataConfig.model_fields:
            _add_field_flag(study, name)
    space = parser.add_argument_group(
        "settings of a trial",
        "One value fixes a setting; two numbers open a range (searched logarithmically where both "
        "are positive); more values, or words, are choices. A trial has the settings of its loss. "
        "Open by default: negatives 16 to min(8192, items - 1), bucket_items 64 to min(4096, "
        "items), batch_size 8 to min(4096, sequences), learning_rate 1e-4 to 1e-2.",
    )
    for name in SETTINGS:
        add_setting_flag(space, flag_of(f"space.{name}"), name)


def add_data_flags(group: argparse._ArgumentGroup, *, is_default: bool = True) -> None:
    """Adds the flags that say which data; is_default: there is a set that is taken else."""
    for name in DataConfig.model_fields:
        if name in SECTIONS:
            for key, field in SECTIONS[name].model_fields.items():
                group.add_argument(
                    flag_of(f"{name}.{key}"),
                    dest=f"{name}.{key}",
                    metavar=_METAVARS.get(key, "NAME"),
                    help=field.description,
                )
        else:
            _add_field_flag(group, name, is_default or name != "data")


def _add_field_flag(group: argparse._ArgumentGroup, name: str, is_default: bool = True) -> None:
    field = StudySpec.model_fields[name]
    several = isinstance(field.default, tuple)
    default = " ".join(field.default) if several else field.default
    shown = f" (default: {default})" if is_default and default not in (None, "") else ""
    group.add_argument(
        flag_of(name),
        dest=name,
        nargs="+" if several else None,
        metavar=_METAVARS.get(name, "X"),
        help=f"{field.description}{shown}",
    )


def add_setting_flag(group: argparse._ArgumentGroup, flag: str, name: str) -> None:
    """Adds a flag for one value or more of a setting of a trial."""
    setting = SETTINGS[name]
    losses = f"loss {', '.join(setting.losses)}; " if setting.losses else ""
    choices = f"{', '.join(setting.words)}; " if setting.words else ""
    group.add_argument(
        flag,
        nargs="+",
        metavar="X",
        help=f"{setting.description} ({losses}{choices}default: {setting.default})",
    )
