"""Wrong backward passes of a two-layer network, written out by hand: what people get wrong.

Nothing here comes from the package.  ``backward(net, *mistakes)`` goes line by line from the loss to W1; each
line also stands there as people write it wrongly, under a name ``id/variant``.  Without mistakes it is right.
"""

from __future__ import annotations

from wrong_backward.catalogue import ALL, Named, allowed, compatible
from wrong_backward.networks import Network, draw
from wrong_backward.passes import backward

__all__ = ["ALL", "Named", "Network", "allowed", "backward", "compatible", "draw"]
