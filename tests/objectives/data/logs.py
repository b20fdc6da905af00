"""Small logs: random ones, and files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from objectives.data.sources import Interactions


def random_interactions(seed: int, *, timed: bool = True) -> Interactions:
    """Up to a hundred of few users, items and times, so that repeats and ties are common."""
    generator = np.random.default_rng(seed)
    size, num_users, num_items, num_times = generator.integers(1, (100, 12, 8, 150))
    users = first_seen(generator.integers(0, num_users, size))
    items = first_seen(generator.integers(0, num_items, size))
    times = generator.integers(0, num_times, size) if timed else None
    ids = pa.array(np.arange(items.max() + 1))
    return Interactions(users, items, times, ids, (), int(users.max()) + 1)


def first_seen(values: np.ndarray) -> np.ndarray:
    """Codes in the order of first appearance."""
    codes = {value: code for code, value in enumerate(dict.fromkeys(values.tolist()))}
    return np.array([codes[value] for value in values.tolist()], dtype=np.int32)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path
