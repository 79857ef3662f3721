"""Test the fused instance norm, ReLU and pooling without a GPU.

The Triton kernels run in Triton's interpreter and are compiled for an H100; networks use them on an emulated GPU.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cafe_core.networks import FeatureNetwork, fused, init_network
from cafe_core.spec.network import NetworkSpec
from tests.cafe_core.emulated_gpu import GPU, emulated_gpu
from tests.cafe_core.networks import interpreted_kernels
from tests.cafe_core.networks.h100 import H100

CPU = torch.device("cpu")
FLAGS = list(interpreted_kernels.FLAGS.values())


def inputs(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Return a map, γ and b, which need gradients."""
    random = torch.Generator().manual_seed(0)
    sizes = (shape, shape[1:2], shape[1:2])
    x, weight, bias = (torch.randn(size, generator=random, dtype=dtype).requires_grad_() for size in sizes)
    return x, weight, bias


def outputs(x: Tensor, weight: Tensor, bias: Tensor, keep: bool, pool: bool) -> tuple[Tensor, ...]:
    return tuple(t for t in fused.norm_relu_pool(x, weight, bias, keep=keep, pool=pool) if t is not None)


@pytest.mark.parametrize("dtype", list(fused._LIMITS))
@pytest.mark.parametrize("channels_last", [False, True])
def test_formulas_on_the_cpu_match_torch(dtype: torch.dtype, channels_last: bool) -> None:
    for shape, flags in itertools.product([(3, 5, 7), (1, 8, 8), (2, 2, 2)], FLAGS):
        assert fused.deviation(CPU, dtype, shape, channels_last, *flags) < fused._LIMITS[dtype] / 2
    x = torch.randn(2, 3, 5, 7, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    for out in outputs(x, torch.ones(3), torch.zeros(3), True, True):
        assert out.dtype == dtype
        assert fused._is_channels_last(out) == channels_last


def test_maps_of_other_layouts_are_accepted() -> None:
    x, weight, bias = inputs(2, 3, 4, 6)
    turned = x.transpose(2, 3)
    assert not turned.is_contiguous()
    for ours, expected in zip(
        outputs(turned, weight, bias, True, True), outputs(turned.contiguous(), weight, bias, True, True), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_empty_batches_have_empty_outputs_and_no_gradient() -> None:
    x, weight, bias = inputs(0, 3, 5, 4)
    y, pooled = outputs(x, weight, bias, True, True)
    assert (y.shape, pooled.shape) == ((0, 3, 5, 4), (0, 3, 2, 2))
    gradients = torch.autograd.grad(y.sum() + pooled.sum(), (x, weight, bias))
    torch.testing.assert_close(list(gradients), [torch.zeros_like(t) for t in (x, weight, bias)])


def test_gradients_of_images_with_nan_are_nan() -> None:
    assert interpreted_kernels.keeps_nan()


@pytest.mark.parametrize("flags", FLAGS)
def test_first_and_second_derivatives_are_correct(flags: tuple[bool, bool]) -> None:
    arguments = (*inputs(2, 2, 3, 4), *flags)
    assert torch.autograd.gradcheck(outputs, arguments)
    assert torch.autograd.gradgradcheck(outputs, arguments)


@pytest.mark.parametrize("flags", FLAGS)
def test_operations_are_registered_correctly(flags: tuple[bool, bool]) -> None:
    """They must not change or return their inputs, and must compute gradients by the registered function."""
    x, weight, bias = inputs(2, 3, 5, 4, dtype=torch.float32)
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    tests = ("test_schema", "test_autograd_registration")
    for images in (x, last):
        torch.library.opcheck(torch.ops.cafe_core.norm_relu_pool.default, (images, weight, bias, *flags), test_utils=tests)
    grads = [x if flags[0] else None, x[:, :, ::2, ::2][:, :, :2].contiguous() if flags[1] else None]
    grads = [None if g is None else g.detach() for g in grads]
    arguments = (*grads, x.detach(), weight.detach(), bias.detach())
    torch.library.opcheck(torch.ops.cafe_core.norm_relu_pool_backward.default, arguments, test_utils=tests)


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """Return what the Triton kernels compute and launch in Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [sys.executable, "-W", "ignore", "-m", "tests.cafe_core.networks.interpreted_kernels"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_triton_kernels_match_torch(interpreted: dict[str, Any]) -> None:
    deviations = interpreted["deviations"]
    assert list(deviations) == list(interpreted_kernels.CASES)
    for name, (dtype, *_) in interpreted_kernels.CASES.items():
        assert deviations[name] < fused._LIMITS[dtype] / 2, name
    assert interpreted["keeps_nan"]
    assert interpreted["strided parameters"] == 0
    assert interpreted["empty batch"] == [[0, 3, 6, 6], [0, 3, 3, 3], 0.0]


def test_each_fused_operation_is_one_launch_and_nothing_else(interpreted: dict[str, Any]) -> None:
    """The emulated GPU counts one launch for each."""
    assert len(interpreted["launches"]) == 2 * len(FLAGS)
    for name, launches in interpreted["launches"].items():
        assert launches == ["triton"], name


@pytest.mark.parametrize(
    ("dtype", "shape", "channels_last", "flags"),
    [
        (torch.float32, (128, 16, 16), False, (False, True)),
        (torch.bfloat16, (128, 16, 16), True, (True, False)),
        (torch.float64, (1, 128, 128), False, (True, True)),  # the largest tile
    ],
)
def test_kernels_compile_for_an_h100(
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    channels_last: bool,
    flags: tuple[bool, bool],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Call the GPU implementation as networks do, and compile the kernels to machine code instead of launching them."""
    jit = pytest.importorskip("triton.runtime.jit", reason="Triton is not installed")
    from triton.runtime import driver

    compiled = []
    run = jit.JITFunction.run
    monkeypatch.setattr(jit.JITFunction, "run", lambda *args, **kwargs: compiled.append(run(*args, **kwargs | {"warmup": True})))
    monkeypatch.setattr(driver, "_active", H100())
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    x, weight, bias = inputs(1, *shape, dtype=dtype)
    x = x.detach().contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    weight, bias = (p.detach().to(fused._accumulation(dtype)) for p in (weight, bias))
    keep, pool = flags
    y, pooled = fused._forward_on_gpu(x, weight, bias, keep, pool)
    fused._backward_on_gpu(y if keep else None, pooled if pool else None, x, weight, bias)
    assert [kernel.name for kernel in compiled] == ["forward_kernel", "backward_kernel"]
    for kernel in compiled:
        assert kernel.asm["cubin"]
        assert kernel.metadata.shared <= 48 << 10  # bytes that every GPU has


def logits_and_gradients(network: FeatureNetwork, x: Tensor) -> list[Tensor]:
    logits = network(x)
    return [logits, *torch.autograd.grad(logits.square().sum(), [x, *network.parameters()])]


@pytest.mark.parametrize(
    ("name", "side", "options", "operations"),
    [
        ("convnet", 16, {}, 3),
        ("convnet", 9, {"depth": 2}, 2),
        ("convnet", 8, {"depth": 3, "pooling": "none"}, 3),
        ("convnet", 8, {"depth": 2, "pooling": "max"}, 2),
        ("convnet", 8, {"depth": 2, "activation": "leaky_relu"}, 0),
        ("convnet", 8, {"depth": 2, "norm": "group"}, 0),
        ("vgg11", 8, {}, 5),
    ],
)
def test_networks_compute_the_same_on_a_gpu(
    name: str, side: int, options: dict[str, Any], operations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare all choices of maps, the logits and all gradients with those of the CPU."""
    calls: list[str] = []
    plain = fused.norm_relu_pool
    monkeypatch.setattr(fused, "norm_relu_pool", lambda *args, **kwargs: calls.append("") or plain(*args, **kwargs))
    widths = {"width": 4} if name == "convnet" else {}
    spec = NetworkSpec(name=name, **widths, **options)  # type: ignore[arg-type]
    network = init_network(spec, (2, side, side), 3, seed=0).double()
    x = torch.randn(2, 2, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    last = len(network.stages) - 1
    choices = [[], [0], [last], [0, last], [1, 2], list(range(last + 1))]
    expected = [network.features(x, layers) for layers in choices]
    expected.append(logits_and_gradients(network, x))
    assert not calls
    with emulated_gpu():
        network, x_there = network.to(GPU), x.detach().to(GPU).requires_grad_()
        found = [network.features(x_there, layers) for layers in choices]
        calls.clear()
        found.append(logits_and_gradients(network, x_there))
        found = [[t.detach().cpu() for t in tensors] for tensors in found]
    assert len(calls) == operations
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, [t.detach() for t in theirs], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("images", [0, 2])
def test_bfloat16_agrees_on_a_gpu_with_float64(images: int) -> None:
    """Rounding changes which of the pixels near 0 pass a gradient, so gradients agree less than logits."""
    network = init_network(NetworkSpec(width=4), (2, 16, 16), 3, seed=0).double()
    x = torch.randn(images, 2, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    expected = [t.detach() for t in logits_and_gradients(network, x)]
    network.float()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.bfloat16()
    with emulated_gpu():
        network, there = network.to(GPU), x.detach().bfloat16().to(GPU).requires_grad_()
        assert {m.dtype for m in network.features(there)} == {torch.bfloat16}
        found = [t.detach().cpu().double() for t in logits_and_gradients(network, there)]
    assert [t.shape for t in found] == [t.shape for t in expected]
    assert (found[0] - expected[0]).norm() <= 0.05 * expected[0].norm()
    ours, theirs = (torch.cat([t.flatten() for t in tensors[1:]]) for tensors in (found, expected))
    assert (ours - theirs).norm() <= 0.15 * theirs.norm()


def test_kernels_are_used_for_large_maps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    elements = fused.MIN_ELEMENTS
    with emulated_gpu():
        monkeypatch.setattr(fused, "MIN_ELEMENTS", elements)
        large = torch.empty(elements // 256, 4, 8, 8, device=GPU)
        assert fused.usable(large, keep=True, pool=True)
        assert not fused.usable(large[1:], keep=True, pool=True)


def test_network_uses_torch_if_the_kernels_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    network = init_network(NetworkSpec(width=4), (2, 8, 8), 3, seed=0).double()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64).requires_grad_()
    expected = [t.detach() for t in logits_and_gradients(network, x)]
    with emulated_gpu() as counts:
        network, x = network.to(GPU), x.detach().to(GPU).requires_grad_()
        counts.clear()
        logits_and_gradients(network, x)
        fused_launches = counts.launches
        monkeypatch.setattr(fused.verification, "passes", lambda *_: False)
        counts.clear()
        found = logits_and_gradients(network, x)
        assert counts.launches > fused_launches
        torch.testing.assert_close([t.detach().cpu() for t in found], expected, rtol=1e-9, atol=1e-9)


@pytest.fixture
def verification(caplog: pytest.LogCaptureFixture) -> fused._Verification:
    pytest.importorskip("triton", reason="Triton is not installed")
    caplog.set_level(logging.WARNING)
    return fused._Verification()


CASE = (CPU, torch.float32, (3, 4, 4), False, True, True)
"""On the CPU, the operations compute what the kernels compute on a GPU."""


def test_right_results_pass_the_verification(verification: fused._Verification, caplog: pytest.LogCaptureFixture) -> None:
    assert verification.passes(*CASE)
    assert not verification.passes(CPU, torch.float32, (3, 200, 200), False, True, True)  # too large for the kernels
    assert not verification.passes(CPU, torch.float32, (64, 1, 2), False, True, False)  # ill-conditioned
    assert verification.passes(CPU, torch.float32, (3, 1, 1), False, True, False)
    assert verification.passes(*CASE)
    assert not caplog.records


def test_verification_allocates_at_most_128_channels(verification: fused._Verification, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    deviation = fused.deviation
    monkeypatch.setattr(fused, "deviation", lambda *case: checked.append(case[2]) or deviation(*case))
    for channels in (100, 128, 2560):
        assert verification.passes(CPU, torch.float32, (channels, 4, 4), False, True, True)
    assert checked == [(100, 4, 4), (128, 4, 4)]


def test_wrong_results_end_the_use_of_the_kernels_with_one_warning(
    verification: fused._Verification, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verification.passes(*CASE)
    right = fused._normalised
    monkeypatch.setattr(fused, "_normalised", lambda x: (1.001 * right(x)[0], right(x)[1]))
    assert not verification.passes(CPU, torch.float32, (3, 6, 6), False, True, True)
    assert not verification.passes(CPU, torch.float32, (3, 8, 8), False, True, True)
    assert not verification.passes(*CASE)
    assert len(caplog.records) == 1
    assert "(3, 6, 6): their deviation from torch is" in caplog.text


def test_missing_triton_is_one_warning(
    verification: fused._Verification, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "cafe_core.networks.fused_kernels", raising=False)
    monkeypatch.delattr("cafe_core.networks.fused_kernels", raising=False)
    assert not verification.passes(*CASE)
    assert not verification.passes(CPU, torch.float32, (3, 6, 6), False, True, True)
    assert len(caplog.records) == 1
    assert "ModuleNotFoundError" in caplog.text


def test_full_gpu_is_not_a_failure_of_the_kernels(verification: fused._Verification, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> float:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patched:
        patched.setattr(fused, "deviation", full)
        with pytest.raises(torch.OutOfMemoryError):
            verification.passes(*CASE)
    assert verification.passes(*CASE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", list(fused._LIMITS))
def test_kernels_match_torch_on_a_gpu(dtype: torch.dtype) -> None:
    shapes = [(128, 32, 32), (128, 16, 16), (128, 8, 8), (128, 4, 4), (3, 5, 7), (1, 128, 128)]
    for shape, channels_last, flags in itertools.product(shapes, (False, True), FLAGS):
        found = fused.deviation(torch.device("cuda"), dtype, shape, channels_last, *flags)
        assert found < fused._LIMITS[dtype], (shape, channels_last, flags)
