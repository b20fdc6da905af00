"""What the user asked for: one validated model, from flags, environment and a TOML file.

Torch, Optuna and MLflow are not imported here: `--help` and a wrong flag answer at once.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    field_validator,
)

from objectives.config import SETTINGS, ColumnsConfig, DataConfig, FilterConfig
from objectives.errors import UserError
from study.cards import SHARE_OF_CARD, card_memory
from study.front import DEFAULT_OBJECTIVES, OBJECTIVES

SECTIONS: dict[str, type[BaseModel]] = {"columns": ColumnsConfig, "filter": FilterConfig}
"""Parts of what says which data."""

_FOREIGN_VARIABLES = {"storage": "OPTUNA_STORAGE", "tracking_uri": "MLFLOW_TRACKING_URI"}
_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def _parse_duration(value: Any) -> Any:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|d|)\s*", str(value))
    if not match:
        raise ValueError("write a duration such as 90s, 30m or 2h")
    return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])


@dataclass(frozen=True)
class Share:
    """A budget that is a share of the memory of the card, or of the machine without one.

    Attributes:
        fraction: Above 0, at most 1.
    """

    fraction: float

    def of(self, total: int) -> int:
        """Bytes of so many."""
        return int(self.fraction * total)


def parse_budget(value: Any) -> int | Share:
    """A memory budget as people write it: bytes, or a share of a card that is yet to be known.

    Args:
        value: A size such as `24GiB` or `24GB`, a share such as `90%`, or a card's name such as
            `A100-40GB`, which stands for what a study takes of that card by default.

    Raises:
        ValueError: It is none of these, or nothing, or more than the whole.
    """
    text = str(value).strip()
    if text[:1].isalpha():
        return Share(SHARE_OF_CARD).of(card_memory(text))
    if share := re.fullmatch(r"([+-]?\d+(?:\.\d+)?)\s*%", text):
        percent = float(share[1])
        if not 0 < percent <= 100:
            raise ValueError("a share is greater than 0% and at most 100%")
        return Share(percent / 100)
    try:
        size = int(ByteSize._validate(text.removeprefix("-"), None))  # type: ignore[arg-type]
    except Exception:
        raise ValueError(
            "write a size such as 6GiB or 800MiB, a share such as 90%, or a card such as A100-40GB"
        ) from None
    if size == 0 or text.startswith("-"):
        raise ValueError("must be greater than 0; write a size such as 6GiB or 800MiB")
    return size


def _parse_names(value: Any) -> tuple[str, ...]:
    words = list(map(str, value)) if isinstance(value, list | tuple) else str(value).split()
    return tuple(dict.fromkeys(words))


def _parse_objectives(value: Any) -> tuple[str, ...]:
    words = list(map(str, value)) if isinstance(value, list | tuple) else str(value).split()
    for word in words:
        if word not in OBJECTIVES:
            raise ValueError(f"{word} is none of {', '.join(OBJECTIVES)}")
        if words.count(word) > 1:
            raise ValueError(f"{word} is named more than once; name it once")
    if "quality" not in words:
        raise ValueError("quality is missing; name it, alone or with memory, time or both")
    return tuple(name for name in OBJECTIVES if name in words)


class StudySpec(DataConfig):
    """A study: data, space, budget and how far to go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str | None = Field(
        None,
        pattern=r"^\w[\w.+-]*$",
        max_length=200,
        description="name of the study (default: that of the data)",
    )
    recorded: str | None = Field(
        None,
        description="look trials up in a table of finished runs instead of training: ml-1m or "
        "beauty, which come with ParetoCut, or a CSV or Parquet file, FILE:DATASET if it has "
        "several",
    )
    n_trials: int = Field(
        12, ge=1, description="trials in the whole study, earlier runs of the command included"
    )
    timeout: Annotated[timedelta, BeforeValidator(_parse_duration)] | None = Field(
        None, description="start no further trial after this long, such as 90s, 30m or 2h"
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="end the search once the hypervolume of the front has not grown in so many "
        "finished trials",
    )
    confirm: int | None = Field(
        None,
        ge=2,
        description="after the search, train the configurations of the front with new seeds until "
        "each has so many trainings, and rank the front by their means",
    )
    memory_budget: Annotated[int | Share, PlainValidator(parse_budget)] | None = Field(
        None,
        description="what a trial may allocate: a size such as 6GiB; a share such as 90%% of the "
        "card, or of the machine's memory without one; or a card such as A100-40GB, for 90%% of "
        "its memory (default: 90%% of the card, or half of the machine's memory without one)",
    )
    spend_budget: Literal["batch_size", "negatives"] | None = Field(
        None,
        description="batch_size or negatives: not searched; every trial that has it takes the "
        "most, within its range, that the budget allows beside the other settings (on a GPU)",
    )
    objectives: Annotated[tuple[str, ...], PlainValidator(_parse_objectives)] = Field(
        DEFAULT_OBJECTIVES,
        description="quality and, if they are to be low, memory (the peak) and time (the seconds "
        "that a trial takes); quality alone: the best within the budget",
    )
    sampler: Literal["auto", "front", "tpe", "gp", "nsga2", "grid", "random"] = Field(
        "auto",
        description="which configuration next. auto: front where it can, else tpe; front: what is "
        "expected to add most to the front, by a model of the quality and predicted peaks (on a "
        "GPU, not with bce, sce and rece); tpe: by what good trials had; gp and nsga2: Optuna's "
        "own; grid: every combination of choices once; random",
    )
    warm_start: Annotated[tuple[str, ...], PlainValidator(_parse_names)] = Field(
        (),
        description="finished studies of this storage, of other data or another budget, or "
        "recorded tables as --recorded has them, whose trials the sampler front starts from",
    )
    pruning: Literal["dominance", "none"] = Field(
        "dominance",
        description="which trial to stop on its way. dominance: one that others with no more "
        "memory are far ahead of at the same epoch; none",
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="seeds the sampler and, with its number, a trial"
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N"
    )
    gpus: str | None = Field(
        None,
        pattern=r"^(all|\d+(,\d+)*)$",
        description="all, or their numbers such as 0,2: a worker process on each of these GPUs",
    )
    gpus_per_trial: int = Field(
        1,
        ge=1,
        description="of --gpus, how many train one trial together, each on its share of every "
        "batch; the budget is that of each",
    )
    workers: int | None = Field(
        None, ge=1, le=1000, description="so many worker processes on the CPU"
    )
    max_retries: int = Field(
        2,
        ge=0,
        description="how often a trial that the machine failed is tried again, from its "
        "checkpoint",
    )
    output_dir: Path = Field(
        Path("runs"), description="folder of studies, reports and MLflow's store"
    )
    storage: str | None = Field(
        None,
        description="database of the study, as an SQLAlchemy URL; also OPTUNA_STORAGE (default: "
        "SQLite in the study's folder)",
    )
    tracking_uri: str | None = Field(
        None,
        description="MLflow server or store; also MLFLOW_TRACKING_URI (default: SQLite in the "
        "output folder)",
    )
    space: dict[str, Any] = Field(
        default_factory=dict, description="settings of a trial: fixed, ranges or choices"
    )

    @field_validator("split")
    @classmethod
    def _can_be_searched(cls, split: str) -> str:
        if split == "none":
            raise ValueError(
                "a search needs targets to validate trials on; choose leave-one-out or temporal"
            )
        return split

    @property
    def data_config(self) -> DataConfig:
        """The part that says which data."""
        return DataConfig.model_validate(
            {name: getattr(self, name) for name in DataConfig.model_fields}
        )

    @property
    def tracking_store(self) -> str:
        """URI of MLflow's store."""
        return self.tracking_uri or f"sqlite:///{self.output_dir.absolute() / 'mlflow.db'}"


