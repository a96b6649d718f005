"""Hand-written backpropagation: NumPy on a CPU, hand-written CUDA kernels on a GPU or emulated.

``import handgrad as hg`` needs NumPy alone: never a GPU, never a compiler.
"""

from handgrad import arrays, kernel
from handgrad.arrays import DeviceError, get_array_module, to_device, to_numpy

__version__ = "0.1.0"

__all__ = ["DeviceError", "arrays", "get_array_module", "kernel", "to_device", "to_numpy"]
