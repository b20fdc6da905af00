"""Our tables, beside Optuna's in the same database."""

import sqlalchemy as sa

metadata = sa.MetaData()

epochs = sa.Table(
    "paretocut_epochs",
    metadata,
    sa.Column("study", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("epoch", sa.Integer, primary_key=True),
    sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
)

runs = sa.Table(
    "paretocut_runs",
    metadata,
    sa.Column("study", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.String(64), nullable=False),
    sa.Column("epochs_sent", sa.Integer, nullable=False, default=0),
    sa.Column("closed", sa.Boolean, nullable=False, default=False),
)

workers = sa.Table(
    "paretocut_workers",
    metadata,
    sa.Column("study", sa.String(32), primary_key=True),
    sa.Column("worker", sa.String(300), primary_key=True),
    sa.Column("place", sa.String(200), nullable=False),
    sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("beats", sa.Integer, nullable=False, default=0),
    sa.Column("asked", sa.String(8)),
    sa.Column("ended", sa.Boolean, nullable=False, default=False),
)

locks = sa.Table("paretocut_locks", metadata, sa.Column("name", sa.String(300), primary_key=True))
