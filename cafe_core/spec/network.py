"""Define networks: their options, defaults and numbers of feature maps."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, model_validator

from cafe_core.spec.base import SpecModel, resolved_later
from cafe_core.spec.plain_names import named

NetworkName = Literal["convnet", "mlp", "lenet", "alexnet", "vgg11", "resnet18"]


class NetworkSpec(SpecModel):
    """A classifier. Leave out options that the network does not have; only the ConvNet has all of them. A string is a name."""

    name: NetworkName = "convnet"
    """convnet, mlp, lenet, alexnet, vgg11 or resnet18."""
    width: int = resolved_later(ge=1, le=4096)
    """Channels per convolution (convnet, default 128) or hidden units (mlp, default 128)."""
    depth: int = resolved_later(ge=1, le=8)
    """Blocks of the convnet, default 3."""
    norm: Literal["none", "instance", "batch", "layer", "group"] = resolved_later()
    """Normalisation (all but mlp and lenet), default instance (alexnet: none). `batch` only in evaluations and validations."""
    activation: Literal["relu", "leaky_relu", "sigmoid"] = resolved_later()
    """Activation (convnet), default relu."""
    pooling: Literal["none", "max", "avg"] = resolved_later()
    """Pooling (convnet), default avg."""

    @model_validator(mode="after")
    def _options_exist(self) -> NetworkSpec:
        defaults = _NETWORK_DEFAULTS[self.name]
        for option in ("width", "depth", "norm", "activation", "pooling"):
            if getattr(self, option) is not None and option not in defaults:
                raise ValueError(f"{self.name} has no option {option!r}; it has: {', '.join(defaults) or 'none'}")
        return self

    def resolved(self) -> NetworkSpec:
        """Return this network with all its options filled in."""
        return self.model_copy(update={k: v for k, v in _NETWORK_DEFAULTS[self.name].items() if getattr(self, k) is None})


AnyNetwork: TypeAlias = Annotated[NetworkSpec, BeforeValidator(named, json_schema_input_type=NetworkSpec | NetworkName)]
"""A network's spec, or its name alone."""

_NETWORK_DEFAULTS: dict[str, dict[str, Any]] = {
    "convnet": {"width": 128, "depth": 3, "norm": "instance", "activation": "relu", "pooling": "avg"},
    "mlp": {"width": 128},
    "lenet": {},
    "alexnet": {"norm": "none"},
    "vgg11": {"norm": "instance"},
    "resnet18": {"norm": "instance"},
}


_ALIGNED_MAPS = {"mlp": 2, "lenet": 3, "alexnet": 6, "vgg11": 6, "resnet18": 5}


def aligned_map_count(network: NetworkSpec) -> int:
    """Return L, the number of feature maps of `network` that can be aligned; the last one gives the class centres.

    ConvNet-d: each block's activation before its pooling, plus the last pooling's output. Others: the
    output of each stage plus the last feature before the classifier.
    """
    if network.name == "convnet":
        return network.resolved().depth + 1
    return _ALIGNED_MAPS[network.name]
