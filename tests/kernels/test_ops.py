"""The losses as citizens of PyTorch: operators, autograd, compilation, autocast; both backends."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from kernels import Explicit, Uniform, _ops, full_cross_entropy, sampled_cross_entropy
from kernels import _faults as faults_module
from kernels._arguments import flatten
from kernels._backend import choose_backend
from kernels._faults import CANDIDATE, TARGET, Faults, mark_bad_ids
from kernels.candidates import Draws
from kernels.reference import Problem

NUM_ROWS, NUM_ITEMS, WIDTH = 5, 9, 6


class Inputs(NamedTuple):
    """What a loss is computed of; all but the targets may need a gradient."""

    states_ND: Tensor
    table_VD: Tensor
    bias_V: Tensor
    logit_scale: Tensor
    targets_N: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self[:4]


def inputs(
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    needs: Sequence[bool] = (True, True, True, True),
    num_rows: int = NUM_ROWS,
) -> Inputs:
    generator = torch.Generator().manual_seed(num_rows)
    shapes = ((num_rows, WIDTH), (NUM_ITEMS, WIDTH), (NUM_ITEMS,), ())
    states_ND, table_VD, bias_V, logit_scale = (
        torch.randn(shape, generator=generator).to(device, dtype).requires_grad_(needed)
        for shape, needed in zip(shapes, needs, strict=True)
    )
    targets_N = torch.randint(0, NUM_ITEMS, (num_rows,), generator=generator).to(device)
    targets_N[num_rows // 2] = -100
    return Inputs(states_ND, table_VD, bias_V, logit_scale, targets_N)


Loss = Callable[..., Any]


def sampled(group_size: int, **options: Any) -> Loss:
    def loss(given: Inputs, **more: Any) -> Any:
        return sampled_cross_entropy(
            given.states_ND,
            given.table_VD,
            given.targets_N,
            Uniform(5, seed=3),
            group_size=group_size,
            bias_V=given.bias_V,
            logit_scale=given.logit_scale,
            **options,
            **more,
        )

    return loss


def full(given: Inputs, **more: Any) -> Any:
    return full_cross_entropy(
        given.states_ND,
        given.table_VD,
        given.targets_N,
        bias_V=given.bias_V,
        logit_scale=given.logit_scale,
        **more,
    )


every_loss = pytest.mark.parametrize(
    "loss",
    [
        pytest.param(full, id="full"),
        pytest.param(sampled(1), id="sampled-1"),
        pytest.param(sampled(3), id="sampled-3"),
        pytest.param(sampled(3, deterministic=True), id="sampled-3-deterministic"),
        pytest.param(sampled(100), id="sampled-pool"),
        pytest.param(sampled(3, table_gradient="touched"), id="touched"),
    ],
)


def total(loss: Loss, given: Inputs) -> Tensor:
    """A function of the loss and of the log-sum-exps."""
    value, lse_N = loss(given, return_lse=True)
    result: Tensor = value + lse_N.square().mean()
    return result


def close(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert our is not None
        assert their is not None
        torch.testing.assert_close(our.to_dense(), their.to_dense(), atol=1e-6, rtol=1e-5)


def test_to_import_the_losses_is_not_to_import_triton() -> None:
    code = "import sys, kernels; print({'triton', 'torch._dynamo'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def flat_arguments(given: Inputs, draws: Draws | None) -> tuple[Any, ...]:
    problem = Problem(
        given.states_ND,
        given.table_VD,
        given.targets_N,
        draws,
        3,
        "logq",
        bias_V=given.bias_V,
        logit_scale=given.logit_scale,
    )
    return flatten(problem)


DRAWS = [
    pytest.param(Draws(5, 3), id="drawn"),
    pytest.param(Draws(2, ids_GK=torch.tensor([[1, -1], [2, 2]])), id="given"),
    pytest.param(None, id="full"),
]


CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


def check(operator: Any, *arguments: Any, checks: Sequence[str] = CHECKS) -> None:
    torch.library.opcheck(operator.default, arguments, test_utils=checks)


def on(device: torch.device, draws: Draws | None) -> Draws | None:
    if draws is None or draws.ids_GK is None:
        return draws
    return draws._replace(ids_GK=draws.ids_GK.to(device))


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("table_gradient", ["dense", "none"])
def test_the_forward_operator_is_as_pytorch_asks(
    draws: Draws | None, table_gradient: str, backend: str, device: torch.device
) -> None:
    needs_table = table_gradient == "dense"
    given = inputs(device, needs=(True, needs_table, needs_table, True))
    flat = flat_arguments(given, on(device, draws))
    # AOTAutograd refuses a graph that returns what its backward pass writes on, as Triton's does
    # with the mixtures; those of the losses do not return them.
    checks = CHECKS[:3] if backend == "triton" else CHECKS
    arguments = (*flat, backend, table_gradient, True, None)
    check(torch.ops.paretocut.cross_entropy, *arguments, checks=checks)


@pytest.mark.parametrize("needs", [(True, True, True, True), (False, True, False, True)])
@pytest.mark.parametrize("draws", DRAWS)
def test_the_gradient_operator_of_the_eager_backend_is_as_pytorch_asks(
    draws: Draws | None, needs: Sequence[bool]
) -> None:
    flat = flat_arguments(inputs(torch.device("cpu"), needs=(False,) * 4), draws)
    _, _, *kept = torch.ops.paretocut.cross_entropy(*flat, "eager", "none", False, None)
    weights_N = torch.linspace(-1, 2, NUM_ROWS)
    for grads in ((weights_N, None), (None, weights_N), (weights_N, weights_N)):
        check(torch.ops.paretocut.eager_gradients, *flat, *kept[:2], *grads, None, list(needs))


@pytest.mark.usefixtures("triton_backend")
@pytest.mark.parametrize("draws", DRAWS)
def test_the_gradient_operators_of_triton_are_as_pytorch_asks(
    draws: Draws | None, device: torch.device
) -> None:
    flat = flat_arguments(inputs(device, needs=(False,) * 4), on(device, draws))
    _, _, *kept = torch.ops.paretocut.cross_entropy(*flat, "triton", "dense", True, None)
    *kept, mixtures_ND = kept
    grads = torch.linspace(-1, 2, NUM_ROWS, device=device), None
    check(torch.ops.paretocut.triton_states_gradient, *flat, mixtures_ND, kept[1], *grads)
    gradients = torch.ops.paretocut.triton_table_gradients
    nowhere = (None,) * 4
    if draws is None or draws.ids_GK is not None:
        # With drawn lists the rows come from the forward operator, zero where they must be.
        check(gradients, *flat, *kept, *nowhere, *grads, "dense", None)
    if draws is not None:
        touched = torch.ops.paretocut.triton_touched_items(*flat, kept[2])
        check(gradients, *flat, *kept, *touched, *grads, "touched", None)


class Model(torch.nn.Module):
    """A layer in front of both losses."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(WIDTH, WIDTH)
        self.table_VD = torch.nn.Parameter(torch.randn(NUM_ITEMS, WIDTH))
        self.bias_V = torch.nn.Parameter(torch.randn(NUM_ITEMS))
        self.logit_scale = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, inputs_ND: Tensor, targets_N: Tensor, candidates: Any) -> Tensor:
        if isinstance(candidates, int):
            candidates = Uniform(5, candidates)
        states_ND = self.linear(inputs_ND)
        one = sampled_cross_entropy(
            states_ND,
            self.table_VD,
            targets_N,
            candidates,
            group_size=2,
            bias_V=self.bias_V,
            logit_scale=self.logit_scale,
        )
        other, lse_N = full_cross_entropy(
            states_ND, self.table_VD, targets_N, logit_scale=0.5, return_lse=True
        )
        return one + other + lse_N.mean()


