"""List of all networks of other libraries whose published weights fit our networks."""

from lightning_modules.published import (
    densenet,
    inception_v3,
    inception_v4,
    resnet,
    resnet_cifar,
    resnext,
    squeezenet,
    vgg,
    wide_resnet,
)
from lightning_modules.published.weights import PublishedNetwork

PUBLISHED_NETWORKS: tuple[PublishedNetwork, ...] = (
    *densenet.PUBLISHED,
    *inception_v3.PUBLISHED,
    *inception_v4.PUBLISHED,
    *resnet.PUBLISHED,
    *resnet_cifar.PUBLISHED,
    *resnext.PUBLISHED,
    *squeezenet.PUBLISHED,
    *vgg.PUBLISHED,
    *wide_resnet.PUBLISHED,
)
