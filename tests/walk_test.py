"""Products of every kind of layer against NumPy, their roles, the steps of functional models."""

import keras
import numpy as np
import pytest
from own_models import BinaryCell, Subclassed

import geometry
import graph_ops
import walk


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def numpy_conv(x, kernel, strides):
    """VALID convolution over any number of axes, position by position."""
    sizes, units = kernel.shape[:-2], kernel.shape[-1]
    outputs = [(n - k) // strides + 1 for n, k in zip(x.shape[1:-1], sizes, strict=True)]
    out = np.empty((len(x), *outputs, units))
    for place in np.ndindex(*outputs):
        where = [slice(p * strides, p * strides + k) for p, k in zip(place, sizes, strict=True)]
        patch = x[(slice(None), *where)].reshape(len(x), -1)
        out[(slice(None), *place)] = patch @ kernel.reshape(-1, units)
    return out


def numpy_depthwise(x, kernel):
    height, width, channels, multiplier = kernel.shape
    shape = (len(x), x.shape[1] - height + 1, x.shape[2] - width + 1, channels * multiplier)
    out = np.zeros(shape)
    for i, j in np.ndindex(shape[1:3]):
        patch = x[:, i : i + height, j : j + width]
        out[:, i, j] = np.einsum("nhwc,hwcm->ncm", patch, kernel).reshape(len(x), -1)
    return out


LAYERS = {
    "dense": (keras.layers.Dense(5), (4,), lambda x, w: x @ w),
    "dense of a sequence": (keras.layers.Dense(5), (6, 4), lambda x, w: x @ w),
    "conv 1d": (keras.layers.Conv1D(5, 3, strides=2), (9, 4), lambda x, w: numpy_conv(x, w, 2)),
    "conv 2d": (
        keras.layers.Conv2D(5, (3, 2), strides=2),
        (7, 6, 3),
        lambda x, w: numpy_conv(x, w, 2),
    ),
    "conv 3d": (keras.layers.Conv3D(5, 2), (4, 3, 5, 2), lambda x, w: numpy_conv(x, w, 1)),
    "depthwise": (
        keras.layers.DepthwiseConv2D(3, depth_multiplier=2),
        (6, 5, 4),
        numpy_depthwise,
    ),
    "einsum": (
        keras.layers.EinsumDense("abc,cde->abde", (None, 2, 5)),
        (3, 4),
        lambda x, w: np.einsum("abc,cde->abde", x, w),
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layers_products_are_numpys(kind):
    layer, shape, expected = LAYERS[kind]
    x = random(3, *shape)
    model = keras.Sequential([keras.Input(shape), layer, keras.layers.Flatten()])
    (product,) = walk.products(model, x)
    assert product.name == layer.name
    dots = product.dot(product.inputs, product.kernel).numpy()
    weights = layer.get_weights()[0].astype(float)
    wanted = expected(x.astype(float), weights)
    units = product.kernel.shape[-1]
    np.testing.assert_allclose(dots.reshape(-1, units), wanted.reshape(-1, units), atol=1e-5)
    # A unit's weights are its column: with another kernel its products are another's.
    other = np.array(product.kernel)
    other[..., 1] = other[..., 0]
    changed = product.dot(product.inputs, other).numpy().reshape(-1, units)
    if kind != "depthwise":  # There two units see two channels.
        np.testing.assert_allclose(changed[:, 1], changed[:, 0], atol=1e-6)


def simple_states(x, layer, cell):
    w, u, b = layer.get_weights()
    h, states = np.zeros((len(x), w.shape[1])), []
    for t in range(x.shape[1]):
        states.append(h)
        h = np.tanh(x[:, t] @ w + h @ u + b)
    return states


def gru_states(x, layer, cell):
    w, u, b = layer.get_weights()
    n = u.shape[0]
    h, states = np.zeros((len(x), n)), []
    for t in range(x.shape[1]):
        states.append(h)
        ours, theirs = x[:, t] @ w + b[0], h @ u + b[1]
        z, r = (1 / (1 + np.exp(-(ours + theirs)[:, s])) for s in (slice(n), slice(n, 2 * n)))
        h = z * h + (1 - z) * np.tanh(ours[:, 2 * n :] + r * theirs[:, 2 * n :])
    return states


LINEAR = {
    "conv 2d": (keras.layers.Conv2D(4, 3, padding="same"), (6, 5, 3)),
    "conv 1d transposed": (keras.layers.Conv1DTranspose(4, 3, 2), (6, 3)),
    "conv 2d transposed": (keras.layers.Conv2DTranspose(4, 3, 2, "same"), (6, 5, 3)),
    "depthwise 1d": (keras.layers.DepthwiseConv1D(3, depth_multiplier=2), (6, 3)),
    "separable 2d": (keras.layers.SeparableConv2D(4, 3, strides=2), (7, 5, 3)),
    "einsum, several summed": (keras.layers.EinsumDense("abcd,cde->abe", (None, 4)), (5, 3, 2)),
    "einsum with an ellipsis": (keras.layers.EinsumDense("...c,cd->...d", 4), (5, 3)),
}


@pytest.mark.parametrize("kind", LINEAR)
def test_a_layers_last_product_is_what_it_returns(kind):
    layer, shape = LINEAR[kind]
    x = random(3, *shape)
    model = keras.Sequential([keras.Input(shape), layer])
    found, kernels = walk.products(model, x), walk.kernels(model)
    assert [product.name for product in found] == list(kernels)
    dots = found[-1].dot(found[-1].inputs, found[-1].kernel)
    np.testing.assert_allclose(dots, layer(x), atol=1e-5)
    for product in found:
        owner, kernel = kernels[product.name]
        assert owner is layer
        np.testing.assert_array_equal(product.kernel, kernel.columns())
        np.testing.assert_array_equal(kernel.in_place(product.kernel), kernel.variable)


def test_an_embedding_multiplies_one_hot_inputs():
    layer, x = keras.layers.Embedding(7, 3), np.array([[1, 6], [0, 1]])
    (product,) = walk.products(keras.Sequential([keras.Input((2,), dtype="int32"), layer]), x)
    assert product.inputs.shape == (2, 2, 1)
    one_hot = np.eye(7)[x]
    np.testing.assert_allclose(
        product.dot(product.inputs, product.kernel), one_hot @ layer.get_weights()[0], rtol=1e-6
    )


def test_a_product_that_more_than_sums_is_named():
    layer = keras.layers.EinsumDense("abc,acd->abd", (None, 4), name="batched")
    layer.build((2, 3, 5))
    model = keras.Sequential([keras.Input((3, 5), batch_size=2), layer])
    assert "multiplies abc,acd->abd" in walk.unknown_layers(model)["batched"]


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize(
    ("kind", "states"),
    [(keras.layers.SimpleRNN, simple_states), (keras.layers.GRU, gru_states)],
)
def test_a_cells_products_are_those_of_each_time_step(kind, states, unroll):
    layer, x = kind(3, unroll=unroll), random(2, 5, 4)
    model = keras.Sequential([keras.Input((5, 4)), layer])
    found = walk.products(model, x)
    inputs = [p.inputs.numpy() for p in found if p.part == "kernel"]
    hidden = [p.inputs.numpy() for p in found if p.part == "recurrent_kernel"]
    np.testing.assert_allclose(inputs, x.swapaxes(0, 1))
    np.testing.assert_allclose(hidden, states(x.astype(float), layer, layer.cell), atol=1e-5)
    assert walk.first_products(model, x) == {f"{layer.cell.name}.kernel"}


def test_attention_is_products_of_its_projections():
    images = keras.Input((6, 8))
    attention = keras.layers.MultiHeadAttention(2, 3, name="attention")
    model = keras.Model(images, attention(images, images))
    names = [product.name for product in walk.products(model, random(2, 6, 8))]
    assert names == ["query", "key", "value", "attention_output"]
    assert walk.first_products(model, random(2, 6, 8)) == {"query", "key", "value"}


@keras.saving.register_keras_serializable("tests")
class Strange(keras.layers.Layer):
    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 3))

    def call(self, x):
        return x @ self.matrix


def test_an_unknown_layer_with_a_kernel_is_named():
    model = keras.Sequential([keras.Input((4,)), Strange(name="strange")])
    with pytest.raises(ValueError, match="how these layers multiply: strange"):
        walk.products(model, random(2, 4))


def test_a_layer_is_as_it_was_after_a_visit():
    layer = graph_ops.QuantDense(3, kernel_quantizer="sign")
    model = keras.Sequential([keras.Input((4,)), layer])
    with pytest.raises(ZeroDivisionError):
        walk.visit(model, random(2, 4), lambda product: 1 / 0)
    assert "call" not in vars(layer)
    np.testing.assert_array_equal(model(random(2, 4)), walk.visit(model, random(2, 4), print))


def test_counted_products_are_the_multiplied_ones(monkeypatch):
    layer = graph_ops.QuantConv2D(3, 3, "sign", "sign", padding="same", use_bias=False)
    model = keras.Sequential([keras.Input((6, 6, 64)), layer])
    x = np.random.default_rng(0).standard_normal((2, 6, 6, 64)).astype(np.float32)
    counted_conv2d, calls, outputs = graph_ops.counted_conv2d, [], []
    monkeypatch.setattr(
        graph_ops, "counted_conv2d", lambda *args: calls.append(args) or counted_conv2d(*args)
    )
    for counted in (False, True):
        walk.visit(model, x, lambda p: outputs.append(p.outputs.numpy()), counted=counted)
        assert len(calls) == counted
    np.testing.assert_array_equal(*outputs)


def two_branches():
    """An untrained step, two branches, and one layer on both."""
    images = keras.Input((8, 8, 2), name="images")
    x = keras.layers.Rescaling(2.0)(images)
    one = keras.layers.Conv2D(3, 3, padding="same", name="one")(x)
    two = keras.layers.Conv2D(3, 1, name="two")(x)
    x = keras.layers.Add()([one, two])
    return keras.Model(images, keras.layers.Conv2D(4, 1, name="last")(x))


def test_products_are_first_by_the_flow_of_data_not_by_position():
    assert walk.first_products(two_branches(), random(1, 8, 8, 2)) == {"one", "two"}


def test_a_subclassed_models_first_product_is_found_by_derivatives():
    model, x = Subclassed(), random(2, 8, 8, 1)
    model(x)
    assert walk.graph_of(model) is None
    assert walk.first_products(model, x) == {"product"}
    with pytest.raises(ValueError, match="not functional"):
        walk.steps(model)


def test_layers_of_one_name_are_told_apart_by_their_paths():
    def block(name):
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="same")], name=name)

    model = keras.Sequential([keras.Input((4,)), block("a"), block("b")])
    names = [product.name for product in walk.products(model, random(2, 4))]
    assert len(set(names)) == 2 and all("same" in name for name in names)


