"""Reading what the person gave: names, kinds of arrays, layouts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handgrad.arrays import to_numpy
from handgrad.gradients.staged import Problem

Floats = NDArray[Any]

_GRADIENT = r"(?P<d>d_?|grad_?|g_|dl_?d_?|dloss_?d?_?|∂)?"
_SUFFIX = r"(?P<suffix>_?grad(ient)?|\.grad|[._]g)?"
_NUMBERED = re.compile(rf"{_GRADIENT}(?P<kind>[wbza])_?(?P<layer>\d+){_SUFFIX}", re.IGNORECASE)
_OUTPUT = re.compile(
    rf"{_GRADIENT}(?P<kind>y_?hat|y_?pred|predictions?|out(put)?|p|probs|probabilities){_SUFFIX}",
    re.IGNORECASE,
)
_TORCH = re.compile(r"(?P<module>.*?)[._]?(?P<kind>weight|bias)(\.grad|_grad)?", re.IGNORECASE)
_INPUT = re.compile(rf"{_GRADIENT}(?P<kind>x|inputs?){_SUFFIX}", re.IGNORECASE)


@dataclass
class Attempt:
    """The person's arrays by stage (dW1, db1, dZ1, …) or forward name (Z1, …), float64.

    ``unit`` is the spacing of their dtype at 1; ``torch_names`` says that the weights are called as in a
    state dict, and so are (out, in) unless their shapes say otherwise; ``torch`` that some array is a tensor.
    """

    arrays: dict[str, Floats] = field(default_factory=dict)
    unit: float = float(np.finfo(np.float64).eps)
    torch: bool = False
    torch_names: bool = False
    notes: list[str] = field(default_factory=list)


def read(values: Any, intermediates: Mapping[str, Any] | None, problem: Problem) -> Attempt:
    """The arrays of a dict, of a sequence in the parameters' order, or of ``(loss, gradients)``.

    Raises ``ValueError`` for names that mean nothing, come twice, or are of layers that the network does not
    have, and ``TypeError`` for what holds no numbers.
    """
    named = as_mapping(values, problem)
    attempt = Attempt()
    extra = dict(getattr(values, "intermediates", None) or {})
    extra.pop("X", None)
    units = [attempt.unit]
    sources = [("attempt", named), ("attempt", extra), ("intermediates", dict(intermediates or {}))]
    for origin, mapping in sources:
        stages = stages_of(
            list(mapping), {k: _shape_of(v) for k, v in mapping.items()}, problem, origin, attempt
        )
        for name, stage in stages.items():
            if stage in attempt.arrays:
                raise ValueError(f"{origin}: {name!r} names {stage}, which is given twice")
            if mapping[name] is None:
                if stage[1] not in "Wb":
                    raise TypeError(f"{origin}[{name!r}]: expected an array, got None")
                attempt.arrays[stage] = np.zeros(problem.parameters[stage[1:]].shape)
                attempt.notes.append(f"{name} is None: it was never set, and counts as 0.")
                continue
            array, unit = as_float64(mapping[name], f"{origin}[{name!r}]")
            attempt.arrays[stage] = array
            attempt.torch |= _is_torch(mapping[name])
            units.append(unit)
    if not attempt.arrays:
        wanted = ", ".join(problem.parameters)
        raise ValueError(f"attempt: expected gradients by name ({wanted}), got none")
    attempt.unit = max(units)
    return attempt


def as_mapping(values: Any, problem: Problem) -> dict[str, Any]:
    """Gradients by name, from any of the forms."""
    if isinstance(values, Mapping):
        return {str(name): value for name, value in values.items()}
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        dicts = [item for item in values if isinstance(item, Mapping)]
        if len(dicts) == 1:
            return {str(name): value for name, value in dicts[0].items()}
        if len(values) == len(problem.parameters):
            return dict(zip((f"d{name}" for name in problem.parameters), values, strict=True))
    wanted = ", ".join(problem.parameters)
    raise TypeError(
        f"attempt: expected a dict of gradients by name ({wanted}), {len(problem.parameters)} arrays in that "
        f"order, or a function f(X, y, params) that returns them, got {type(values).__name__}"
    )


def as_float64(value: Any, name: str) -> tuple[Floats, float]:
    """The array as float64 on the host, and the spacing of its own dtype at 1."""
    if _is_torch(value):
        tensor = value.detach()
        unit = _torch_unit(tensor)
        return np.array(tensor.cpu().double().numpy()), unit
    try:
        array = to_numpy(value) if not isinstance(value, (list, tuple)) else np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected an array of numbers, got {type(value).__name__}") from error
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected an array of numbers, got dtype {array.dtype}")
    double = float(np.finfo(np.float64).eps)
    unit = max(double, float(np.finfo(array.dtype).eps)) if array.dtype.kind == "f" else double
    return np.array(array, dtype=np.float64), unit


def _is_torch(value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "torch" and hasattr(value, "detach")


def _torch_unit(tensor: Any) -> float:
    import torch

    double = float(np.finfo(np.float64).eps)
    return max(double, float(torch.finfo(tensor.dtype).eps)) if tensor.dtype.is_floating_point else double


def _shape_of(value: Any) -> tuple[int, ...]:
    return (
        tuple(int(n) for n in getattr(value, "shape", None) or np.shape(value)) if value is not None else ()
    )


# ---- names -----------------------------------------------------------------------------------------------


def stages_of(
    names: list[str], shapes: Mapping[str, tuple[int, ...]], problem: Problem, origin: str, attempt: Attempt
) -> dict[str, str]:
    """Name → stage or forward name, in the order given."""
    found = {name: stage_of(name, problem) for name in names}
    torch_like = [name for name in names if found[name] is None and _TORCH.fullmatch(name)]
    if torch_like:
        attempt.torch_names = True
        found |= _torch_stages(torch_like, shapes, problem)
    known = (*problem.forward_names, *problem.backward_names)
    for name, stage in found.items():
        if stage is None or stage not in known:
            if stage == "dY_hat":
                attempt.notes.append(f"{name} is not compared: {problem.loss} is taken from the logits.")
                continue
            expected = ", ".join((*problem.parameters, *problem.forward_names, *problem.backward_names))
            raise ValueError(f"{origin}: {name!r} is no name of this network; expected some of {expected}")
    return {name: str(stage) for name, stage in found.items() if stage in known}


def stage_of(name: str, problem: Problem) -> str | None:
    """``w1_grad`` → dW1, ``z1`` → Z1, ``dA2`` → dY_hat (the last layer's A), … None for an unknown name."""
    name = name.strip()
    output = _OUTPUT.fullmatch(name)
    if output:
        return "dY_hat" if output["d"] or output["suffix"] else "Y_hat"
    match = _NUMBERED.fullmatch(name)
    if not match:
        given = _INPUT.fullmatch(name)
        return "dA0" if given and (given["d"] or given["suffix"]) else None
    kind, layer = match["kind"].upper(), int(match["layer"])
    gradient = bool(match["d"] or match["suffix"])
    if kind in "WB":
        return f"d{'W' if kind == 'W' else 'b'}{layer}"
    if kind == "A" and layer == problem.L:
        return "dY_hat" if gradient else "Y_hat"
    return f"{'d' if gradient else ''}{kind}{layer}"


def is_name(name: str, problem: Problem) -> bool:
    """Whether the name can mean a gradient or an intermediate of this network."""
    stage = stage_of(name, problem)
    known = (*problem.forward_names, *problem.backward_names, "dY_hat")
    return stage in known if stage is not None else bool(_TORCH.fullmatch(name))


def _torch_stages(
    names: list[str], shapes: Mapping[str, tuple[int, ...]], problem: Problem
) -> dict[str, str | None]:
    """Names of a state dict: the modules are the layers in order; of fewer modules the shapes must tell."""
    modules: dict[str, dict[str, str]] = {}
    for name in names:
        match = _TORCH.fullmatch(name)
        assert match is not None
        modules.setdefault(match["module"], {})[match["kind"].lower()] = name
    layers: list[int | None] = list(range(1, len(modules) + 1))
    if len(modules) != problem.L:
        layers = []
        for parts in modules.values():
            widths = shapes[parts["weight"]] if "weight" in parts else shapes[parts["bias"]]
            fitting = [
                layer
                for layer in range(1, problem.L + 1)
                if widths in (problem.sizes[layer - 1 : layer + 1][::-1], problem.sizes[layer : layer + 1])
            ]
            layers.append(fitting[0] if len(fitting) == 1 else None)
    found: dict[str, str | None] = {}
    for layer, parts in zip(layers, modules.values(), strict=True):
        for kind, name in parts.items():
            found[name] = None if layer is None else f"d{'W' if kind == 'weight' else 'b'}{layer}"
    return found


# ---- layouts ---------------------------------------------------------------------------------------------


def checked_layout(layout: str) -> str:
    """The layout without blanks and parentheses; ``ValueError`` if it is none."""
    text = layout.replace(" ", "").strip("()")
    if text not in ("in,out", "out,in"):
        raise ValueError(f"layout: expected 'in,out' or 'out,in', got {layout!r}")
    return text


def layout_of(layout: str | None, attempt: Attempt, problem: Problem) -> str:
    """ "in,out" or "out,in": as given, else as the names and shapes say."""
    if layout is not None:
        return checked_layout(layout)
    if not attempt.torch_names:
        return "in,out"
    weights = {stage: array for stage, array in attempt.arrays.items() if stage.startswith("dW")}
    stored = [array.shape == problem.parameters[stage[1:]].shape[::-1] for stage, array in weights.items()]
    return "out,in" if all(stored) else "in,out"


def in_layout(attempt: Attempt, layout: str) -> dict[str, Floats]:
    """The arrays with weights as (in, out)."""
    return {
        stage: array.T if layout == "out,in" and stage.startswith("dW") and array.ndim == 2 else array
        for stage, array in attempt.arrays.items()
    }