def data_names() -> list[str]:
    """The names of all that says which data, dotted where nested."""
    names = [name for name in DataConfig.model_fields if name not in SECTIONS]
    return names + [
        f"{name}.{key}" for name, part in SECTIONS.items() for key in part.model_fields
    ]


def flag_of(name: str) -> str:
    """The flag of a field, or of a setting as `space.NAME`, whose name stays as it is."""
    return f"--{name}" if name.startswith("space.") else f"--{name.replace('_', '-')}"


def load_spec(flags: Mapping[str, Any], config: Path | None = None) -> StudySpec:
    """The specification: flags over environment variables over the TOML file over defaults.

    Args:
        flags: Values by flag name, dotted where nested; None where not given.
        config: The TOML file.

    Raises:
        UserError: A key is unknown or a value does not fit; the message says where it stands.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if config is not None:
        for name, value in _flatten(_read_toml(config)).items():
            values[name], origins[name] = value, f"{config}: {name}"
    for name in _names():
        variable = "PARETOCUT_" + name.upper().replace(".", "_")
        for candidate in (_FOREIGN_VARIABLES.get(name), variable):
            if candidate and (text := os.environ.get(candidate)):
                values[name] = text.split() if name.startswith("space.") else text
                origins[name] = candidate
        if flags.get(name) is not None:
            values[name] = flags[name]
            origins[name] = flag_of(name)
    nested: dict[str, Any] = {}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[key] = value
    try:
        return StudySpec.model_validate(nested)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(_sentence(origins.get(name, name), first)) from None


def _names() -> list[str]:
    own = [
        name for name in StudySpec.model_fields if name not in (*DataConfig.model_fields, "space")
    ]
    return [*data_names(), *own, *(f"space.{name}" for name in SETTINGS)]


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: not TOML: {error}") from error


def _flatten(table: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if name in (*SECTIONS, "space") and isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def _sentence(where: str, error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return f"{where}: there is no such key; keys are {', '.join(_names())}"
    message: str = error["msg"].removeprefix("Value error, ")
    if not where:
        # Of several fields, which it names.
        return message
    if error["type"] == "string_pattern_mismatch":
        message = "not one of the forms that --help lists"
    shown = error["input"] if isinstance(error["input"], (str, int, float)) else ""
    return f"{where} {shown}".strip() + f": {message[:1].lower()}{message[1:]}"
