from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from cafe_core.networks import FeatureNetwork, init_network
from cafe_core.networks.layers import InstanceNorm
from cafe_core.spec.network import NetworkSpec, aligned_map_count

NAMES = ["convnet", "mlp", "lenet", "alexnet", "vgg11", "resnet18"]


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (8, 3), (16, 3), (28, 1), (28, 3), (32, 3), (48, 1), (64, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_every_network_accepts_every_image_size(name: str, side: int, channels: int) -> None:
    spec = NetworkSpec(name=name)  # type: ignore[arg-type]
    network = init_network(spec, (channels, side, side), 7, seed=1)
    x = images(2, channels, side, side)
    with torch.inference_mode():
        maps = network.features(x)
        logits = network(x)
        assert torch.equal(network.classify(maps[-1]), logits)
    assert len(maps) == aligned_map_count(spec)
    assert [tuple(m.shape[1:]) for m in maps] == list(network.map_shapes)
    assert maps[-1].flatten(1).shape == (2, network.feature_dim)
    assert logits.shape == (2, 7)
    for feature_map in maps:  # the maps depend on the images: no layer is constant
        assert feature_map.std(0).max() > 1e-3


@pytest.mark.parametrize(("height", "width"), [(8, 24), (33, 17), (4, 4), (9, 9)])
@pytest.mark.parametrize("name", NAMES)
def test_networks_accept_odd_and_oblong_images(name: str, height: int, width: int) -> None:
    network = init_network(NetworkSpec(name=name), (3, height, width), 2, seed=1)  # type: ignore[arg-type]
    with torch.inference_mode():
        maps = network.features(images(2, 3, height, width))
    assert [tuple(m.shape[1:]) for m in maps] == list(network.map_shapes)
    assert maps[-1].std(0).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("convnet", 32, [(128, 32, 32), (128, 16, 16), (128, 8, 8), (128, 4, 4)]),
        ("convnet", 28, [(128, 32, 32), (128, 16, 16), (128, 8, 8), (128, 4, 4)]),
        ("lenet", 28, [(6, 28, 28), (16, 10, 10), (84, 1, 1)]),
        ("lenet", 32, [(6, 28, 28), (16, 10, 10), (84, 1, 1)]),
        ("alexnet", 32, [(128, 32, 32), (192, 16, 16), (256, 8, 8), (192, 8, 8), (192, 8, 8), (192, 4, 4)]),
        ("vgg11", 32, [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2), (512, 1, 1)]),
        ("resnet18", 32, [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 1, 1)]),
        ("mlp", 32, [(128, 1, 1), (128, 1, 1)]),
    ],
)
def test_map_shapes_match_the_literature(name: str, side: int, expected: list[tuple[int, int, int]]) -> None:
    assert list(init_network(NetworkSpec(name=name), (3, side, side), 10, seed=0).map_shapes) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "channels", "side", "count"),
    [
        # Computed by hand, e.g. ConvNet-3: 128·(27+1) + 2·128·(1152+1) + 3·256 + 10·(2048+1); 320,010 is the number DC reports.
        ("convnet", 3, 32, 320_010),
        ("mlp", 1, 28, 784 * 128 + 128 + 128 * 128 + 128 + 1290),
        ("lenet", 1, 28, 61_706),  # LeNet-5
        ("resnet18", 3, 32, 11_173_962),  # the usual CIFAR ResNet18, whose batch norm has as many parameters
    ],
)
def test_parameter_counts_match_the_literature(name: str, channels: int, side: int, count: int) -> None:
    network = init_network(NetworkSpec(name=name), (channels, side, side), 10, seed=0)  # type: ignore[arg-type]
    assert sum(p.numel() for p in network.parameters()) == count


