"""What `python -m study.best` does beyond choosing: trains, refreshes, exports and registers."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objectives.errors import UserError
from study import cli
from study.spec import StudySpec

if TYPE_CHECKING:
    from study.records import StudyRecord, TrialRecord
    from study.registry import Registry


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of training, registering and exporting the chosen trial."""
    group = parser.add_argument_group("into production")
    group.add_argument(
        "--retrain",
        action="store_true",
        help="train the trial's configuration on all data, for the epochs of its best weights; "
        "what is there already is left alone",
    )
    group.add_argument(
        "--seeds",
        metavar="N",
        help="with --retrain: so many models, with a seed each (default: 1)",
    )
    group.add_argument(
        "--changed-data",
        action="store_true",
        help="with --retrain: though the data are not those of the study any more",
    )
    group.add_argument(
        "--since",
        metavar="DATE",
        help="with --register: train the champion on, with the users who were active at or after "
        "this time, and new items; its study's trial counts",
    )
    group.add_argument(
        "--against-scratch",
        action="store_true",
        help="with --since: compare with a training from scratch, which takes its time",
    )
    group.add_argument(
        "--device", metavar="DEVICE", default="auto", help="auto, cpu, cuda or cuda:N"
    )
    group.add_argument(
        "--register",
        metavar="NAME",
        help="retrain, and put the (first) model into MLflow's registry; the alias champion moves "
        "to it if its trial beats that of the champion on the same split",
    )
    group.add_argument(
        "--champion", action="store_true", help="with --register: move the alias in any case"
    )
    group.add_argument(
        "--int8",
        action="store_true",
        help="with --register: serve the best of 1,000 items by a table of bytes",
    )
    group.add_argument(
        "--export",
        metavar="FOLDER",
        help="retrain, and write the (first) encoder as a program of torch.export, and the item "
        "vectors as Parquet",
    )
    cli.add_tracking_flag(parser)


def check_flags(arguments: argparse.Namespace) -> None:
    """Refuses flags that ask for nothing without another.

    Raises:
        UserError: There is one.
    """
    given = vars(arguments)
    trains = "--retrain, --register or --export"
    for flag, needed, are_there in (
        ("--seeds", trains, is_asked(arguments)),
        ("--changed-data", trains, is_asked(arguments)),
        ("--since", "--register NAME, whose champion goes on", arguments.register),
        ("--against-scratch", "--since DATE", arguments.since is not None),
        ("--champion", "--register NAME", arguments.register),
        ("--int8", "--register NAME", arguments.register),
    ):
        if given[flag[2:].replace("-", "_")] and not are_there:
            raise UserError(f"{flag}: it goes with {needed}")
    if arguments.since is not None:
        for flag in ("--budget", "--seconds", "--knee", "--weight", "--seeds"):
            if given[flag[2:]]:
                raise UserError(f"{flag}: --since goes on with the champion's trial; leave it out")
    _seeds(arguments)


def is_asked(arguments: argparse.Namespace) -> bool:
    """Whether a model is to be trained."""
    return bool(arguments.retrain or arguments.register or arguments.export)


def produce(
    arguments: argparse.Namespace,
    record: "StudyRecord",
    trial: "TrialRecord",
    front: list[dict[str, Any]],
) -> dict[str, Any]:
    """Trains the trial's model, or refreshes the champion, and does with it what is asked.

    Args:
        arguments: The flags.
        record: The study.
        trial: The one that was chosen.
        front: The study's front, for the registry.

    Returns:
        Folders of the `models`, and what was `registered`, `refreshed` and `exported`.
    """
    from study.registry import Registry
    from study.retrain import Retraining

    registry = None
    if arguments.register:
        store = StudySpec(
            output_dir=arguments.output_dir,
            tracking_uri=arguments.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"),
        ).tracking_store
        registry = Registry(store, arguments.output_dir)
    folder = arguments.output_dir / record.name
    made: dict[str, Any] = {}
    if arguments.since is not None:
        assert registry is not None
        path, judged = _refresh(arguments, record, registry, folder)
        for name, figures in judged["models"].items():
            cli.say(f"{name}: NDCG@10 {figures['ndcg_at_10']:.4f}, {figures['seconds']:.1f} s")
        made["refreshed"] = judged
        folders = [path]
    else:
        retraining = Retraining(record, trial, device=arguments.device, folder=folder, say=cli.say)
        if not arguments.changed_data:
            retraining.check_data()
        folders = list(retraining.seeds(_seeds(arguments)))
    made["models"] = [str(path) for path in folders]
    if arguments.export:
        from study.exporting import export

        made["exported"] = [str(path) for path in export(folders[0], Path(arguments.export))]
    if registry is not None:
        made["registered"] = _register(arguments, record, registry, folders[0], front, made)
    return made


def _seeds(arguments: argparse.Namespace) -> int:
    if arguments.seeds is None:
        return 1
    if not arguments.seeds.isdecimal() or int(arguments.seeds) < 1:
        raise UserError(f"--seeds {arguments.seeds}: write a number of models, such as 3")
    return int(arguments.seeds)


def _refresh(
    arguments: argparse.Namespace, record: "StudyRecord", registry: "Registry", folder: Path
) -> tuple[Path, dict[str, Any]]:
    from study.refresh import refresh
    from study.retrain import Retraining

    found = registry.champion(arguments.register)
    if found is None:
        raise UserError(
            f"--since {arguments.since}: {arguments.register} has no champion to go on with; "
            "leave the flag out, or choose one with --champion"
        )
    by_number = {str(trial.number): trial for trial in record.complete}
    trial = by_number.get(found.tags["trial"])
    if found.tags["study"] != record.name or trial is None:
        raise UserError(
            f"--since {arguments.since}: the champion of {arguments.register} is trial "
            f"{found.tags['trial']} of study {found.tags['study']}; choose that with --study"
        )
    retraining = Retraining(record, trial, device=arguments.device, folder=folder, say=cli.say)
    return refresh(
        registry,
        found,
        retraining,
        arguments.since,
        against_scratch=arguments.against_scratch,
    )


def _register(
    arguments: argparse.Namespace,
    record: "StudyRecord",
    registry: "Registry",
    folder: Path,
    front: list[dict[str, Any]],
    made: dict[str, Any],
) -> dict[str, Any]:
    from objectives.saved_model import read_about
    from study.registry import is_better

    name, about = arguments.register, read_about(folder)
    champion = registry.champion(name)
    if "refreshed" in made:
        moves, why = made["refreshed"]["is_better"], made["refreshed"]["why"]
    else:
        moves, why = is_better(about, champion)
    number = registry.register(
        name, folder, about, front, parent=record.mlflow_run, int8=arguments.int8
    )
    if moves or arguments.champion:
        registry.crown(name, number)
        cli.say(
            f"{name} version {number} is the champion: {why if moves else 'as --champion asks'}"
        )
    else:
        cli.say(
            f"{name} version {number} is registered, but version {champion.version} stays the "
            f"champion: {why}; --champion moves the alias in any case"
        )
    return {"name": name, "version": number, "champion": moves or arguments.champion}
