"""How large a model is, what it needs to be served, and on what it fits.

Pure arithmetic on a model's `config.json` and the weights' bytes. What is exact (parameters, weights, KV cache per token) and
what is an estimate (activations, CUDA graphs, the driver's own memory) is told apart in every line that is shown.
"""

from lockgate.domain.sizing.accelerators import ACCELERATORS, Accelerator, accelerator
from lockgate.domain.sizing.choice import Placement, Sizing, choose, examine
from lockgate.domain.sizing.memory import Demands, Footprint, Weights, footprint, weights_of
from lockgate.domain.sizing.shape import ModelShape, read_shape

__all__ = [
    "ACCELERATORS",
    "Accelerator",
    "Demands",
    "Footprint",
    "ModelShape",
    "Placement",
    "Sizing",
    "Weights",
    "accelerator",
    "choose",
    "examine",
    "footprint",
    "read_shape",
    "weights_of",
]
