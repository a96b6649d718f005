"""Which wrong lines there are, for which networks they exist, and which can stand together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wrong_backward.networks import Network


@dataclass(frozen=True)
class Named:
    """A wrong line: ``id/variant``, the line of the pass that it takes the place of, where it exists."""

    name: str
    line: str
    exists: Callable[[Network], bool] = lambda n: True
    needs: tuple[tuple[str, object], ...] = ()  # what `draw` must be asked for, so that it can exist

    @property
    def id(self) -> str:
        return self.name.split("/")[0]


def _curved(n: Network) -> bool:
    return n.activation != "identity"


def _one(**needs: object) -> tuple[tuple[str, object], ...]:
    return tuple(needs.items())


def _is(**values: str) -> Callable[[Network], bool]:
    return lambda n: all(getattr(n, key) == value for key, value in values.items())


def _bias_lines() -> list[Named]:
    found = []
    for id, variants in {
        "bias-not-summed": ("",),
        "bias-averaged": ("",),
        "bias-summed-over-everything": ("", "-scalar"),
        "bias-summed-over-axis-1": ("", "-kept"),
        "bias-times-input": ("", "-product"),
        "bias-missing": ("",),
    }.items():
        for at in ("b1", "b2", "both"):
            found += [Named(f"{id}/{at}{variant}", f"db {at}") for variant in variants]
    return found


SMOOTH = ("sigmoid", "tanh", "softplus")
CE = _one(loss="cross_entropy")
ONE = _one(one_output=True)

ALL: tuple[Named, ...] = (
    Named("activation-derivative-missing/hidden", "dZ1", _curved),
    Named(
        "activation-derivative-missing/output",
        "dZ2",
        lambda n: n.loss == "mse" and n.output != "identity",
        _one(loss="mse"),
    ),
    Named("scale/divided-by-N-again", "scale"),
    Named("scale/times-N", "scale"),
    Named("scale/divided-by-K", "scale"),
    Named("scale/times-K", "scale"),
    Named("scale/times-N-K", "scale"),
    Named("scale/divided-by-N-squared", "scale"),
    Named("scale/weights-divided-by-N", "scale"),
    Named("scale-layer-1/divided-by-N", "scale 1"),
    Named("scale-layer-1/times-N", "scale 1"),
    Named("scale-layer-1/divided-by-K", "scale 1"),
    Named("factor-two/square", "scale", _is(loss="mse"), _one(loss="mse")),
    Named("factor-two/extra", "scale"),
    Named("sign/residual", "sign"),
    Named("sign/all", "sign"),
    Named("transposed/W1", "dW1 form"),
    Named("transposed/W2", "dW2 form"),
    Named("transposed/both", "dW form"),
    Named("elementwise-for-matmul/dW2", "dW2", lambda n: n.C == 1, ONE),
    Named("elementwise-for-matmul/dZ1", "dZ1"),
    *_bias_lines(),
    Named("mask-from-upstream-gradient/positive", "dZ1", _is(activation="relu"), _one(activation="relu")),
    Named("mask-from-upstream-gradient/sign", "dZ1", _is(activation="relu"), _one(activation="relu")),
    Named("mask-from-upstream-gradient/both", "dZ1", _is(activation="relu"), _one(activation="relu")),
    Named("mask-always-one", "dZ1", _is(activation="relu"), _one(activation="relu")),
    Named("derivative-is-preactivation/z", "dZ1", _curved),
    Named("derivative-is-preactivation/a", "dZ1", _curved),
    Named(
        "derivative-is-preactivation/output",
        "dZ2",
        lambda n: n.loss == "mse" and n.output != "identity",
        _one(loss="mse"),
    ),
    Named("upstream-overwritten/hidden", "dZ1"),
    Named(
        "upstream-overwritten/output",
        "dZ2",
        lambda n: n.loss == "mse" and n.output != "identity",
        _one(loss="mse"),
    ),
    Named("second-layer-updated-first", "dA1"),
    Named("gradient-used-for-weight", "dA1"),
    Named("derivative-argument/of-a", "dZ1", lambda n: n.activation in SMOOTH),
    Named("derivative-argument/z-in-a-formula", "dZ1", lambda n: n.activation in SMOOTH),
    Named(
        "derivative-argument/output-of-output",
        "dZ2",
        lambda n: n.loss == "mse" and n.output in SMOOTH,
        _one(loss="mse"),
    ),
    Named(
        "derivative-argument/z-in-a-formula-output",
        "dZ2",
        lambda n: n.loss == "mse" and n.output in ("sigmoid", "tanh"),
        _one(loss="mse"),
    ),
    Named("softmax-axis", "dZ2", _is(loss="cross_entropy"), CE),
    Named("softmax-over-everything", "dZ2", _is(loss="cross_entropy"), CE),
    Named("softmax-derivative-twice", "dZ2", lambda n: n.loss in ("cross_entropy", "bce")),
    Named("softmax-diagonal-jacobian", "dZ2", _is(loss="cross_entropy"), CE),
    Named("one-hot-missing", "dZ2", lambda n: n.loss in ("cross_entropy", "hinge", "bce")),
    *(
        Named(
            f"targets-broadcast/{variant}",
            "dZ2" if variant != "matrix" else "dZ2 matrix",
            lambda n: n.loss in ("mse", "bce") and n.C == 1,
            ONE,
        )
        for variant in ("mean", "sum", "over-predictions")
    ),
    Named("sum-over-hidden/masked", "dW1"),
    Named("sum-over-hidden/thread", "dW1"),
    Named("sum-over-hidden/second", "dW2", lambda n: n.C > 1),
    *(
        Named(
            f"misplaced-parenthesis/{variant}",
            "dZ1",
            lambda n: n.loss in ("mse", "bce") and n.C == 1 and n.output == "identity",
            ONE,
        )
        for variant in ("target", "target-masked", "prediction")
    ),
    Named("not-zeroed/2", "scale"),
    Named("not-zeroed/3", "scale", lambda n: n.C != 3),
    Named("not-zeroed/5", "scale", lambda n: n.C != 5),
    Named("fork-overwritten/last-output", "dA1", lambda n: n.C > 1),
    Named("fork-overwritten/last-sample", "end"),
    Named("short-batch", "scale", _is(reduction="mean"), _one(reduction="mean")),
    Named("weight-decay-missing", "decay"),
    Named("weight-decay-doubled", "decay"),
    Named("preactivation-for-activation", "dW2", _curved),
)
"""Every mistake that gives a gradient of a two-layer network with distinct sizes."""


def allowed(wrong: Named, n: Network) -> frozenset[str]:
    """The ids that give the same numbers in this network and so may be named in the place of this one."""
    if wrong.id == "factor-two" or wrong.name == "not-zeroed/2":
        return frozenset({"factor-two", "not-zeroed", "scale"})
    if wrong.id == "short-batch":
        return frozenset({"short-batch", "scale"})
    if n.activation == "relu" and wrong.name in ("activation-derivative-missing/hidden", "mask-always-one"):
        return frozenset({"activation-derivative-missing", "mask-always-one"})
    if n.output == "relu" and wrong.name == "activation-derivative-missing/output":
        return frozenset({"activation-derivative-missing", "mask-always-one"})
    if wrong.name == "bias-summed-over-everything/b2" and n.loss in ("cross_entropy", "hinge"):
        return frozenset({wrong.id, "bias-missing"})  # each row of dZ2 sums to 0, and so does everything
    return frozenset({wrong.id})


def compatible(a: Named, b: Named) -> bool:
    """Whether both lines can be wrong in one pass, each with an effect of its own."""
    if a.line == b.line or a.id == b.id or "end" in (a.line, b.line):
        return False
    lines = {a.line, b.line}
    if lines <= {"db b1", "db both"} or lines <= {"db b2", "db both"}:
        return False
    return not (lines <= {"dW1 form", "dW form"} or lines <= {"dW2 form", "dW form"})