def assert_compiled_equals_eager(
    model: Model, compiled: Loss, given: Inputs, candidates: Any
) -> None:
    results = []
    for forward in (compiled, model):
        loss = forward(given.states_ND, given.targets_N, candidates)
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    close(*results)


@pytest.mark.parametrize("by_seed", [False, True], ids=["sampler", "seed"])
def test_a_compiled_model_has_no_break_and_is_compiled_twice(by_seed: bool) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, counter = Model(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    cpu = torch.device("cpu")
    # The first sizes are those of one batch, then one dimension and the seed vary.
    for num_rows, seed in ((9, 3), (14, 77), (31, 5), (23, 1 << 40), (6, (1 << 63) - 1)):
        candidates = seed if by_seed else Uniform(5, seed)
        given = inputs(cpu, num_rows=num_rows, needs=(False,) * 4)
        assert_compiled_equals_eager(model, compiled, given, candidates)
    assert counter.frame_count <= 2
    # The sign of a seed's 64 bits may be compiled for itself.
    for num_rows, seed in ((12, 1 << 63), (15, (1 << 64) - 1)):
        candidates = seed if by_seed else Uniform(5, seed)
        given = inputs(cpu, num_rows=num_rows, needs=(False,) * 4)
        assert_compiled_equals_eager(model, compiled, given, candidates)
    assert counter.frame_count <= 3


def test_a_compiled_model_may_use_either_backend(backend: str, device: torch.device) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = Model().to(device)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for num_rows in (4, 7):
        given = inputs(device, num_rows=num_rows, needs=(False,) * 4)
        assert_compiled_equals_eager(model, compiled, given, 3)
        ids_GK = torch.arange(2 * -(-num_rows // 2), device=device).view(-1, 2) % NUM_ITEMS
        assert_compiled_equals_eager(model, compiled, given, Explicit(ids_GK))


# Dynamo hides it, unless warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_touched_rows_break_the_graph(backend: str, device: torch.device) -> None:
    torch._dynamo.reset()
    given, loss = inputs(device), sampled(3, table_gradient="touched")
    compiled = torch.compile(lambda given: loss(given) * 2, backend="aot_eager")
    (grad,) = torch.autograd.grad(compiled(given), given.table_VD)
    close([grad], torch.autograd.grad(loss(given) * 2, given.table_VD))
    compiled = torch.compile(lambda given: loss(given) * 2, backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(given)


@every_loss
def test_what_needs_no_gradient_gets_none(loss: Loss, backend: str, device: torch.device) -> None:
    every = inputs(device)
    expected = torch.autograd.grad(total(loss, every), every.leaves)
    for needed in ({0}, {1}, {2}, {3}, {1, 2}):
        given = inputs(device, needs=[leaf in needed for leaf in range(4)])
        total(loss, given).backward()  # type: ignore[no-untyped-call]
        for number, (leaf, grad) in enumerate(zip(given.leaves, expected, strict=True)):
            assert (leaf.grad is not None) == (number in needed)
            if number in needed:
                close([leaf.grad], [grad])


@every_loss
def test_without_gradients_the_values_are_the_same(
    loss: Loss, backend: str, device: torch.device
) -> None:
    given = inputs(device)
    expected = loss(given, return_lse=True, reduction="none")
    with torch.no_grad():
        results = loss(given, return_lse=True, reduction="none")
    frozen = loss(inputs(device, needs=(False,) * 4), return_lse=True, reduction="none")
    assert all(value.requires_grad for value in expected)
    assert not any(value.requires_grad for value in (*results, *frozen))
    close(results, expected)
    close(frozen, expected)


@every_loss
def test_a_graph_may_be_walked_again(loss: Loss, backend: str, device: torch.device) -> None:
    given = inputs(device)
    value = total(loss, given)
    expected = torch.autograd.grad(total(loss, given), given.leaves)
    close(torch.autograd.grad(value, given.leaves, retain_graph=True), expected)
    # One at a time: what was made in place is not taken for what was saved.
    for leaf, grad in zip(given.leaves, expected, strict=True):
        close(torch.autograd.grad(value, leaf, retain_graph=True), [grad])
    value.backward()  # type: ignore[no-untyped-call]
    close([leaf.grad for leaf in given.leaves], expected)


@every_loss
def test_a_gradient_is_not_changed_by_the_next(
    loss: Loss, backend: str, device: torch.device
) -> None:
    given = inputs(device)
    value = total(loss, given)
    first = torch.autograd.grad(value, given.leaves, retain_graph=True)
    kept = [grad.to_dense().clone() for grad in first]
    torch.autograd.grad(2 * value, given.leaves)
    close(first, kept)


@every_loss
def test_losses_and_log_sum_exps_may_be_used_apart(
    loss: Loss, backend: str, device: torch.device
) -> None:
    given = inputs(device)
    value, lse_N = loss(given, return_lse=True)
    both = torch.autograd.grad(value + lse_N.sum(), given.leaves, retain_graph=True)
    parts = [
        torch.autograd.grad(each, given.leaves, retain_graph=True) for each in (value, lse_N.sum())
    ]
    close([one.to_dense() + other.to_dense() for one, other in zip(*parts, strict=True)], both)


@every_loss
def test_a_second_derivative_is_refused(loss: Loss, backend: str, device: torch.device) -> None:
    given = inputs(device)
    expected = torch.autograd.grad(total(loss, given), given.leaves)
    # Of a function whose incoming gradients depend on the leaves, and of one where they do not.
    grads = torch.autograd.grad(total(loss, given), given.leaves, create_graph=True)
    close(grads, expected)
    for grad in (*grads, *torch.autograd.grad(loss(given), given.leaves, create_graph=True)):
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            torch.autograd.grad(grad.to_dense().square().sum(), given.leaves)


class Packed:
    """Sees what autograd saves, and gives it back as it is."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def __enter__(self) -> "Packed":
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> Tensor:
        self.tensors.append(tensor)
        return tensor

    def num_bytes_beyond(self, given: Inputs) -> int:
        known = {tensor.data_ptr() for tensor in given}
        sizes = {
            tensor.data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in self.tensors
            if tensor.data_ptr() not in known
        }
        return sum(sizes.values())


def test_autograd_saves_two_numbers_a_row_and_on_triton_the_states_gradient(
    backend: str, device: torch.device
) -> None:
    given = inputs(device)
    with Packed() as packed:
        full(given, reduction="none")
    mixtures = given.states_ND.nbytes if backend == "triton" else 0
    assert packed.num_bytes_beyond(given) == 2 * 4 * NUM_ROWS + mixtures
    given = inputs(device, needs=(False, True, False, False))
    with Packed() as packed:
        full(given, reduction="none")
    assert packed.num_bytes_beyond(given) == 2 * 4 * NUM_ROWS


@pytest.mark.usefixtures("triton_backend")
@pytest.mark.parametrize("loss", [full, sampled(1), sampled(3)])
def test_the_states_gradient_is_made_in_place_and_not_copied(
    loss: Loss, device: torch.device
) -> None:
    given = inputs(device)
    with Packed() as packed:
        value = loss(given)
    value.backward()
    assert given.states_ND.grad is not None
    saved = [tensor.data_ptr() for tensor in packed.tensors]
    assert given.states_ND.grad.data_ptr() in saved


@every_loss
@pytest.mark.parametrize("how", ["save_on_cpu", "checkpoint"])
def test_what_is_saved_may_be_moved_or_computed_again(
    loss: Loss, how: str, backend: str, device: torch.device
) -> None:
    given = inputs(device)
    expected = torch.autograd.grad(total(loss, given), given.leaves)
    if how == "checkpoint":
        value = checkpoint(lambda: total(loss, given), use_reentrant=False)
    else:
        with torch.autograd.graph.save_on_cpu():
            value = total(loss, given)
    for _ in range(2):
        close(torch.autograd.grad(value, given.leaves, retain_graph=True), expected)


@pytest.mark.usefixtures("triton_backend")
@pytest.mark.parametrize("loss", [full, sampled(1), sampled(3)])
def test_the_gradient_of_a_mean_arrives_as_one_number(
    loss: Loss, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels import triton_backend

    seen = []
    original = triton_backend.table_gradients

    def spy(*arguments: Any) -> Any:
        loss_weight_N, lse_weight_N = arguments[4:6]
        seen.append((loss_weight_N.stride(), lse_weight_N))
        return original(*arguments)

    monkeypatch.setattr(triton_backend, "table_gradients", spy)
    for reduction in ("mean", "sum"):
        loss(inputs(device), reduction=reduction).backward()
    assert seen == [((0,), None), ((0,), None)]


@every_loss
def test_the_gradient_of_a_half_precision_table_may_be_single(
    loss: Loss, backend: str, device: torch.device
) -> None:
    given = inputs(device, dtype=torch.bfloat16)
    total(loss, given).backward()  # type: ignore[no-untyped-call]
    rounded = given.table_VD.grad
    assert rounded is not None
    assert rounded.dtype == torch.bfloat16
    given.table_VD.grad = None
    given.table_VD.grad_dtype = torch.float32
    total(loss, given).backward()  # type: ignore[no-untyped-call]
    exact = given.table_VD.grad
    assert exact is not None
    assert exact.dtype == torch.float32
    torch.testing.assert_close(exact.to_dense().bfloat16(), rounded.to_dense())
    if loss is not full or backend == "eager":
        assert not torch.equal(exact.to_dense(), rounded.to_dense().float())


def test_an_ignored_item_is_not_touched(backend: str, device: torch.device) -> None:
    given = inputs(device)
    targets_N = torch.full((NUM_ROWS,), 4, device=device)
    targets_N[0] = 2
    loss = sampled_cross_entropy(
        given.states_ND,
        given.table_VD,
        targets_N,
        Explicit(torch.tensor([[1, 3]], device=device)),
        group_size=NUM_ROWS,
        ignore_index=4,
        table_gradient="touched",
    )
    (grad,) = torch.autograd.grad(loss, given.table_VD)
    assert grad.indices().tolist() == [[1, 2, 3]]


def test_sparse_adam_moves_the_touched_rows_only(backend: str, device: torch.device) -> None:
    rows = []
    for form, make in (("touched", torch.optim.SparseAdam), ("dense", torch.optim.Adam)):
        given = inputs(device)
        # The two add their epsilon in different places.
        optimizer = make([given.table_VD], lr=0.1, eps=1e-20)
        before = given.table_VD.detach().clone()
        sampled(3, table_gradient=form)(given).backward()
        grad = given.table_VD.grad
        assert grad is not None
        assert grad.is_sparse == (form == "touched")
        optimizer.step()  # type: ignore[no-untyped-call]
        rows.append((given.table_VD.detach() - before, grad.to_dense()))
    # From a state of zeros, an Adam step leaves a row without a gradient where it is.
    for ours, theirs in zip(*rows, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert (rows[0][0] != 0).any(1).sum() < NUM_ITEMS


def test_autocast_rounds_what_triton_multiplies(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    single = inputs(device, needs=(False,) * 4)
    half = single._replace(
        states_ND=single.states_ND.bfloat16(), table_VD=single.table_VD.bfloat16()
    )
    for loss in (full, sampled(1), sampled(3)):
        monkeypatch.setenv("PARETOCUT_KERNELS", "triton")
        with torch.autocast(device.type, dtype=torch.bfloat16):
            inside = loss(single, reduction="none")
        assert inside.dtype == torch.float32
        # The interpreter does not round to nearest.
        tolerance = 2e-2 if device.type == "cpu" else 0.0
        rounded = loss(half, reduction="none")
        torch.testing.assert_close(inside, rounded, atol=tolerance, rtol=tolerance)
        assert not torch.equal(inside, loss(single, reduction="none"))
        monkeypatch.setenv("PARETOCUT_KERNELS", "eager")
        with torch.autocast(device.type, dtype=torch.bfloat16):
            inside = loss(single, reduction="none")
            double = loss(inputs(device, dtype=torch.float64))
        assert torch.equal(inside, loss(single, reduction="none"))
        assert double.dtype == torch.float64


@every_loss
def test_a_backward_pass_may_run_under_autocast(
    loss: Loss, backend: str, device: torch.device
) -> None:
    given = inputs(device)
    value = total(loss, given)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        grads = torch.autograd.grad(value, given.leaves, retain_graph=True)
    close(grads, torch.autograd.grad(value, given.leaves))


@pytest.mark.parametrize("asked", [False, True])
def test_determinism_follows_pytorch_unless_it_is_asked_for(
    asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(problem: Problem, *others: Any) -> tuple[Tensor, Tensor]:
        seen.append(problem.deterministic)
        return torch.zeros(NUM_ROWS), torch.zeros(NUM_ROWS)

    monkeypatch.setattr("kernels._losses.row_losses", spy)
    given = inputs(torch.device("cpu"))
    torch.use_deterministic_algorithms(asked)
    try:
        for deterministic in (None, False, True):
            full(given, deterministic=deterministic)
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [asked, False, True]


def fake(dtype: torch.dtype, width: int = 4, device: str = "cuda") -> Tensor:
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        return torch.empty(3, width, dtype=dtype, device=device)


def test_the_device_and_the_type_choose_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    single, half, double = (fake(d) for d in (torch.float32, torch.bfloat16, torch.float64))
    assert choose_backend(single, single) == choose_backend(half, single) == "triton"
    assert choose_backend(single, double) == choose_backend(double, double) == "eager"
    on_cpu = torch.zeros(3, 4)
    assert choose_backend(on_cpu, on_cpu) == "eager"
    monkeypatch.setenv("PARETOCUT_KERNELS", "eager")
    assert choose_backend(single, single) == "eager"
    monkeypatch.setenv("PARETOCUT_KERNELS", "triton")
    assert choose_backend(single, single) == choose_backend(on_cpu, on_cpu) == "triton"
    monkeypatch.delenv("PARETOCUT_KERNELS")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert choose_backend(single, single) == "eager"


def test_wide_states_are_too_wide_for_triton_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    wide = fake(torch.float32, width=1025)
    with pytest.raises(ValueError, match=r"^states_ND has 1025 columns.*PARETOCUT_KERNELS=eager"):
        choose_backend(wide, wide)
    monkeypatch.setenv("PARETOCUT_KERNELS", "eager")
    assert choose_backend(wide, wide) == "eager"


def test_what_triton_is_forced_on_and_cannot_do_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("PARETOCUT_KERNELS", "cuda")
    given = inputs(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"^PARETOCUT_KERNELS must be .* not 'cuda'"):
        full(given)
    monkeypatch.setenv("PARETOCUT_KERNELS", "triton")
    with pytest.raises(ValueError, match=r"^states_ND is torch\.float64.*PARETOCUT_KERNELS"):
        full(inputs(torch.device("cpu"), dtype=torch.float64))
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match=r"^states_ND is on cpu, but PARETOCUT_KERNELS=triton"):
        full(given)


@pytest.mark.parametrize(("bit", "name"), [(TARGET, "targets_N"), (CANDIDATE, "ids_GK")])
def test_a_fault_is_raised_once(bit: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults(torch.device("cpu"))
    faults.report()
    faults.bits |= bit
    with pytest.raises(ValueError, match=f"^{name} of an earlier call held an id outside"):
        faults.report()
    faults.report()
    # As on a GPU, where the host looks at the copy before the next call.
    monkeypatch.setattr(faults, "_waits", False)
    faults.bits |= bit
    faults.report()
    with pytest.raises(ValueError, match=f"^{name} of an earlier call"):
        faults.check()
    faults.check()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ids_of_no_item_become_empty_slots(dtype: torch.dtype) -> None:
    faults = Faults(torch.device("cpu"))
    good_GK = torch.tensor([[0, -1, 8], [3, 8, -1]], dtype=dtype)
    assert torch.equal(mark_bad_ids(good_GK, 9, faults), good_GK.int())
    assert not faults.bits.any()
    bad_GK = good_GK.index_fill(1, torch.tensor([1]), 9)
    bad_GK[1, 2] = torch.iinfo(dtype).min
    for each in (faults, None):
        marked_GK = mark_bad_ids(bad_GK, 9, each)
        assert marked_GK.dtype == torch.int32
        assert marked_GK.tolist() == [[0, -1, 8], [3, -1, -1]]
    assert faults.bits.tolist() == [CANDIDATE]


@pytest.mark.usefixtures("triton_backend")
@pytest.mark.parametrize("loss", [full, sampled(1), sampled(3), sampled(100)])
def test_a_target_out_of_range_has_no_loss_and_no_gradient(
    loss: Loss, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cpu":
        # As on a GPU, where nobody waits to look.
        faults = Faults(device)
        monkeypatch.setattr(faults, "_waits", False)
        monkeypatch.setattr(faults_module, "_OF_DEVICE", {device: faults})
        monkeypatch.setattr(_ops, "check_ids", lambda problem: None)
    given, ignoring = inputs(device), inputs(device)
    bad_N = torch.tensor([0, 1, 3], device=device)
    given.targets_N[bad_N] = torch.tensor([NUM_ITEMS, -1, 1 << 40], device=device)
    ignoring.targets_N[bad_N] = -100
    loss_N, lse_N = loss(given, reduction="none", return_lse=True)
    grads = torch.autograd.grad(loss_N.nan_to_num().sum() + lse_N.sum(), given.leaves)
    if device.type == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(ValueError, match=r"^targets_N of an earlier call"):
        loss(ignoring)
    expected_N, expected_lse_N = loss(ignoring, reduction="none", return_lse=True)
    assert loss_N[bad_N].isnan().all()
    assert torch.equal(loss_N.nan_to_num(), expected_N)
    assert torch.equal(lse_N, expected_lse_N)
    close(grads, torch.autograd.grad(expected_N.sum() + expected_lse_N.sum(), ignoring.leaves))
