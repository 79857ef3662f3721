"""Build networks with alignable feature maps, in the small-image versions that DC, DSA and CAFE use.

convnet (width, depth, normalisation, activation, pooling), mlp, lenet, alexnet, vgg11, resnet18; grey or colour, 8×8 or larger.
"""

from cafe_core.networks.build import build_network, init_network
from cafe_core.networks.feature_network import FeatureNetwork

__all__ = ["FeatureNetwork", "build_network", "init_network"]
