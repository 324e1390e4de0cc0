"""LeNet-300-100 and Caffe's LeNet-5, the networks for MNIST in two papers on compression.

Han, Pool, Tran, Dally 2015, arXiv:1506.02626, Tables 1, 3 and 4; Han, Mao, Dally 2016 (Deep Compression),
arXiv:1510.00149, Tables 1 to 3.

    LeNet-300-100
    layer    output (C x H x W)   type                   weights   parameters   multiply-adds
    input      1 x 28 x 28
    fc1      300                  full connection, ReLU  235,200      235,500         235,200
    fc2      100                  full connection, ReLU   30,000       30,100          30,000
    fc3       10                  full connection          1,000        1,010           1,000
    266,610 parameters (266,200 weights), 266,200 multiply-adds.

    Caffe's LeNet-5
    layer    output (C x H x W)   type                   weights   parameters   multiply-adds
    input      1 x 28 x 28
    conv1     20 x 24 x 24        5x5                        500          520         288,000
    pool1     20 x 12 x 12        max 2x2, stride 2
    conv2     50 x  8 x  8        5x5                     25,000       25,050       1,600,000
    pool2     50 x  4 x  4        max 2x2, stride 2
    fc1      500                  full connection, ReLU  400,000      400,500         400,000
    fc2       10                  full connection          5,000        5,010           5,000
    431,080 parameters (430,500 weights), 2,293,000 multiply-adds.

The papers print thousands, and two operations for a multiply-add. Caffe's LeNet-5 is not the network of LeCun et
al. 1998, which `lenet5` builds: its maps of conv2 read all maps of pool1, it has 500 hidden units instead of 120
and 84, and its only non-linearities are the poolings and one ReLU.

Departures from the papers: none known.

Left open by the papers, and what is done here:
  * The layers of LeNet-5: those that Caffe released (https://github.com/BVLC/caffe, folder examples/mnist), which
    have the weights and the operations that the papers print.
  * Initialisation: that of Caffe's LeNet-5, uniform with variance 1 / fan-in, biases zero; the same for
    LeNet-300-100.
  * The activation of LeNet-300-100: ReLU, as after fc1 of Caffe's LeNet-5.
"""

from collections import OrderedDict

from torch import Tensor, nn

from lightning_modules.layers import check_image_size


class LeNet(nn.Sequential):
    """The layers of one table, in order."""

    def __init__(self, name: str, rows: OrderedDict[str, nn.Module]) -> None:
        super().__init__(rows)
        self.name = name
        self.apply(caffe_xavier)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 28, 28) images -> (N, num_classes) scores. ValueError for images of another size."""
        check_image_size(x, self.name, side=28)
        return super().forward(x)


def caffe_xavier(module: nn.Module) -> None:
    """Initialise weights uniformly with variance 1 / fan-in, Caffe's filler "xavier", and biases to zero."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        bound = (3 / module.weight[0].numel()) ** 0.5
        nn.init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def lenet_300_100(*, num_classes: int = 10, in_channels: int = 1) -> LeNet:
    """Build LeNet-300-100: (N, 1, 28, 28) -> scores (N, 10)."""
    rows = OrderedDict[str, nn.Module](
        flatten=nn.Flatten(),
        fc1=nn.Linear(in_channels * 28 * 28, 300),
        relu1=nn.ReLU(inplace=True),
        fc2=nn.Linear(300, 100),
        relu2=nn.ReLU(inplace=True),
        fc3=nn.Linear(100, num_classes),
    )
    return LeNet("lenet_300_100", rows)


def lenet5_caffe(*, num_classes: int = 10, in_channels: int = 1) -> LeNet:
    """Build Caffe's LeNet-5: (N, 1, 28, 28) -> scores (N, 10)."""
    rows = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(in_channels, 20, 5),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(20, 50, 5),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),  # (N, 50, 4, 4) -> (N, 800)
        fc1=nn.Linear(50 * 4 * 4, 500),
        relu1=nn.ReLU(inplace=True),
        fc2=nn.Linear(500, num_classes),
    )
    return LeNet("lenet5_caffe", rows)
