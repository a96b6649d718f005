"""The acceptance run of a GPU machine: everything checked, measured and written down by one command.

``handgrad bench --device cuda --full`` runs, unattended and within a time limit,

1. ``ceilings``: what the card itself does, copying and multiplying;
2. ``checks``: every kernel against float64 NumPy, in processes of their own;
3. ``paths``: every path of every shape, checked against NumPy first, then timed;
4. ``rivals``: cuBLAS through CuPy, PyTorch (eager, compiled, CUDA graph) and tiny-cuda-nn, each in a process
   of its own, where it is installed;

and writes each figure beside its bound, which is made from the measured ceilings.  What did not run is listed
with the reason.  On ``--device emulator`` the same goes through on small shapes: it shows that the run works,
and its times say nothing about a GPU.
"""

from handgrad.acceptance.stages import Limits, run

__all__ = ["Limits", "run"]
