"""Refuses configurations whose peak memory is predicted to exceed the budget, before they run.

How far predictions were off on a kind of card is learned from its trials and kept for later ones.
"""

import json
import re
import statistics
from pathlib import Path

import torch

from kernels._backend import triton_is_default
from kernels.gpu import gpu_of
from objectives.config import TrialConfig
from objectives.data import PreparedData
from objectives.data.cache import cache_entry, cache_folder
from objectives.memory_model import DataShape, MemoryModel
from objectives.trial import InfeasibleTrial

_UNKNOWN_SHARE = 0.05
"""Share of a peak that a prediction may be off by, at least, while few trials have shown it."""
_LEAST_SHARE = 0.01
_SMALL_PEAK = 128 << 20
"""Bytes; smaller peaks are off by as much as this one, not by a share of their own."""
_LEAST_PEAKS, _MOST_PEAKS = 5, 200


class PredictionError:
    """What trials on one kind of card took, beside what was predicted."""

    def __init__(self, path: Path) -> None:
        """Reads what is known; path: a JSON file, which need not be there."""
        self._path = path
        self._peaks: list[tuple[int, int]] = []
        if path.is_file():
            self._peaks = [(int(p), int(m)) for p, m in json.loads(path.read_text())]

    @staticmethod
    def of_card(device: torch.device, num_processes: int = 1) -> "PredictionError":
        """That of a CUDA device and this version of torch, in the cache folder."""
        name = f"{torch.cuda.get_device_name(device)} {torch.__version__}"
        if num_processes > 1:
            name = f"{num_processes} x {name}"
        slug = re.sub(r"[^a-z0-9.]+", "-", name.lower())
        return PredictionError(cache_folder() / "memory" / f"{slug}.json")

    def corrected(self, predicted: int) -> int:
        """A predicted peak and what others took beyond theirs, in bytes."""
        if len(self._peaks) < _LEAST_PEAKS:
            return predicted
        return predicted + int(statistics.median(took - said for said, took in self._peaks))

    def margin(self, peak: int) -> int:
        """Bytes that a corrected prediction of this peak may be off by."""
        least = _UNKNOWN_SHARE if len(self._peaks) < _LEAST_PEAKS else _LEAST_SHARE
        shares = (
            abs(took - self.corrected(said)) / max(self.corrected(said), _SMALL_PEAK)
            for said, took in self._peaks
        )
        return round(max([least, *shares]) * max(peak, _SMALL_PEAK))

    def learn(self, predicted: int, measured: int) -> None:
        """Takes in a peak, in bytes; that of a trial that ran out of memory is its lower bound."""
        self._peaks = [*self._peaks, (predicted, measured)][-_MOST_PEAKS:]
        with cache_entry(self._path) as temporary:
            temporary.write_text(json.dumps(self._peaks))


class MemoryGate:
    """What stands before the trials on one data set and one card.

    Attributes:
        model: Predicts peaks.
        error: How far these are off.
    """

    def __init__(self, model: MemoryModel, error: PredictionError) -> None:
        self.model = model
        self.error = error

    @staticmethod
    def of_card(
        data: PreparedData, device: torch.device, num_processes: int = 1
    ) -> "MemoryGate | None":
        """That of a CUDA device; None of another, and where Triton does not compute."""
        gpu = gpu_of(device)
        if gpu is None or not triton_is_default():
            return None
        return MemoryGate(
            MemoryModel(DataShape.of(data), gpu, num_processes),
            PredictionError.of_card(device, num_processes),
        )

    def predict(self, config: TrialConfig, budget: int) -> int:
        """The peak in bytes, corrected by what trials have taken."""
        return self.error.corrected(self.model.predict(config, budget).peak)

    def check(self, config: TrialConfig, budget: int) -> bool:
        """Whether the configuration is so near the budget that only a probe can tell.

        Raises:
            InfeasibleTrial: It exceeds the budget by more than the prediction may be off.
        """
        peak = self.predict(config, budget)
        margin = self.error.margin(peak)
        if peak - margin > budget:
            raise InfeasibleTrial(peak, "predicted")
        # A trial that ran out of memory took the budget, or more.
        return peak + margin >= budget

    def learn(self, config: TrialConfig, budget: int, measured: int) -> None:
        """Takes in what a trial has taken, in bytes."""
        self.error.learn(self.model.predict(config, budget).peak, measured)
