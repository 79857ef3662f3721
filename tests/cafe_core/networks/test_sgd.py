from __future__ import annotations

import pytest
import torch

from cafe_core.networks.sgd import FIFTHS_AT_THE_END, TENTH_AT_HALF, Decay, Sgd


def drawn(seed: int, dtype: torch.dtype) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random, dtype=dtype) for shape in [(64, 3, 3, 3), (64,), (10, 257)]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 5e-4), (0.9, 5e-4)])
def test_steps_equal_those_of_torch(momentum: float, weight_decay: float, dtype: torch.dtype) -> None:
    epochs = 5
    ours, theirs = drawn(0, dtype), drawn(0, dtype)
    sgd = Sgd(ours, lr=0.01, momentum=momentum, weight_decay=weight_decay)
    reference = torch.optim.SGD(theirs, lr=0.01, momentum=momentum, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.StepLR(reference, step_size=3, gamma=0.1)
    for epoch in range(epochs):
        sgd.lr = TENTH_AT_HALF.rate(0.01, epoch, epochs)
        for mine, other, gradient in zip(ours, theirs, drawn(1 + epoch, dtype), strict=True):
            mine.grad, other.grad = gradient, gradient.clone()
        sgd.step()
        reference.step()
        schedule.step()
        assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_gradients_are_discarded_and_missing_ones_refused() -> None:
    parameters = drawn(0, torch.float32)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    sgd = Sgd(parameters, lr=0.1)
    sgd.zero_grad()
    assert [parameter.grad for parameter in parameters] == [None] * 3
    with pytest.raises(ValueError, match="3 of 3 parameters have no gradient"):
        sgd.step()


@pytest.mark.parametrize(
    ("decay", "epochs", "rates"),
    [
        (TENTH_AT_HALF, 1, [1.0]),
        (TENTH_AT_HALF, 2, [1.0, 0.1]),
        (TENTH_AT_HALF, 3, [1.0, 1.0, 0.1]),
        (FIFTHS_AT_THE_END, 6, [1.0, 1.0, 1.0, 1.0, 0.2, 0.04]),
        (FIFTHS_AT_THE_END, 3, [1.0, 1.0, 0.2]),
    ],
)
def test_learning_rate_falls_at_fractions_of_the_epochs(decay: Decay, epochs: int, rates: list[float]) -> None:
    assert [decay.rate(1.0, epoch, epochs) for epoch in range(epochs)] == pytest.approx(rates)
