"""Other libraries' training steps of the same shape, each in a process of its own.

``python -m handgrad.acceptance.rivals NAME N,D,H,C DEVICE SECONDS ROUNDS`` prints one JSON object: the
seconds of each round's step, and a note on what differs from ours; or ``{"missing": reason}``.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from handgrad.acceptance.timing import LEARNING_RATE, Figure, data_of, repeat
from handgrad.throughput import Shape, parse_shape

NAMES = ("cublas", "torch eager", "torch compiled", "torch CUDA graph", "tiny-cuda-nn")


def measure(name: str, shape: Shape, device: str, seconds: float, rounds: int, limit: float) -> Figure:
    """The rival's figure, or why there is none in its note.  ``limit``: seconds that the process may take."""
    figure = Figure(name, str(shape), "float32")
    sizes = f"{shape.samples},{shape.inputs},{shape.hidden},{shape.outputs}"
    command = [sys.executable, "-m", __name__, name, sizes, device, str(seconds), str(rounds)]
    begin = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        figure.note = f"ended after {time.monotonic() - begin:.0f} s, the limit for it"
        return figure
    lines = done.stdout.strip().splitlines()
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        figure.note = f"failed with exit code {done.returncode}: {last}"
        return figure
    figure.seconds, figure.note = found.get("seconds", []), found.get("missing") or found.get("note", "")
    return figure


# ---- inside the process ----------------------------------------------------------------------------------


def main(words: list[str]) -> None:
    """Measure what ``words`` say and print it."""
    name, sizes, device, seconds, rounds = words
    shape = parse_shape(sizes)
    run = _cublas if name == "cublas" else _tiny_cuda_nn if name == "tiny-cuda-nn" else _torch
    print(json.dumps(run(name, shape, device, float(seconds), int(rounds))))


def _cublas(name: str, shape: Shape, device: str, seconds: float, rounds: int) -> dict[str, Any]:
    if not device.startswith("cuda"):
        return {"missing": "needs a GPU"}
    from handgrad.arrays import to_device
    from handgrad.network import MLP
    from handgrad.ops.optimizer import SGD

    net = MLP([shape.inputs, shape.hidden, shape.outputs], loss=shape.loss, device=device, matmul="cublas")
    X, y = (to_device(array, device) for array in data_of(shape))
    optimizer = SGD(LEARNING_RATE, momentum=0.9)
    return {"seconds": repeat(lambda: net.train_step(X, y, optimizer), net.xp, seconds, rounds)}


class _TorchDevice:
    """What :func:`repeat` asks of an array module, over PyTorch's stream."""

    def __init__(self, torch: Any, device: str) -> None:
        self.__name__ = "cupy" if device.startswith("cuda") else "torch"
        self.cuda = self
        self._torch = torch

    def get_current_stream(self) -> Any:
        return self._torch.cuda.current_stream()


def _torch(name: str, shape: Shape, device: str, seconds: float, rounds: int) -> dict[str, Any]:
    if importlib.util.find_spec("torch") is None:
        return {"missing": "PyTorch is not installed"}
    import torch

    on_gpu = device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        return {"missing": "this PyTorch sees no GPU"}
    if not on_gpu and name != "torch eager":
        return {"missing": "needs a GPU"}
    where = device if on_gpu else "cpu"
    host_X, host_y = data_of(shape)
    X = torch.from_numpy(host_X).to(where)
    y = torch.from_numpy(host_y).to(where)
    net = torch.nn.Sequential(
        torch.nn.Linear(shape.inputs, shape.hidden),
        torch.nn.ReLU(),
        torch.nn.Linear(shape.hidden, shape.outputs),
    ).to(where)
    criterion: Any = torch.nn.MSELoss() if shape.loss == "mse" else torch.nn.CrossEntropyLoss()
    y = y if shape.loss == "mse" else y.long()
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=0.9)

    def forward() -> Any:
        return criterion(net(X), y)

    compiled = torch.compile(forward) if name == "torch compiled" else forward

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        compiled().backward()
        optimizer.step()

    ready = _captured(torch, step) if name == "torch CUDA graph" else step
    note = f"PyTorch {torch.__version__}" + ("" if on_gpu else ", on the CPU")
    return {"seconds": repeat(ready, _TorchDevice(torch, where), seconds, rounds), "note": note}


def _captured(torch: Any, step: Callable[[], None]) -> Callable[[], None]:
    """The whole step, optimizer included, in a CUDA graph, warmed up on another stream as PyTorch asks."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return lambda: graph.replay()


def _tiny_cuda_nn(name: str, shape: Shape, device: str, seconds: float, rounds: int) -> dict[str, Any]:
    if importlib.util.find_spec("tinycudann") is None:
        return {"missing": "tiny-cuda-nn is not installed"}
    import tinycudann
    import torch

    rows = -(-shape.samples // 256) * 256
    fused = shape.hidden in (16, 32, 64, 128)
    net = tinycudann.Network(
        shape.inputs,
        shape.outputs,
        {
            "otype": "FullyFusedMLP" if fused else "CutlassMLP",
            "activation": "ReLU",
            "output_activation": "None",
            "n_neurons": shape.hidden,
            "n_hidden_layers": 1,
        },
    )
    X = torch.randn((rows, shape.inputs), device=device)
    mse = shape.loss == "mse"
    y = torch.randn((rows, shape.outputs), device=device) if mse else torch.zeros(rows, device=device).long()
    criterion: Any = torch.nn.MSELoss() if mse else torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        criterion(net(X).float(), y).backward()
        optimizer.step()

    kind = "fully fused" if fused else "CUTLASS"
    note = f"{kind}; float16 sums, no bias, {rows} rows"
    return {"seconds": repeat(step, _TorchDevice(torch, device), seconds, rounds), "note": note}


if __name__ == "__main__":
    main(sys.argv[1:])
