"""Hand-written backpropagation: NumPy on a CPU, hand-written CUDA kernels on a GPU or emulated.

``import handgrad as hg`` needs NumPy alone: never a GPU, never a compiler.
"""

from handgrad import arrays, kernel, ops
from handgrad.arrays import DeviceError, get_array_module, to_device, to_numpy
from handgrad.checkpoint import load, save
from handgrad.gradients import diagnose
from handgrad.gradients.explain import explain
from handgrad.gradients.gradcheck import gradcheck
from handgrad.layouts import from_torch, to_torch
from handgrad.network import MLP
from handgrad.ops.optimizer import SGD, Adam, AdamW
from handgrad.parameters import Gradients
from handgrad.plans import Plan, plan, tune
from handgrad.training import History, evaluate, fit

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "SGD",
    "Adam",
    "AdamW",
    "DeviceError",
    "Gradients",
    "History",
    "Plan",
    "arrays",
    "diagnose",
    "evaluate",
    "explain",
    "fit",
    "from_torch",
    "get_array_module",
    "gradcheck",
    "kernel",
    "load",
    "ops",
    "plan",
    "save",
    "to_device",
    "to_numpy",
    "to_torch",
    "tune",
]
