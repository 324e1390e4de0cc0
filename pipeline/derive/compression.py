"""Deep Compression of a network (Han, Mao, Dally 2016, arXiv:1510.00149).

    pruning          keeps the weights of the largest magnitude in each layer, sets the others to 0, and trains the
                     remaining ones; repeated if several prunings are declared (section 2, and Han et al. 2015,
                     arXiv:1506.02626)
    weight sharing   quantises the kept weights of a layer to at most 2^bits values, by k-means that starts from
                     values evenly spaced between the smallest and the largest weight, and trains these values
                     (section 3)
    Huffman coding   encodes the indices of the shared values and the distances between kept weights (section 4)

Training is left out unless it is declared. Layers are parameters of two or more dimensions. All other tensors
(biases, batch normalisation) are stored unchanged and counted. See `retrain.py` for training, `quantise.py` for
pruning and sharing, `compressed_file.py` for the file.

Left open by the papers, and what is done here:
  * The threshold of a layer: the papers print the fraction of weights that remains, which is declared.
  * Several prunings: the density of a layer falls by the same factor at each, to the declared one.
  * Filler zeros: 0 takes the place of one of the 2^bits shared values, in layers that need fillers.
  * Training of shared values: weight decay is that of a weight, and is applied once to each shared value.
"""

import math
from collections.abc import Mapping

from torch import Tensor, nn

from lightning_modules.classifier import NotConvergedError
from pipeline.declare.derived import CompressionSpec
from pipeline.derive.compressed_file import compress, decompress, quantised_bytes, size_breakdown
from pipeline.derive.context import DerivedContext, DerivedResult
from pipeline.derive.quantise import (
    LayerSettings,
    SharedLayer,
    compressible_layers,
    layer_settings,
    prune_layers,
    share_layer,
)
from pipeline.derive.retrain import PrunedWeights, Retrainer, SharedWeights
from pipeline.train.inputs import Metrics


def run_compression(context: DerivedContext) -> DerivedResult:
    """Return the errors of the network after each stage and the sizes of the compressed file, with its content.

    The errors are those of the network as trained (original), after pruning (pruned) and sharing (shared), each
    with its training, and decoded from the file (test).
    """
    spec, network = context.derived.spec, context.networks[0]
    assert isinstance(spec, CompressionSpec)
    settings = layer_settings(spec, compressible_layers(network))
    retrainer = Retrainer(context)
    metrics = context.errors([network], "original")
    try:
        prune_network(network, spec, settings, retrainer)
        metrics |= context.errors([network], "pruned")
        layers = share_network(network, spec, settings, retrainer)
        metrics |= context.errors([network], "shared")
    except NotConvergedError as error:
        return DerivedResult(metrics, f"{retrainer.stage}: {error}", status="not converged")
    content = compress(network.state_dict(), layers, settings)
    network.load_state_dict(decompress(content))
    metrics |= context.errors([network])
    metrics |= {f"compressed/{name}": value for name, value in sizes(content, layers, settings).items()}
    return DerivedResult(metrics, f"compressed {metrics['compressed/ratio']:.1f} times", content)


def prune_network(
    network: nn.Module, spec: CompressionSpec, settings: Mapping[str, LayerSettings], retrainer: Retrainer
) -> None:
    """Prune a network in place as often as declared, each time with its training."""
    for number in range(1, spec.prunings + 1):
        densities = {name: layer.density ** (number / spec.prunings) for name, layer in settings.items()}
        network.load_state_dict(prune_layers(plain_tensors(network), densities))
        if spec.retrain:
            retrainer.train(f"pruning-{number}", spec.retrain, PrunedWeights(network, list(settings)))


def share_network(
    network: nn.Module, spec: CompressionSpec, settings: Mapping[str, LayerSettings], retrainer: Retrainer
) -> dict[str, SharedLayer]:
    """Quantise a pruned network in place, with the training of shared values, and return its layers."""
    weights = network.state_dict()
    shared = SharedWeights(network, {name: share_layer(weights[name], layer) for name, layer in settings.items()})
    if spec.tune:
        retrainer.train("sharing", spec.tune, shared)
    return shared.layers()


def plain_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network, on the CPU and contiguous."""
    return {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}


def sizes(content: bytes, layers: Mapping[str, SharedLayer], settings: Mapping[str, LayerSettings]) -> Metrics:
    """Return the bytes of a file by part, and the compression after pruning, sharing and coding.

    density: fraction of the weights that is kept. pruned_ratio: its inverse. quantised_ratio and ratio: bytes of
    the network with 4 bytes per weight, divided by those of the file without and with Huffman coding.
    """
    found = size_breakdown(content)
    kept = sum(len(layer.positions) for layer in layers.values())
    weights = sum(math.prod(layer.shape) for layer in layers.values())
    return found | {
        "density": kept / weights,
        "pruned_ratio": weights / kept,
        "quantised_ratio": found["original_bytes"] / quantised_bytes(content, settings),
        "ratio": found["original_bytes"] / found["bytes"],
    }
