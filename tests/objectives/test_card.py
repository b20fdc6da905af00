"""A shared card, with NVML and torch's figures of it faked; `test_cuda.py` asks a real one."""

import logging
import os
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
import torch

from objectives import card
from objectives.card import CardProcess, missing_memory, other_processes, wait_for_memory
from objectives.memory import measured_memory
from objectives.trial import InfeasibleTrial, MachineFault

CUDA = torch.device("cuda", 0)
GIB = 1 << 30
OWN = os.getpid()
UUID = "8a1b0000-1111-2222-3333-444455556666"


class FakeNvml(ModuleType):
    """As much of pynvml as is asked; a failing call is given by its name."""

    NVMLError = type("NVMLError", (Exception,), {})

    def __init__(self, compute: dict[int, int | None], graphics: dict[int, int | None]) -> None:
        super().__init__("pynvml")
        self.compute, self.graphics = compute, graphics
        self.failing = ""
        self.sessions = 0

    def _call(self, name: str) -> None:
        assert self.sessions > 0 or name == "nvmlInit"
        if name == self.failing:
            raise self.NVMLError(name)

    def nvmlInit(self) -> None:  # noqa: N802
        self._call("nvmlInit")
        self.sessions += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self._call("nvmlShutdown")
        self.sessions -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self._call("nvmlDeviceGetHandleByUUID")
        if uuid != f"GPU-{UUID}":
            raise self.NVMLError("there is no such card")
        return "handle"

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:  # noqa: N802
        self._call("nvmlDeviceGetComputeRunningProcesses")
        assert handle == "handle"
        return [SimpleNamespace(pid=pid, usedGpuMemory=at) for pid, at in self.compute.items()]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: str) -> list[SimpleNamespace]:  # noqa: N802
        self._call("nvmlDeviceGetGraphicsRunningProcesses")
        assert handle == "handle"
        return [SimpleNamespace(pid=pid, usedGpuMemory=at) for pid, at in self.graphics.items()]

    def nvmlSystemGetProcessName(self, pid: int) -> str:  # noqa: N802
        self._call("nvmlSystemGetProcessName")
        return {11: "/usr/bin/python3 -m train", 12: "/usr/lib/xorg/Xorg"}.get(pid, "")


MakeNvml = Callable[..., FakeNvml]


@pytest.fixture
def make_nvml(monkeypatch: pytest.MonkeyPatch) -> MakeNvml:
    def make(
        compute: dict[int, int | None], graphics: dict[int, int | None] | None = None
    ) -> FakeNvml:
        nvml = FakeNvml(compute, graphics or {})
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        return nvml

    return make


def test_processes_are_those_of_the_card_without_this_one(make_nvml: MakeNvml) -> None:
    nvml = make_nvml({OWN: GIB, 12: GIB // 4, 11: 5 * GIB}, {12: GIB // 4, 13: None})
    assert other_processes(UUID) == [
        CardProcess(11, "python3", 5 * GIB),
        CardProcess(12, "Xorg", GIB // 4),
        CardProcess(13, "unknown", None),
    ]
    assert nvml.sessions == 0
    assert [str(process) for process in other_processes(UUID)] == [
        "process 11 (python3) holds 5.00 GiB",
        "process 12 (Xorg) holds 0.25 GiB",
        "process 13 (unknown) holds memory",
    ]


def test_a_program_that_nvml_may_not_name_is_unknown(make_nvml: MakeNvml) -> None:
    make_nvml({OWN: GIB, 11: GIB}).failing = "nvmlSystemGetProcessName"
    assert other_processes(UUID) == [CardProcess(11, "unknown", GIB)]


@pytest.mark.parametrize(
    "failing",
    ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetComputeRunningProcesses"],
)
def test_nobody_is_named_where_nvml_fails(failing: str, make_nvml: MakeNvml) -> None:
    nvml = make_nvml({OWN: GIB, 11: GIB})
    nvml.failing = failing
    assert other_processes(UUID) == []
    assert nvml.sessions == 0


def test_nobody_is_named_where_process_numbers_are_those_of_another_space(
    make_nvml: MakeNvml,
) -> None:
    make_nvml({OWN + 1: GIB, 11: GIB})
    assert other_processes(UUID) == []


def test_nobody_is_named_of_a_card_that_nvml_does_not_know() -> None:
    assert other_processes("no-card") == []


Hold = Callable[..., None]


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Hold:
    """A card of 16 GiB, of which others hold what is said: the last figure for good."""

    def set_held(*held: float) -> None:
        free = [int((16 - amount) * GIB) for amount in held]
        properties = SimpleNamespace(total_memory=16 * GIB, uuid=UUID)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(
            torch.cuda,
            "mem_get_info",
            # This process has reserved 2 GiB.
            lambda _: ((free.pop(0) if len(free) > 1 else free[0]) - 2 * GIB, 16 * GIB),
        )
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 2 * GIB)

    monkeypatch.setattr(card, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(card, "WAIT_SECONDS", 0.1)
    return set_held


@pytest.mark.parametrize(
    ("held", "budget", "is_missing"),
    [
        (0.5, 12.0, False),
        (4.0, 12.0, False),
        (4.1, 12.0, True),
        (0.9, 16.0, False),  # of the whole card, the driver and this process have a part
        (2.1, 16.0, True),
        (14.0, 1.0, False),
    ],
)
def test_memory_is_missing_where_others_hold_what_the_budget_needs(
    held: float, budget: float, is_missing: bool, hold: Hold
) -> None:
    hold(held)
    assert bool(missing_memory(CUDA, int(budget * GIB))) == is_missing


def test_a_trial_waits_until_the_others_have_gone_and_says_so_once(
    hold: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    hold(10, 10, 8, 0.5)
    with caplog.at_level(logging.WARNING):
        wait_for_memory(CUDA, 12 * GIB)
        (record,) = caplog.records
        assert "6.00 GiB left for this process" in record.getMessage()
        assert "12.00 GiB" in record.getMessage()
        wait_for_memory(CUDA, 12 * GIB)
    assert len(caplog.records) == 1


def test_who_stays_is_named(hold: Hold, make_nvml: MakeNvml) -> None:
    hold(10)
    make_nvml({OWN: GIB, 11: 10 * GIB})
    with pytest.raises(MachineFault) as caught:
        wait_for_memory(CUDA, 12 * GIB)
    assert str(caught.value) == (
        "cuda:0 has 6.00 GiB left for this process, less than the budget of 12.00 GiB: "
        "process 11 (python3) holds 10.00 GiB"
    )


def test_without_nvml_what_is_missing_is_said_all_the_same(
    hold: Hold, make_nvml: MakeNvml
) -> None:
    hold(10)
    make_nvml({}).failing = "nvmlInit"
    with pytest.raises(MachineFault, match="GiB: something else holds its memory"):
        wait_for_memory(CUDA, 12 * GIB)


@pytest.mark.parametrize(("later", "expected"), [(10, MachineFault), (0.5, InfeasibleTrial)])
def test_out_of_memory_is_the_machines_fault_where_others_came_in_between(
    later: float, expected: type[Exception], hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("set_per_process_memory_fraction", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * GIB)
    hold(0.5, later)
    with pytest.raises(expected), measured_memory(CUDA, 12 * GIB):
        raise torch.OutOfMemoryError
