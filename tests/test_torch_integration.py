"""The ops under torch's compilers, exporter, function transforms and modes."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import torch_projectors
from torch_projectors import plugins
from torch_projectors.cases import CASES, Case
from torch_projectors.derivatives import FUNCTIONS
from torch_projectors.ops import NAMESPACE

# One of each geometry and interpolation, with every option that is not about batching.
EACH = [c for c in CASES if c.name == "rectangular"]
LINEAR = [c for c in EACH if c.interpolation == "linear"]
BATCHED = [c for c in CASES if c.interpolation == "linear" and "each" in c.name]


class Problem:
    """The public functions of one case, without leading dimensions, and losses through them."""

    def __init__(self, case: Case, gradient: str = "friedel") -> None:
        inputs = case.inputs()
        self.volume, self.images, self.weights = inputs.volume[0], inputs.images[0], inputs.weights[0]
        self.rotations, self.shifts = inputs.rotations[0], inputs.shifts[0]
        self.case, self.gradient = case, gradient

    def forward(self, volume: Tensor, rotations: Tensor, shifts: Tensor) -> Tensor:
        return torch_projectors.forward_project(
            volume,
            rotations,
            shifts,
            output_shape=self.case.image_shape,
            interpolation=self.case.interpolation,
            oversampling=self.case.oversampling,
            reconstruction_shape=self.case.volume_shape,
            gradient=self.gradient,
        )

    def backward(self, images: Tensor, rotations: Tensor, shifts: Tensor, weights: Tensor):
        return torch_projectors.backward_project(
            images,
            rotations,
            shifts,
            self.case.volume_shape,
            self.case.interpolation,
            self.case.oversampling,
            weights=weights,
            projection_shape=self.case.image_shape,
            gradient=self.gradient,
        )

    def forward_loss(self, *args: Tensor) -> Tensor:
        images = self.forward(*args)
        return (images.abs() ** 2 * self.weights).sum()

    def backward_loss(self, *args: Tensor) -> Tensor:
        volume, weight_volume = self.backward(*args)
        return (volume.abs() ** 2).sum() + (weight_volume**2).sum()

    @property
    def forward_args(self) -> tuple[Tensor, ...]:
        return self.volume, self.rotations, self.shifts

    @property
    def backward_args(self) -> tuple[Tensor, ...]:
        return self.images, self.rotations, self.shifts, self.weights


def both(problem: Problem):
    yield problem.forward, problem.forward_loss, problem.forward_args
    yield problem.backward, problem.backward_loss, problem.backward_args


def gradients(loss, args):
    leaves = [x.clone().requires_grad_() for x in args]
    return torch.autograd.grad(loss(*leaves), leaves)


def assert_same(actual, expected) -> None:
    # Both sides do the same sums, of well under 1e4 terms, at most in another order: 1e4 float64 epsilons.
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.parametrize("case", EACH, ids=str)
def test_every_op_passes_opcheck(case):
    inputs = case.inputs()
    volume, images, weights, rotations, shifts = [x.requires_grad_() for x in inputs]
    real_volume = inputs.volume.detach().abs().requires_grad_()
    for name, tensors, need in [
        ("forward_project", (volume, rotations, shifts), ()),
        ("forward_project", (real_volume, rotations, None), ()),
        ("backward_project", (images, weights, rotations, shifts), ()),
        ("backward_project", (images, None, rotations, None), ()),
        ("project_gradients", (volume, images, rotations, shifts), (True, True, True, True)),
    ]:
        op = getattr(getattr(torch.ops, NAMESPACE), name).default
        # Second derivatives in symbolic shapes need torch 2.13: pytorch issue 171537, of index_select in torch.func.
        dynamic = name != "project_gradients" or plugins.torch_version() >= (2, 13)
        traced = "test_aot_dispatch_dynamic" if dynamic else "test_aot_dispatch_static"
        utils = ("test_schema", "test_autograd_registration", "test_faketensor", traced)
        torch.library.opcheck(op, (*tensors, *case.geometry, *need), test_utils=utils)


@pytest.mark.parametrize("case", BATCHED, ids=str)
def test_shapes_for_tracing_are_those_of_results(case):
    volume, images, weights, rotations, shifts = case.inputs()
    for name, tensors, need in [
        ("forward_project", (volume, rotations, shifts), ()),
        ("backward_project", (images, weights, rotations, shifts), ()),
        ("project_gradients", (volume, images, rotations, shifts), (True, True, True, True)),
        ("project_gradients", (volume, images, rotations, shifts), (False, True, False, True)),
        ("project_gradients", (volume.abs(), weights, rotations, None), (True, False, True, True)),
    ]:
        op = getattr(getattr(torch.ops, NAMESPACE), name).default
        torch.library.opcheck(op, (*tensors, *case.geometry, *need), test_utils="test_faketensor")


@pytest.mark.parametrize(("gradient", "dynamic"), [("friedel", False), ("stored", True)])
@pytest.mark.parametrize("case", EACH, ids=str)
def test_compiles_whole_with_gradients(case, gradient, dynamic):
    for function, loss, args in both(Problem(case, gradient)):
        options = {"fullgraph": True, "backend": "aot_eager", "dynamic": dynamic}
        assert_same(torch.compile(function, **options)(*args), function(*args))
        assert_same(gradients(torch.compile(loss, **options), args), gradients(loss, args))


@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
@pytest.mark.parametrize("case", LINEAR, ids=str)
def test_compiles_with_inductor(case):
    for _, loss, args in both(Problem(case)):
        compiled = torch.compile(loss, fullgraph=True, backend="inductor")
        assert_same(gradients(compiled, args), gradients(loss, args))


def test_one_dynamic_graph_serves_any_number_of_poses_and_volumes():
    def project(volume, rotations):
        return torch_projectors.forward_project(volume, rotations)

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(project, fullgraph=True, backend=counter, dynamic=True)
    compilations = set()
    for batch, poses in ((3, 4), (6, 7), (4, 9)):  # sizes that agree by chance would be taken for one
        volume = torch.randn(batch, 8, 8, 5, dtype=torch.complex128)
        rotations = torch.linalg.qr(torch.randn(poses, 2, 2, dtype=torch.float64))[0]
        assert_same(compiled(volume, rotations), project(volume, rotations))
        compilations.add(counter.frame_count)
    assert len(compilations) == 1


class Projector(torch.nn.Module):
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        self.volume = torch.nn.Parameter(problem.volume)

    def forward(self, rotations: Tensor, shifts: Tensor) -> Tensor:
        return self.problem.forward(self.volume, rotations, shifts)


class Backprojector(torch.nn.Module):
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, *args: Tensor) -> tuple[Tensor, Tensor]:
        return self.problem.backward(*args)


@pytest.mark.parametrize("case", EACH, ids=str)
def test_exports_with_any_number_of_poses(case):
    problem = Problem(case)
    poses = torch.export.Dim("poses", min=2)
    more = [torch.cat([x, 0.5 * x]) for x in problem.forward_args[1:]]
    module = Projector(problem)
    program = torch.export.export(module, problem.forward_args[1:], dynamic_shapes=({0: poses}, {0: poses}))
    assert_same(program.module()(*more), module(*more))
    module = Backprojector(problem)
    program = torch.export.export(module, problem.backward_args)
    assert_same(program.module()(*problem.backward_args), module(*problem.backward_args))


@pytest.mark.parametrize("gradient", ["friedel", "stored"])
@pytest.mark.parametrize("case", EACH, ids=str)
def test_func_grad_and_vjp_agree_with_autograd(backend, case, gradient):
    for function, loss, args in both(Problem(case, gradient)):
        every = tuple(range(len(args)))
        assert_same(torch.func.grad(loss, every)(*args), gradients(loss, args))
        outputs, vjp = torch.func.vjp(function, *args)
        cotangents = torch.utils._pytree.tree_map(torch.randn_like, outputs)
        leaves = [x.clone().requires_grad_() for x in args]
        results = function(*leaves)
        if isinstance(results, Tensor):
            results, listed = [results], [cotangents]
        else:
            listed = list(cotangents)
        assert_same(vjp(cotangents), torch.autograd.grad(results, leaves, listed))


@pytest.mark.parametrize("case", [c for c in EACH if c.interpolation != "nearest"], ids=str)
def test_jvp_is_the_derivative(backend, case):
    step = 1e-6
    for function, _, args in both(Problem(case)):
        tangents = tuple(torch.randn_like(x) for x in args)
        _, tangent = torch.func.jvp(function, args, tangents)
        ahead, behind = [
            torch.utils._pytree.tree_leaves(function(*[x + s * t for x, t in zip(args, tangents)]))
            for s in (step, -step)
        ]
        for actual, a, b in zip(torch.utils._pytree.tree_leaves(tangent), ahead, behind):
            # Central differences: truncation step^2 times third derivatives, rounding epsilon / step.
            expected = (a - b) / (2 * step)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-7 * float(expected.abs().max()))


@pytest.mark.parametrize("case", EACH, ids=str)
def test_jacobians_agree_forward_and_backward(case):
    problem = Problem(case, "stored")

    def power(shifts: Tensor) -> Tensor:
        images = problem.forward(problem.volume, problem.rotations, shifts)
        return (images.abs() ** 2 * problem.weights + images.real).flatten(1).sum(1)

    assert_same(torch.func.jacrev(power)(problem.shifts), torch.func.jacfwd(power)(problem.shifts))


@pytest.mark.parametrize("case", EACH, ids=str)
def test_vmap_over_volumes_poses_and_both_equals_a_loop(backend, case):
    problem = Problem(case)
    volume, rotations, shifts = problem.forward_args
    volumes = torch.stack([volume, 2 * volume, volume.conj()])
    turned = torch.stack([rotations, -rotations, rotations.flip(0)])
    moved = torch.stack([shifts, -shifts, shifts.flip(0)])
    vmap = torch.func.vmap
    assert_same(
        vmap(problem.forward, (None, 0, 0))(volume, rotations, shifts), problem.forward(*problem.forward_args)
    )
    for args, dims in [
        ((volumes, rotations, shifts), (0, None, None)),
        ((volume, turned, shifts), (None, 0, None)),
        ((volume, rotations, moved.movedim(0, 1)), (None, None, 1)),
        ((volumes, turned, moved), (0, 0, 0)),
    ]:
        loop = [[x if d is None else x.select(d, i) for x, d in zip(args, dims)] for i in range(3)]
        mapped = vmap(problem.forward, dims)(*args)
        assert_same(mapped, torch.stack([problem.forward(*one) for one in loop]))
        every = torch.func.grad(problem.forward_loss, (0, 1, 2))
        expected = [gradients(problem.forward_loss, one) for one in loop]
        assert_same(vmap(every, dims)(*args), tuple(torch.stack(g) for g in zip(*expected)))


@pytest.mark.parametrize("case", EACH, ids=str)
def test_vmap_over_backprojections_equals_a_loop(backend, case):
    problem = Problem(case)
    images, rotations, shifts, weights = problem.backward_args
    stacks = torch.stack([images, 2 * images])
    turned = torch.stack([rotations, -rotations])
    for args, dims in [
        ((stacks, rotations, shifts, weights), (0, None, None, None)),
        ((images, turned, shifts, weights), (None, 0, None, None)),
        ((stacks, turned, torch.stack([shifts, -shifts]), torch.stack([weights, weights**2])), (0, 0, 0, 0)),
    ]:
        loop = [[x if d is None else x[i] for x, d in zip(args, dims)] for i in range(2)]
        expected = tuple(torch.stack(r) for r in zip(*[problem.backward(*one) for one in loop]))
        assert_same(torch.func.vmap(problem.backward, dims)(*args), expected)
        every = torch.func.grad(problem.backward_loss, (0, 1, 2, 3))
        expected = [gradients(problem.backward_loss, one) for one in loop]
        assert_same(torch.func.vmap(every, dims)(*args), tuple(torch.stack(g) for g in zip(*expected)))


@pytest.mark.parametrize("case", EACH, ids=str)
def test_hessian_products_agree_whichever_way_they_are_taken(backend, case):
    for _, loss, args in both(Problem(case, "stored")):
        tangents = tuple(torch.randn_like(x) for x in args)
        every = torch.func.grad(loss, tuple(range(len(args))))
        _, forward_over_reverse = torch.func.jvp(every, args, tangents)
        leaves = [x.clone().requires_grad_() for x in args]
        first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        along = sum((t.conj() * g).real.sum() for t, g in zip(tangents, first))
        assert_same(forward_over_reverse, torch.autograd.grad(along, leaves))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", EACH, ids=str)
def test_autocast_changes_nothing(backend, case, dtype):
    problem = Problem(case)
    for function, loss, args in both(problem):
        expected, expected_gradients = function(*args), gradients(loss, args)
        with torch.autocast("cpu", dtype=dtype):
            assert_same(function(*args), expected)
            assert_same(gradients(loss, args), expected_gradients)


@pytest.mark.parametrize("case", LINEAR, ids=str)
def test_lazy_conjugate_and_negative_views_are_honoured(backend, case):
    problem = Problem(case)
    volume = problem.volume.conj()
    shifts = torch._neg_view(problem.shifts)
    expected = problem.forward(volume.resolve_conj(), problem.rotations, -problem.shifts)
    for function in (problem.forward, torch.compile(problem.forward, backend="aot_eager", fullgraph=True)):
        assert_same(function(volume, problem.rotations, shifts), expected)
    images, weights = problem.images.conj(), problem.weights
    expected = problem.backward(images.resolve_conj(), problem.rotations, -problem.shifts, weights)
    for function in (problem.backward, torch.compile(problem.backward, backend="aot_eager", fullgraph=True)):
        assert_same(function(images, problem.rotations, shifts, weights), expected)


class Contract(TorchDispatchMode):
    """Fails where an op gets what compiled kernels do not expect."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == NAMESPACE:
            self.seen.add(func.name())
            tensors = [x for x in args if isinstance(x, Tensor)]
            assert all(x.is_contiguous() and not x.is_conj() and not x.is_neg() for x in tensors)
            assert len({x.real.dtype for x in tensors}) == 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", LINEAR, ids=str)
