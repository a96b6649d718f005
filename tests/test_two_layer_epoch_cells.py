"""The cells of R2: they cover the parameters and fit the memory, few are to try, and the bits are theirs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from small_networks import needs_compiler
from two_layer_epochs import NOT_KEPT, TOLERANCE, is_kept, order_of, training

from handgrad.emulator.settings import SHARED_BYTES_PER_BLOCK
from handgrad.ops import two_layer_epoch, two_layer_epoch_cells
from handgrad.ops.two_layer import Problem


@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ((128, 784, 128, 10), True),
        ((64, 784, 50, 1), True),
        ((32, 3072, 1024, 10), False),
        ((5, 3, 5, 2), True),
    ],
)
def test_cells_cover_the_parameters(shape: tuple[int, int, int, int], kept: bool) -> None:
    N, D, H, C = shape
    problem = Problem(N, D, H, C, loss="cross_entropy", rule="Adam", arch="sm_90", sms=132)
    cells = two_layer_epoch_cells.cells_of(problem)
    assert cells is not None
    assert cells.SD % 4 == cells.SH % 4 == 0
    assert (cells.down - 1) * cells.SD < D <= cells.down * cells.SD
    assert (cells.across - 1) * cells.SH < H <= cells.across * cells.SH
    assert cells.count <= two_layer_epoch_cells.MOST_CELLS
    layout = two_layer_epoch.lay_out(problem)
    assert is_kept(layout) == kept
    launch = layout.launches[0]
    assert launch.cooperative
    assert launch.shared <= SHARED_BYTES_PER_BLOCK["sm_90"]
    assert launch.grid[0] <= 2 * 132
    pieces = two_layer_epoch.pieces(layout)
    assert pieces.barriers == 2
    assert pieces.multiply_adds * launch.grid[0] >= 2 * N * D * H  # Z1 and dW1
    for other in (dataclasses.replace(problem, sms=1), dataclasses.replace(problem, rule="Sgd")):
        assert two_layer_epoch_cells.cells_of(other) == cells


@pytest.mark.parametrize(
    ("arch", "counts"),
    [("sm_90", [99, 56, 128, 208, 96, 90]), ("sm_89", [99, 56, 128, 208, 90])],  # 96 of 264 columns: too many
)
def test_cells_to_try_fit_and_are_few(arch: str, counts: list[int]) -> None:
    """The rule's first; then about as many as other GPUs have multiprocessors, and other sides."""
    problem = Problem(128, 784, 128, 10, loss="cross_entropy", rule="Adam", arch=arch)
    offered = two_layer_epoch.tilings(problem)
    assert offered[0].cells == two_layer_epoch_cells.cells_of(problem)
    assert offered[0].name == "cells 88x12"
    assert [one.cells.count for one in offered] == counts
    for one in offered:
        cells = one.cells
        assert (cells.down - 1) * cells.SD < 784 <= cells.down * cells.SD
        assert (cells.across - 1) * cells.SH < 128 <= cells.across * cells.SH
        launch = two_layer_epoch.lay_out(problem, one).launches[0]
        assert launch.shared <= SHARED_BYTES_PER_BLOCK[arch]
        assert launch.grid[0] <= two_layer_epoch_cells.resident_blocks(problem, launch.shared)


@needs_compiler
def test_bits_follow_from_the_cells() -> None:
    """Other cells are other sums, right as well, and the same on every GPU."""
    wide = {"optimizer": "momentum", "D": 130, "H": 37}
    offered = two_layer_epoch.tilings(training(**wide).problem)
    assert len(offered) >= 4
    found = []
    for number in range(len(offered)):
        one = set()
        for sms in (NOT_KEPT, 132):
            run = training(**wide, tiling=number, sms=sms)
            assert is_kept(run.layout) == (sms == 132)
            for epoch in range(2):
                order = order_of(60, 31, epoch)
                losses, expected = run.epoch(order), run.exact_epoch(order)
                np.testing.assert_allclose(losses, expected, rtol=TOLERANCE * np.finfo(np.float32).eps)
            run.require_equal()
            one.add((losses.tobytes(), run.bits()))
        assert len(one) == 1
        found += one
    assert len(set(found)) == len(offered)
