"""Crops as in four papers, with a side of 16 pixels; `RANDOM` is GoogLeNet's with random interpolation."""

from pipeline.data.crops import CropSpec

RESNET = CropSpec(16, (20, 30), None, False, None, None, "bilinear")
ALEXNET = CropSpec(16, (24, 24), 24, False, None, None, "bilinear")
ZFNET = CropSpec(16, (24, 24), 24, True, None, None, "bilinear")
GOOGLENET = CropSpec(16, None, None, False, (0.08, 1.0), (3 / 4, 4 / 3), "bilinear")
RANDOM = CropSpec(16, None, None, False, (0.08, 1.0), (3 / 4, 4 / 3), "random")
SPECS = {"resnet": RESNET, "alexnet": ALEXNET, "zfnet": ZFNET, "googlenet": GOOGLENET, "random": RANDOM}
