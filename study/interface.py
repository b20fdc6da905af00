"""A study in Python, over the specification and the records of the commands."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objectives.errors import UserError
from study.spec import StudySpec, flag_of, load_spec

if TYPE_CHECKING:
    from study.records import StudyRecord, TrialRecord


class Study:
    """A study, whether it has begun or not.

    Attributes:
        spec: What was asked for; the environment counts, too.
    """

    def __init__(self, **flags: Any) -> None:
        """Checks the request; trains nothing.

        Args:
            flags: Those of `python -m study.run`, without dashes, such as `data`, `n_trials` and
                `memory_budget`. `columns` and `space` are dictionaries, such as `{"width": 32}`.
                `data` may be a pandas or pyarrow table, too, which is kept in the cache.

        Raises:
            UserError: There is no such flag, or a value does not fit.
        """
        if not isinstance(flags.get("data"), str | Path | None):
            from objectives.data.sources import keep_table

            flags["data"] = str(keep_table(flags["data"]))
        self._flags = dict(_flat(flags))
        self.spec: StudySpec = load_spec(self._flags)
        if unknown := flags.keys() - StudySpec.model_fields.keys():
            raise UserError(f"{min(unknown)}: python -m study.run has no such flag")

    def run(self) -> "Study":
        """Runs trials until the study has its total, as the command does; continues one.

        Returns:
            The same study.

        Raises:
            UserError: The request cannot be met.
            RuntimeError: It ended before; what it said is on standard error.
        """
        from study import cli
        from study.run import main

        given: list[str] = ["--debug"]
        for name, value in self._flags.items():
            values = value if isinstance(value, list | tuple) else [value]
            if name == "filter.events":
                values = [",".join(map(str, values))]
            given += [flag_of(name), *map(str, values)]
        code = main(given)
        if code not in (cli.OK, cli.NOTHING_FEASIBLE):
            raise RuntimeError(f"the study ended with exit code {code}")
        return self

    @cached_property
    def name(self) -> str:
        """Its name: as asked, or that of the data."""
        from study.subject import build_subject

        return self.spec.study or build_subject(self.spec).name

    @property
    def record(self) -> "StudyRecord":
        """The study as it stands.

        Raises:
            UserError: It has not begun.
        """
        from study.records import find, read

        return read(find(self.name, self.spec.storage, self.spec.output_dir), curves=True)

    def trials(self) -> "list[TrialRecord]":
        """All trials; `pandas.DataFrame(map(vars, study.trials()))` makes a table of them."""
        return list(self.record.trials)

    def front(self) -> "list[TrialRecord]":
        """The trials that no other beats, by rising memory."""
        return self.record.front()

    def best(self, budget: str | None = None) -> "TrialRecord | None":
        """The best trial within a memory limit such as "4GiB" (default: the study's budget)."""
        from study.best import parse_budget

        return self.record.best(parse_budget(budget))

    def report(self) -> Path | None:
        """Writes the report anew; None where it cannot be, which a line on standard error says."""
        from study.run import write_report

        record = self.record
        folder = self.spec.output_dir / record.name
        return next(iter(write_report(record, folder, self.spec.tracking_store)), None)


def _flat(flags: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in flags.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        elif value is not None:
            yield name, value
