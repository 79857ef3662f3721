"""Compare a whole run of DC with Algorithm 1 of its paper, written with torch's own layers and optimizers.

The two implementations share only the random draws.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cafe_core.algorithm.checkpoint import Checkpoints
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.condense import condense
from cafe_core.algorithm.sampling import choose, counter_seed, generator
from cafe_core.data.class_store import ClassStore
from cafe_core.networks import init_network
from cafe_core.spec.condense import CondenseSpec
from tests.cafe_core.made_data import make_spec, make_store

COUNTS = [40, 30, 5, 60]
K, WIDTH, BATCH, ITERATIONS = len(COUNTS), 16, 32, 3


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def convnet(spec: CondenseSpec, store: ClassStore, iteration: int) -> nn.Sequential:
    """Return a ConvNet of depth 2 for 8×8 images (NCHW) with the initial weights of our network of `iteration`."""
    layers: list[nn.Module] = []
    for channels in (1, WIDTH):
        norm = nn.InstanceNorm2d(WIDTH, affine=True)
        layers += [nn.Conv2d(channels, WIDTH, 3, padding=1), norm, nn.ReLU(), nn.AvgPool2d(2)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * WIDTH, K)).double()
    ours = init_network(spec.network, store.info.shape, K, counter_seed(spec.seed, "network", iteration))
    for theirs, parameter in zip(network.parameters(), ours.parameters(), strict=True):
        theirs.data.copy_(parameter.data)
    return network


def distance(synthetic: list[Tensor], real: list[Tensor]) -> Tensor:
    """Return the distance as the authors' `match_loss` is described: the sum of the cosine distances of the output nodes.

    Biases and affine parameters are left out.
    """
    terms = []
    for s, t in zip(synthetic, real, strict=True):
        if s.dim() > 1:
            s, t = s.reshape(len(s), -1), t.reshape(len(t), -1)
            terms.append((1 - (s * t).sum(-1) / (s.norm(dim=-1) * t.norm(dim=-1) + 1e-6)).sum())
    return torch.stack(terms).sum()


@pytest.mark.parametrize("ipc", [1, 3])
def test_run_of_dc_matches_its_paper(tmp_path: Path, ipc: int) -> None:
    store = make_store(tmp_path / "store", COUNTS)
    loops = {"max_outer": 3, "max_inner": 2, "batch_train": 5}
    spec = make_spec(
        store,
        ipc=ipc,
        iterations=ITERATIONS,
        network={"width": WIDTH, "depth": 2},
        method={"name": "dc", "batch_real": BATCH, "image_lr": 0.1, "network_lr": 0.01, **loops},
    )
    reported: list[float] = []

    def report(type: str, **data: float) -> None:
        if type == "iteration":
            reported.append(data["loss"])

    ours = condense(spec, store, Comm.single(), torch.device("cpu"), checkpoints=Checkpoints(tmp_path), report=report).images

    mean, std = store.info.mean[0], store.info.std[0]
    real = [(torch.from_numpy(store.images(k).copy()).double() / 255 - mean) / std for k in range(K)]
    start = torch.cat([torch.randn(ipc, 1, 8, 8, generator=generator(spec.seed, "init", k)) for k in range(K)]).double()
    S = start.clone().requires_grad_()
    images = torch.optim.SGD([S], lr=0.1, momentum=0.5)
    losses: list[float] = []
    for iteration in range(ITERATIONS):
        network = convnet(spec, store, iteration)
        theta = list(network.parameters())
        weights = torch.optim.SGD(theta, lr=0.01)
        for outer in range(loops["max_outer"]):
            loss = torch.zeros((), dtype=torch.float64)
            for k in range(K):
                T = real[k][choose(generator(spec.seed, "real", iteration, outer, k), COUNTS[k], BATCH)]
                S_k = S[k * ipc : (k + 1) * ipc]
                g_T = torch.autograd.grad(F.cross_entropy(network(T), torch.full((len(T),), k)), theta)
                g_S = torch.autograd.grad(F.cross_entropy(network(S_k), torch.full((ipc,), k)), theta, create_graph=True)
                loss = loss + distance(list(g_S), list(g_T))
            images.zero_grad()
            loss.backward()
            images.step()
            for inner in range(loops["max_inner"] if outer < loops["max_outer"] - 1 else 0):
                order = torch.randperm(K * ipc, generator=generator(spec.seed, "epoch", iteration, outer, inner))
                for batch in order.split(loops["batch_train"]):
                    weights.zero_grad()
                    F.cross_entropy(network(S.detach()[batch]), batch // ipc).backward()
                    weights.step()
        losses.append(float(loss.detach()))

    assert reported == pytest.approx(losses, rel=1e-9)
    assert (ours - start).abs().amax(dim=(1, 2, 3)).min() > 0.1  # every image has changed
    torch.testing.assert_close(ours, S.detach(), rtol=0, atol=1e-9)