def test_convnet_matches_the_definition_in_the_paper() -> None:
    """Compare with the definition: convolution, instance norm, ReLU (map), average pooling, …, last pooling (map)."""
    network = init_network(NetworkSpec(width=8), (3, 16, 16), 5, seed=3).double()
    x = images(4, 3, 16, 16, dtype=torch.float64)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, InstanceNorm)]
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    expected, h = [], x
    for convolution, norm in zip(convolutions, norms, strict=True):
        h = F.conv2d(h, convolution.weight, convolution.bias, padding=1)
        h = F.instance_norm(h, weight=norm.weight, bias=norm.bias).relu()
        expected.append(h)
        h = F.avg_pool2d(h, 2)
    for ours, theirs in zip(network.features(x), [*expected, h], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(network(x), F.linear(h.flatten(1), network.classifier.weight, network.classifier.bias))


@pytest.mark.parametrize("norm", ["none", "instance", "batch", "layer", "group"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid"])
@pytest.mark.parametrize("pooling", ["none", "max", "avg"])
def test_convnet_trains_with_every_option(norm: str, activation: str, pooling: str) -> None:
    spec = NetworkSpec(width=6, depth=2, norm=norm, activation=activation, pooling=pooling)  # type: ignore[arg-type]
    network = init_network(spec, (3, 8, 8), 3, seed=0)
    maps = network.features(images(4, 3, 8, 8))
    assert len(maps) == 3
    assert network.map_shapes[1:] == (((6, 8, 8), (6, 8, 8)) if pooling == "none" else ((6, 4, 4), (6, 2, 2)))
    if pooling == "none":
        assert torch.equal(maps[-1], maps[-2])
    network.classify(maps[-1]).square().sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert any(p.grad.abs().max() > 0 for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("norm", ["none", "instance", "batch", "layer", "group"])
@pytest.mark.parametrize("name", ["alexnet", "vgg11", "resnet18"])
def test_larger_networks_train_with_every_norm(name: str, norm: str) -> None:
    network = init_network(NetworkSpec(name=name, norm=norm), (1, 8, 8), 4, seed=0)  # type: ignore[arg-type]
    network(images(2, 1, 8, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("depth", range(1, 9))
def test_convnet_of_any_depth_accepts_small_images(depth: int) -> None:
    network = init_network(NetworkSpec(width=4, depth=depth), (1, 8, 8), 3, seed=0)
    with torch.inference_mode():
        maps = network.features(images(5, 1, 8, 8))
    assert len(maps) == depth + 1
    assert maps[-1].std(0).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_layers_argument_selects_maps_and_stops_early(name: str) -> None:
    network = init_network(NetworkSpec(name=name), (1, 16, 16), 3, seed=0)  # type: ignore[arg-type]
    x = images(2, 1, 16, 16)
    every = network.features(x)
    last = len(every) - 1
    for layers in itertools.chain.from_iterable(itertools.combinations(range(last + 1), r) for r in (1, 2)):
        for ours, expected in zip(network.features(x, layers), [every[layer] for layer in layers], strict=True):
            assert torch.equal(ours, expected)
    assert network.features(x, []) == []
    ran: list[int] = []
    for index, stage in enumerate(network.stages):
        stage.register_forward_hook(lambda *_, index=index: ran.append(index))
    network.features(x, [0])
    assert ran == [0]


@pytest.mark.parametrize("layers", [[4], [-1], [1, 0], [1, 1]])
def test_invalid_layers_are_refused(layers: list[int]) -> None:
    network = init_network(NetworkSpec(width=2), (1, 8, 8), 3, seed=0)
    with pytest.raises(ValueError, match="must be increasing and below 4"):
        network.features(images(1, 1, 8, 8), layers)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grad", [False, True])
def test_yielded_maps_are_not_modified_later(name: str, grad: bool) -> None:
    network = init_network(NetworkSpec(name=name), (1, 16, 16), 3, seed=0).requires_grad_(False)  # type: ignore[arg-type]
    x = images(2, 1, 16, 16).requires_grad_(grad)
    before = x.detach().clone()
    kept = [(m, m.detach().clone()) for _, m in network.iter_features(x)]
    assert all(torch.equal(m, copy) for m, copy in kept)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", NAMES)
def test_iter_features_keeps_one_map_at_a_time(name: str) -> None:
    network = init_network(NetworkSpec(name=name), (1, 16, 16), 3, seed=0)  # type: ignore[arg-type]
    alive: list[weakref.ref[Tensor]] = []
    with torch.no_grad():
        for _, feature_map in network.iter_features(images(2, 1, 16, 16)):
            alive.append(weakref.ref(feature_map))
            del feature_map
            assert len({id(r()) for r in alive if r() is not None}) <= 1


def test_gradients_of_the_images_are_correct() -> None:
    network = init_network(NetworkSpec(width=4, depth=2), (2, 8, 8), 3, seed=0).double()
    x = images(2, 2, 8, 8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(network.features(x)), x)


def norm_and_input(pixels: int, dtype: torch.dtype = torch.float64, *, channels_last: bool) -> tuple[InstanceNorm, Tensor]:
    norm = InstanceNorm(6).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(images(6, seed=1, dtype=dtype))
        norm.bias.copy_(images(6, seed=2, dtype=dtype))
    x = 3 + 2 * images(3, 6, pixels, pixels, dtype=dtype)
    return norm, x.contiguous(memory_format=torch.channels_last) if channels_last else x


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("side", [2, 5, 32, 40])  # below and above the size from which torch's own kernel is used
def test_instance_norm_matches_torch(side: int, channels_last: bool) -> None:
    norm, x = norm_and_input(side, channels_last=channels_last)
    upstream = images(*x.shape, seed=3, dtype=torch.float64)
    ours_x, theirs_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight, bias = (p.detach().clone().requires_grad_() for p in (norm.weight, norm.bias))
    ours, theirs = norm(ours_x), F.instance_norm(theirs_x, weight=weight, bias=bias)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert ours.is_contiguous(memory_format=torch.channels_last) == channels_last
    ours.backward(upstream)
    theirs.backward(upstream)
    for mine, reference in ((ours_x, theirs_x), (norm.weight, weight), (norm.bias, bias)):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-9, atol=1e-11)


def test_instance_norm_passes_gradcheck() -> None:
    norm, x = norm_and_input(3, channels_last=True)
    # gradcheck's copies lose the memory format, so it is restored here.
    assert torch.autograd.gradcheck(lambda x: norm(x.contiguous(memory_format=torch.channels_last)), x.requires_grad_())


def test_instance_norm_passes_gradgradcheck() -> None:
    norm, x = norm_and_input(3, channels_last=True)
    weight, bias = norm.weight.detach().requires_grad_(), norm.bias.detach().requires_grad_()

    def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(norm, {"weight": weight, "bias": bias}, x.contiguous(memory_format=torch.channels_last))

    assert torch.autograd.gradgradcheck(normalised, (x.requires_grad_(), weight, bias))


@pytest.mark.parametrize("side", [5, 40])  # below and above the size from which torch's own kernel is used
def test_second_derivatives_of_instance_norm_match_torch(side: int) -> None:
    norm, x = norm_and_input(side, channels_last=True)
    upstream = images(*x.shape, seed=3, dtype=torch.float64)

    def second(normalise: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        loss = (normalise(x).square() * upstream).sum()
        first = torch.autograd.grad(loss, (x, weight, bias), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight, bias))

    ours = x.clone().requires_grad_()
    assert "ChannelsLast" in type(norm(ours).grad_fn).__name__
    theirs, weight, bias = (part.detach().clone().requires_grad_() for part in (x, norm.weight, norm.bias))
    expected = second(lambda x: F.instance_norm(x, weight=weight, bias=bias), theirs, weight, bias)
    for mine, reference in zip(second(norm, ours, norm.weight, norm.bias), expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-8, atol=1e-8)


def test_instance_norm_of_one_pixel_is_its_bias() -> None:
    norm, _ = norm_and_input(1, channels_last=False)
    torch.testing.assert_close(norm(images(1, 6, 1, 1, dtype=torch.float64)), norm.bias.view(1, 6, 1, 1))


def test_instance_norm_is_accurate_for_a_large_mean() -> None:
    norm, x = norm_and_input(8, torch.float32, channels_last=True)
    exact = norm.double()(x.double() + 1000)
    torch.testing.assert_close(norm.float()(x + 1000).double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast_is_close_to_float32(name: str) -> None:
    network = init_network(NetworkSpec(name=name), (3, 16, 16), 5, seed=0)  # type: ignore[arg-type]
    x = images(4, 3, 16, 16)
    exact = [m.detach() for m in network.features(x)]
    with torch.autocast("cpu", torch.bfloat16):
        rough = network.features(x)
    for ours, reference in zip(rough, exact, strict=True):
        # Eight bits per layer, in up to 20 layers that normalise over 2×2 maps (resnet18: 0.08, convnet: 0.01).
        assert (ours.detach().float() - reference).norm() < 0.15 * reference.norm()
    sum(m.float().sum() for m in rough).backward()  # type: ignore[union-attr]


def test_features_compile_without_a_graph_break() -> None:
    network = init_network(NetworkSpec(width=4), (1, 8, 8), 3, seed=0)
    compiled = torch.compile(network.features, backend="aot_eager", fullgraph=True)
    x = images(2, 1, 8, 8)
    for ours, expected in zip(compiled(x, [0, 3]), network.features(x, [0, 3]), strict=True):
        torch.testing.assert_close(ours, expected)


def test_init_is_reproducible_and_does_not_use_the_global_generator() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (init_network(NetworkSpec(width=4), (1, 8, 8), 3, seed) for seed in (2**64 - 1, 2**64 - 1, 3))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_network_accepts_images_of_any_memory_format() -> None:
    network: FeatureNetwork = init_network(NetworkSpec(width=4), (3, 8, 8), 3, seed=0)
    x = images(4, 3, 8, 8)
    torch.testing.assert_close(network(x), network(x.contiguous(memory_format=torch.channels_last)))
    torch.testing.assert_close(network(x), network(x.transpose(2, 3).contiguous().transpose(2, 3)))
