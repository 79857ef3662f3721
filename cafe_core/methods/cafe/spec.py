"""Define the fields of CAFE, and the two presets that fill them in."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from cafe_core.spec.base import resolved_later
from cafe_core.spec.loops import dc_loops
from cafe_core.spec.method import BilevelMethodSpec, ResolutionContext, Sizes, query_copies_bytes
from cafe_core.spec.network import aligned_map_count

Preset = Literal["paper", "reference"]
DEFAULT_PRESET: Preset = "paper"


class CafeMethod(BilevelMethodSpec):
    """CAFE (Wang et al., CVPR 2022): aligned features and discrimination. The preset fills in the fields that are left out."""

    published_iterations: ClassVar[int] = 2000
    couples_classes: ClassVar[bool] = True

    name: Literal["cafe"] = "cafe"
    """CAFE."""
    preset: Preset = DEFAULT_PRESET
    """`paper`: the paper's settings; `reference`: those of the authors' released code."""
    beta: float = resolved_later(ge=0, le=1e30)
    """β of Eq. 4, on the *mean* cross-entropy. paper 1; reference 0.01·K·N (that code sums instead of averaging)."""
    layer_weights: Annotated[list[Annotated[float, Field(ge=0, le=1e30)]], Field(min_length=1, max_length=64)] = resolved_later()
    """w_l, one per aligned map, early → late. paper all 1; reference 0.1 …, 1, 2."""
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=64)] = resolved_later()
    """Which feature maps are aligned, 0-based from the input (Tables 3 and 4, which count from the output). Default: all."""
    discrimination: bool = True
    """Whether the discrimination loss (Eq. 2–3) is part of the loss."""
    bilevel: Literal["dynamic", "fixed"] = "dynamic"
    """`dynamic`: Algorithm 1's stop rules; `fixed`: always max_outer and max_inner."""
    lambda_1: float = resolved_later(ge=0, le=1)
    """λ1: the outer loop ends when the last γ query accuracies span less than λ1.

    With 1280 query images, sampling noise makes a window of 10 accuracies span about 0.04, so λ1 is close to the noise."""
    lambda_2: float = resolved_later(ge=0, le=1)
    """λ2: the inner loop ends when the last γ query accuracies span more than λ2. It is also close to the noise: see lambda_1."""
    gamma: int = resolved_later(ge=1, le=1000)
    """γ: length of both queues."""
    query_per_class: int = resolved_later(ge=1, le=65536)
    """Query images per class at each check. paper N; reference 128. Query checks take much of a run's time: without
    `query_carry`, only checks that can change when a loop ends are made."""
    query_carry: bool = resolved_later()
    """Carry a_t = mean_t + a_{t-1}/K between checks, as the reference's never-reset accumulator does. Every check is then made,
    because it affects all later accuracies."""

    def resolved(self, context: ResolutionContext) -> CafeMethod:
        """Return this spec with the preset's values filled in, for the feature maps of the network."""
        map_count = aligned_map_count(context.network)
        layers = self.layers if self.layers is not None else list(range(map_count))
        if max(layers) >= map_count or len(set(layers)) != len(layers) or layers != sorted(layers):
            raise ValueError(
                f"method.layers: {layers} must be increasing and below {map_count}, the feature maps of {context.network.name}"
            )
        batch_real = self.batch_real if self.batch_real is not None else 256
        values = _preset_values(self.preset, context, batch_real=batch_real, map_count=map_count)
        values["layer_weights"] = [values["layer_weights"][layer] for layer in layers]
        resolved = self.filled(
            batch_real=batch_real, image_momentum=0.5, batch_train=256, network_lr=0.01, layers=layers, **values
        )
        if len(resolved.layer_weights) != len(layers):
            raise ValueError(
                f"method.layer_weights: {len(resolved.layer_weights)} weights for {len(layers)} aligned maps (layers {layers})"
            )
        return resolved

    def statistics_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of C, G and their exchange, (K, D) each, of the real class means of all maps, and of copies of θ."""
        statistics = (3 * sizes.num_classes * sizes.feature_dim + sizes.classes * sizes.map_numbers) * sizes.itemsize
        if self.bilevel == "fixed" or self.gamma >= max(self.max_outer, self.max_inner):  # no window can end a loop
            return statistics
        return statistics + query_copies_bytes(self.gamma, self.query_carry, sizes.parameters, sizes.itemsize)

    def graph_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of the graph of one class's synthetic images."""
        return sizes.graph_factor * sizes.ipc * sizes.map_numbers * sizes.itemsize

    def numbers_per_outer_step(self, sizes: Sizes) -> int:
        """Return 2·K·D: the class centres and the gradient of L_d in them."""
        return 2 * sizes.num_classes * sizes.feature_dim if self.discrimination else 0


def paper_bounds(ipc: int) -> tuple[int, int]:
    """Return (max_outer, max_inner) of the `paper` preset: DC's numbers of steps, plus one.

    Algorithm 1 increments its counter after a step and ends the loop when the counter exceeds DC's number, so a loop takes one
    step more than DC's. The paper never increments the inner counter in print; it is read in the same way.
    """
    outer, inner = dc_loops(ipc)
    return outer + 1, inner + 1


def _preset_values(preset: Preset, context: ResolutionContext, *, batch_real: int, map_count: int) -> dict[str, Any]:
    shared: dict[str, Any] = {"gamma": 10, "image_lr": 0.1, "init": "noise", "augment": "none"}
    if preset == "paper":
        max_outer, max_inner = paper_bounds(context.ipc)
        return shared | {
            "beta": 1.0,
            "layer_weights": [1.0] * map_count,
            "lambda_1": 0.05,
            "lambda_2": 0.05,
            "max_outer": max_outer,
            "max_inner": max_inner,
            "query_per_class": batch_real,
            "query_carry": False,
            "image_milestones": [1200, 1400, 1800],
        }
    return shared | {
        "beta": 0.01 * context.num_classes * batch_real,
        "layer_weights": [0.1] * max(0, map_count - 2) + [1.0, 2.0][-map_count:],
        "lambda_1": 0.04,
        "lambda_2": 0.03,
        "max_outer": 100,
        "max_inner": 500,
        "query_per_class": 128,
        "query_carry": True,
        "image_milestones": [1200, 1600, 1800],
    }
