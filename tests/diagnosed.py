"""Running the wrong backward passes through the troubleshooter, and counting what it names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from wrong_backward import ALL, Named, Network, allowed, backward, compatible, draw

import handgrad as hg
from handgrad.gradients import Diagnosis, diagnose

PARAMETERS = ("W1", "b1", "W2", "b2")

# a person's file
RIGHT = """
import numpy as np

def backward(X, y, params):
    Z1 = X @ params["W1"] + params["b1"]
    A1 = np.maximum(Z1, 0)
    Y = A1 @ params["W2"] + params["b2"]
    dY = 2 * (Y - y) / y.size
    dA1 = dY @ params["W2"].T
    dZ1 = dA1 * (Z1 > 0)
    return {"W1": X.T @ dZ1, "b1": dZ1.sum(0), "W2": A1.T @ dY, "b2": dY.sum(0)}
"""


def net_of(n: Network, **changed: Any) -> hg.MLP:
    """The network as the package has it."""
    arguments: dict[str, Any] = {
        "activation": n.activation,
        "output": n.output,
        "loss": n.loss,
        "reduction": n.reduction,
        "dtype": n.X.dtype.name,
    }
    net = hg.MLP([n.D, n.H, n.C], device="cpu", **{**arguments, **changed})
    net.load_parameters(n.parameters)
    return net


def network_for(random: np.random.Generator, wrong: Sequence[Named], dtype: Any) -> Network | None:
    """A random network in which all these mistakes exist; None where there is none."""
    needs: dict[str, Any] = {}
    for mistake in wrong:
        for key, value in mistake.needs:
            if needs.setdefault(key, value) != value:
                return None
    for _ in range(200):
        n = draw(random, dtype=dtype, **needs)
        if all(mistake.exists(n) for mistake in wrong):
            if any(mistake.line == "decay" for mistake in wrong):
                least = 1e-3 if dtype == np.float64 else 3e-2  # less is lost in float32's rounding of a sum
                n.weight_decay = float(random.choice([least, 0.1, 0.3]))
            return n
    return None


def found_in(n: Network, gradients: dict[str, Any], **arguments: Any) -> Diagnosis:
    """The diagnosis of the four gradients."""
    attempt = {name: gradients[name] for name in PARAMETERS}
    return diagnose(attempt, net_of(n), n.X, n.y, weight_decay=n.weight_decay, **arguments)


@dataclass
class Count:
    """How often a mistake was named first, and among the first two."""

    tried: int = 0
    first: int = 0
    two: int = 0
    misses: Counter[Any] = field(default_factory=Counter)

    def add(self, ids: Sequence[str], accepted: frozenset[str], what: Any) -> None:
        self.tried += 1
        self.first += bool(ids) and ids[0] in accepted
        self.two += any(id in accepted for id in ids[:2])
        if not ids or ids[0] not in accepted:
            self.misses[(what, *ids[:3])] += 1


def variants() -> dict[str, list[Named]]:
    """id → its variants."""
    found: dict[str, list[Named]] = {}
    for mistake in ALL:
        found.setdefault(mistake.id, []).append(mistake)
    return found


def count_singles(id: str, networks: range) -> Count:
    """One random network for each number, variants and dtypes in turn."""
    count = Count()
    of_id = variants()[id]
    for k in networks:
        mistake = of_id[k % len(of_id)]
        random = np.random.default_rng([k, *id.encode()])
        n = network_for(random, [mistake], np.float32 if (k // len(of_id)) % 3 == 2 else np.float64)
        assert n is not None
        ids = [cause.id for cause in found_in(n, backward(n, mistake.name)).causes]
        count.add(ids, allowed(mistake, n), (mistake.name, n.loss, n.activation, n.output))
    return count


def pairs(numbers: range) -> Iterator[tuple[Network, Named, Named, dict[str, Any]]]:
    """Random pairs of mistakes that go together, each of which changes what the other alone gives."""
    for k in numbers:
        random = np.random.default_rng([k, 7])
        while True:
            first, second = (ALL[i] for i in random.choice(len(ALL), 2, replace=False))
            if not compatible(first, second):
                continue
            n = network_for(random, [first, second], np.float32 if k % 3 == 2 else np.float64)
            if n is None:
                continue
            try:
                both = backward(n, first.name, second.name)
                others = [backward(n), backward(n, first.name), backward(n, second.name)]
            except ValueError:  # the shapes do not allow both
                continue
            if not any(same(both, other) for other in others):
                yield n, first, second, both
                break


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two passes gave the same gradients within rounding."""
    within = 1e-3 if a["W1"].dtype == np.float32 else 1e-6
    return all(
        a[name].shape == b[name].shape and np.allclose(a[name], b[name], rtol=within, atol=1e-12)
        for name in PARAMETERS
    )


def named_together(found: Diagnosis, n: Network, first: Named, second: Named) -> bool:
    """Whether the likeliest explanation is these two mistakes."""
    if not found.causes:
        return False
    top = [found.causes[0].id, *found.causes[0].together_with]
    return len(top) == 2 and any(
        a in allowed(first, n) and b in allowed(second, n) for a, b in (top, top[::-1])
    )
