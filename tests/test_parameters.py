"""The flat buffer: layout, padding, freezing, copying."""

import numpy as np
import pytest

from handgrad.parameters import ALIGNMENT, FlatParameters

SHAPES = {"W1": (3, 5), "b1": (5,), "W2": (5, 40), "b2": (40,)}


@pytest.fixture(params=[np.float32, np.float64])
def parameters(request):
    return FlatParameters(SHAPES, request.param, np)


def test_views_are_aligned_and_do_not_overlap(parameters):
    seen = np.zeros(parameters.flat.size, dtype=int)
    for name, view in parameters.views.items():
        assert view.shape == SHAPES[name]
        assert view.ctypes.data % ALIGNMENT == 0
        assert np.shares_memory(view, parameters.flat)
        assert view.ctypes.data == parameters.flat.ctypes.data + parameters.offsets[name] * view.itemsize
        seen[parameters.offsets[name] : parameters.offsets[name] + view.size] += 1
    assert seen.max() == 1
    assert seen.sum() == 15 + 5 + 200 + 40
    assert parameters.flat.nbytes % ALIGNMENT == 0
    assert parameters.flat.nbytes == sum(-(-v.nbytes // 256) * 256 for v in parameters.views.values())


def test_padding_is_zero_and_copies_do_not_touch_it(parameters):
    rng = np.random.default_rng(3)
    values = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    parameters.copy_from(values)
    assert np.count_nonzero(parameters.flat) == 15 + 5 + 200 + 40
    for name, copy in parameters.to_numpy().items():
        assert type(copy) is np.ndarray
        np.testing.assert_array_equal(copy, values[name].astype(parameters.dtype))
        assert not np.shares_memory(copy, parameters.flat)


def test_copying_in_takes_part_of_the_names_and_any_memory_order(parameters):
    transposed = np.arange(200.0).reshape(40, 5).T
    parameters.copy_from({"W2": transposed})
    np.testing.assert_array_equal(parameters.views["W2"], transposed)
    assert not parameters.views["W1"].any()


def test_a_wrong_shape_or_name_writes_nothing(parameters):
    with pytest.raises(ValueError, match=r"^b2: expected shape \(40,\), got \(41,\)$"):
        parameters.copy_from({"W1": np.ones((3, 5)), "b2": np.ones(41)})
    with pytest.raises(ValueError, match=r"^no parameter 'W3'; expected one of W1, b1, W2, b2$"):
        parameters.copy_from({"W1": np.ones((3, 5)), "W3": np.ones(1)})
    assert not parameters.flat.any()


def test_freezing_clears_exactly_the_chunks_of_the_parameter(parameters):
    flags = parameters.trainable
    assert flags.dtype == np.uint8
    assert flags.size * ALIGNMENT == parameters.flat.nbytes
    assert flags.all()
    parameters.freeze("W2", "b1")
    assert parameters.frozen == {"W2", "b1"}
    assert parameters.trainable is flags  # kernels hold its address
    per_element = np.repeat(flags, parameters.chunk)
    for name, view in parameters.split(per_element).items():
        assert (view == (name not in {"W2", "b1"})).all()
    mask = np.zeros(parameters.flat.size, dtype=np.uint8)
    for part in parameters.trainable_slices():
        mask[part] = 1
    np.testing.assert_array_equal(mask, per_element)
    parameters.unfreeze("W2")
    assert parameters.frozen == {"b1"}
    parameters.unfreeze()
    assert parameters.frozen == frozenset()
    assert parameters.trainable_slices() == [slice(0, parameters.flat.size)]


def test_unknown_names_are_listed(parameters):
    for method in (parameters.freeze, parameters.unfreeze):
        with pytest.raises(ValueError, match="no parameter 'w1'; expected one of W1, b1, W2, b2"):
            method("w1")
    assert parameters.frozen == frozenset()


def test_like_has_the_layout_and_nothing_else(parameters):
    parameters.copy_from({"b1": np.ones(5)})
    parameters.freeze("b1")
    other = parameters.like()
    assert other.offsets == parameters.offsets
    assert other.dtype == parameters.dtype
    assert not other.flat.any()
    assert other.trainable.all()
    assert not np.shares_memory(other.flat, parameters.flat)


def test_only_float32_and_float64():
    with pytest.raises(ValueError, match="dtype: expected float32 or float64, got float16"):
        FlatParameters(SHAPES, np.float16, np)


def test_repr_names_shapes_and_what_is_frozen(parameters):
    parameters.freeze("b1")
    assert repr(parameters).startswith("FlatParameters(W1[3, 5], b1[5] frozen, W2[5, 40], b2[40]; float")
