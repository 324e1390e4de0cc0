"""ZFNet. Zeiler & Fergus 2013, arXiv:1311.2901, section 3 and Figure 3.

    layer     convolution               of which     pooling            normalised   output         parameters
    input                                                                             3 x 224 x 224
    layer1     96 of 7x7, stride 2      110 x 110    max 3x3, stride 2  yes          96 x  55 x  55      14,208
    layer2    256 of 5x5, stride 2       26 x  26    max 3x3, stride 2  yes         256 x  13 x  13     614,656
    layer3    384 of 3x3, pad 1                                                     384 x  13 x  13     885,120
    layer4    384 of 3x3, pad 1                                                     384 x  13 x  13   1,327,488
    layer5    256 of 3x3, pad 1          13 x  13    max 3x3, stride 2              256 x   6 x   6     884,992
    layer6    fully connected, dropout 0.5                                         4096              37,752,832
    layer7    fully connected, dropout 0.5                                         4096              16,781,312
    output    fully connected                                                      1000               4,097,000
62,357,608 parameters; with 512, 1024 and 512 maps in layers 3 to 5 (Tables 2 and 3) 107,627,624. ReLU follows
every layer but the output. The network is AlexNet with smaller filters and strides in the first two layers, and
without groups.

Departures from the paper:
  * Dropout doubles the kept outputs in training instead of halving all outputs at test.
  * "All weights are initialized to 10^-2" (section 3) would keep the filters of a layer equal in every step. They
    are normal with that standard deviation, as in AlexNet. Biases are zero, as the section says.
  * Rescaling a filter whose root mean square exceeds 0.1 is part of training, not of the network.

Left open by the paper, and what is done here:
  * Padding and rounding must give the sizes 110, 55, 26, 13 and 6 of Figure 3. Layer 1 has padding 1, of which an
    image of 224 x 224 uses only the first row and column; layer 2 has none. Pooling rounds sizes up, as in
    cuda-convnet, on which the authors built; no single padding turns both 110 into 55 and 13 into 6.
  * The constants of the normalisation "across feature maps" (Figure 3) are those of Krizhevsky et al. 2012, cited
    in section 2. It follows pooling, in the order of the caption; layers 3 to 5 have none, as drawn.
"""

from collections import OrderedDict

from torch import Tensor, nn

from lightning_modules.layers import as_convolution, check_image_size, lrn

# Maps, kernel size, stride, padding, pooling follows, normalisation follows.
CONVOLUTIONAL_LAYERS = {
    "layer1": (96, 7, 2, 1, True, True),
    "layer2": (256, 5, 2, 0, True, True),
    "layer3": (384, 3, 1, 1, False, False),
    "layer4": (384, 3, 1, 1, False, False),
    "layer5": (256, 3, 1, 1, True, False),
}
WIDE_MAPS = {"layer3": 512, "layer4": 1024, "layer5": 512}  # Tables 2 and 3


class ZFNet(nn.Sequential):
    """Layers of Figure 3, in order."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 224, 224) images -> (N, num_classes) scores; raise ValueError for images of another size."""
        check_image_size(x, "zfnet", side=224)
        return super().forward(x)

    def score_map(self, x: Tensor) -> Tensor:
        """Apply the network to whole images, with fully connected layers as convolutions.

        See arXiv:1409.1556, section 3.2. (N, C, H, W) -> (N, num_classes, H', W'), one position for about every
        32 pixels. Raises ValueError for images smaller than 224 x 224.
        """
        check_image_size(x, "zfnet, applied densely,", min_side=224)
        for layer in self.children():
            for part in layer.children() if isinstance(layer, nn.Sequential) else (layer,):
                if isinstance(part, nn.Linear):
                    x = as_convolution(part, x)
                elif not isinstance(part, nn.Flatten):
                    x = part(x)
        return x

    def dense(self, x: Tensor) -> Tensor:
        """Mean of the score map: (N, C, H, W) -> (N, num_classes) scores.

        On 224 x 224 the scores equal those of `forward`. Raises ValueError for smaller images.
        """
        return self.score_map(x).mean((2, 3))


def initialise_layer(module: nn.Module) -> None:
    """Draw weights with standard deviation 0.01 and set biases to zero (section 3); for `network.apply`."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.constant_(module.bias, 0.0)  # type: ignore[arg-type]  # all layers have a bias


def zfnet(*, wide: bool = False, units: int = 4096, num_classes: int = 1000, in_channels: int = 3) -> ZFNet:
    """Return the network of Figure 3: (N, 3, 224, 224) -> (N, 1000) scores.

    `wide` sets 512, 1024 and 512 maps in layers 3 to 5. `units` is the size of layers 6 and 7; Table 3 also has
    2048 and 8192. Raises ValueError for units < 1.
    """
    if units < 1:
        raise ValueError(f"units must be an integer >= 1, not {units}; the paper has 2048, 4096 and 8192")
    layers = OrderedDict[str, nn.Module]()
    channels = in_channels
    for name, (maps, kernel, stride, padding, pooled, normalised) in CONVOLUTIONAL_LAYERS.items():
        maps = WIDE_MAPS.get(name, maps) if wide else maps
        conv = nn.Conv2d(channels, maps, kernel, stride=stride, padding=padding)
        layer = OrderedDict[str, nn.Module](conv=conv, relu=nn.ReLU(inplace=True))
        if pooled:
            layer["pool"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        if normalised:
            layer["norm"] = lrn()
        layers[name] = nn.Sequential(layer)
        channels = maps
    width = channels * 6 * 6
    for name in ("layer6", "layer7"):
        layer = OrderedDict[str, nn.Module](flatten=nn.Flatten())  # layer6: (N, 256, 6, 6) -> (N, 9216)
        layer.update(fc=nn.Linear(width, units), relu=nn.ReLU(inplace=True), dropout=nn.Dropout(0.5))
        layers[name] = nn.Sequential(layer)
        width = units
    layers["output"] = nn.Linear(width, num_classes)
    network = ZFNet(layers)
    network.apply(initialise_layer)
    return network