def test_ops_get_contiguous_tensors_of_one_precision_whatever_is_done(case):
    for function, loss, args in both(Problem(case)):
        args = [x.mT.contiguous().mT for x in args[:-1]] + [args[-1].float()]
        if args[-1].shape == args[0].shape:  # weights are of the data's precision
            args[-1] = args[-1].double()
        every = tuple(range(len(args)))
        stacked = [torch.stack([x, x], 1) for x in args]
        with Contract() as contract:
            function(args[0].conj(), *args[1:])
            gradients(loss, args)
            gradients(lambda data, loss=loss, rest=args[1:]: loss(data, *rest), args[:1])
            torch.func.jvp(function, tuple(args), tuple(args))
            torch.func.jvp(torch.func.grad(loss, every), tuple(args), tuple(args))
            torch.func.vmap(torch.func.grad(loss, every), 1)(*stacked)
            for i in every:
                dims = tuple(1 if j == i else None for j in every)
                mixed = [s if j == i else x for j, (s, x) in enumerate(zip(stacked, args))]
                torch.func.vmap(torch.func.grad(loss, every), dims)(*mixed)
        # An insertion of its own is for calls that nothing differentiates.
        of_function = {"insert_projections"} if function.__name__ == "backward" else set()
        assert contract.seen == {f"{NAMESPACE}::{name}" for name in {*FUNCTIONS, *of_function}}


def test_works_in_inference_mode():
    problem = Problem(LINEAR[0])
    with torch.inference_mode():
        images = problem.forward(*problem.forward_args)
        volume, _ = problem.backward(*problem.backward_args)
    assert_same(images, problem.forward(*problem.forward_args))
    assert_same(volume, problem.backward(*problem.backward_args)[0])


def test_results_can_be_changed_in_place():
    problem = Problem(LINEAR[0])
    leaf = problem.volume.clone().requires_grad_()
    images = problem.forward(leaf, problem.rotations, problem.shifts)
    images *= problem.weights
    images.abs().square().sum().backward()
    assert leaf.grad is not None