@pytest.mark.parametrize("nested", [False, True])
def test_steps_compute_what_the_model_does(nested):
    model = two_branches()
    if nested:
        images = keras.Input((8, 8, 2))
        inner = keras.Sequential([model, keras.layers.Activation("relu")])
        model = keras.Model(images, keras.ops.sum(inner(images), axis=(1, 2)))
    x = random(3, 8, 8, 2)
    graph = walk.graph_of(model)
    assert walk.graph_of(model) is graph
    tensors = dict(zip(graph.inputs, [x], strict=True))
    for position, step in enumerate(graph.steps):
        assert step.reads <= tensors.keys()
        step.run(tensors)
        for number in step.reads:
            if graph.last_readers()[number] == position:
                del tensors[number]
    (number,) = graph.outputs
    assert list(tensors) == [number]
    np.testing.assert_allclose(tensors[number], model(x), rtol=1e-6)


def test_windows_pad_as_tensorflow_does():
    rng = np.random.default_rng(0)
    for _ in range(30):
        size, strides, dilation = (tuple(rng.integers(1, 4, 2)) for _ in range(3))
        if max(strides) > 1 and max(dilation) > 1:
            continue  # TensorFlow has no such convolution.
        sizes = tuple(rng.integers(7, 12, 2))
        for padding in ("same", "valid"):
            window = walk.Window(size, strides, dilation, padding)
            layer = keras.layers.Conv2D(1, size, strides, padding, dilation_rate=dilation)
            expected = layer.compute_output_shape((1, *sizes, 1))[1:3]
            (rows, pads), (columns, _) = window.outputs_and_padding(sizes)
            assert (rows, columns) == expected
            assert pads[1] - pads[0] in (0, 1)


def test_a_quantized_cells_state_is_not_first():
    model = keras.Sequential([keras.Input((5, 4)), keras.layers.RNN(BinaryCell(3))])
    x = random(2, 5, 4)
    assert walk.first_products(model, x) == {"of_input"}
    products = walk.products(model, x)
    assert len(products) == 2 * 5
    for product in products:
        wb = geometry.quantized(product.kernel.numpy())
        np.testing.assert_array_equal(product.quantized_kernel, wb)
        np.testing.assert_allclose(product.outputs, product.quantized_inputs.numpy() @ wb)


def test_steps_cast_what_a_nested_model_casts():
    images = keras.Input((6, 6, 2), dtype="uint8")
    inner = keras.Sequential([keras.Input((6, 6, 2)), keras.layers.Conv2D(3, 3)])
    model = keras.Model(images, keras.layers.Flatten()(inner(images)))
    x = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 2)).astype(np.uint8)
    graph = walk.graph_of(model)
    tensors = {graph.inputs[0]: x}
    for step in graph.steps:
        step.run(tensors)
    np.testing.assert_allclose(tensors[graph.outputs[0]], model(x), rtol=1e-6)
