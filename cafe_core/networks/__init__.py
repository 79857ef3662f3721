"""Networks whose feature maps can be aligned, in the small-image versions that the field uses (DC, DSA, CAFE).

convnet (width, depth, normalisation, activation, pooling), mlp, lenet, alexnet, vgg11, resnet18; grey or colour, from 8×8 up.
"""

from cafe_core.networks.build import build_network, init_network
from cafe_core.networks.feature_network import FeatureNetwork

__all__ = ["FeatureNetwork", "build_network", "init_network"]
