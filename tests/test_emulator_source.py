"""What is read off a kernel's text, in the ways that kernels are written."""

from __future__ import annotations

import pytest

from handgrad.emulator.source import launch_bound, parameter_names

SOURCE = """
template <typename T, int N = 4>
struct Tile { static constexpr int THREADS = N * 32; };

// __global__ void __launch_bounds__(7) commented(float* x) {}
template <typename T, class TILE>
__global__ void __launch_bounds__(TILE::THREADS, 2)
tiled(const T* __restrict__ X, const T* __restrict__ W,  /* in, (out) */
      T* out, int N, Pair<int, float> pair) { __syncthreads(); }

extern "C" __global__ void __launch_bounds__(32 * (4 + 4)) plain(float* x, int) {}
__global__ __launch_bounds__(64) void leading(unsigned char* bytes) {}
__global__ void unbounded(float x[4]) {}
constexpr int commented = 1;
"""


@pytest.mark.parametrize(
    ("expression", "declaration", "bound"),
    [
        (
            "tiled<float, Tile<float, 8>>",
            "template <typename T, class TILE> "
            "inline constexpr int emulated_launch_bound_of_tiled = TILE::THREADS;",
            "emulated_launch_bound_of_tiled<float, Tile<float, 8>>",
        ),
        (
            "plain",
            "inline constexpr int emulated_launch_bound_of_plain = 32 * (4 + 4);",
            "emulated_launch_bound_of_plain",
        ),
        (
            "leading",
            "inline constexpr int emulated_launch_bound_of_leading = 64;",
            "emulated_launch_bound_of_leading",
        ),
        ("unbounded", "", "0"),
        ("commented", "", "0"),
        ("elsewhere<3>", "", "0"),
        ("space::tiled<float>", "", "0"),
        ("tiled", "", "0"),
    ],
)
def test_launch_bound(expression: str, declaration: str, bound: str) -> None:
    assert launch_bound(SOURCE, expression) == (declaration, bound)


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("tiled<float, Tile<float, 8>>", ["X", "W", "out", "N", "pair"]),
        ("leading", ["bytes"]),
        ("elsewhere", []),
    ],
)
def test_parameter_names(expression: str, names: list[str]) -> None:
    assert parameter_names(SOURCE, expression) == names
