"""Any Keras model, product by product or step by step.

`visit` calls a function for every dot product that a model computes, with its kernel, its inputs
and its quantizers: measuring reads this. `steps` lists the operations of a functional model in
topological order: what streams many images through a network goes along them.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import graph_ops
from products import (
    Kernel,
    Product,
    Window,
    forms_product,
    kernels_of,
    obstacle,
    owns_kernel,
    products_of,
)
from utils import require

# isort: split
import keras
import numpy as np
import tensorflow as tf

__all__ = [
    "Cast",
    "Graph",
    "Product",
    "Slot",
    "Step",
    "Window",
    "first_products",
    "forms_product",
    "graph_of",
    "inputs_changed",
    "kernels",
    "products",
    "products_of",
    "steps",
    "taking_floats",
    "unknown_layers",
    "visit",
]

# --- Visiting them ----------------------------------------------------------------------------


def visit(
    model: keras.Model,
    x: np.ndarray | tf.Tensor,
    visitor: Callable[[Product], object],
    known_only: bool = False,
    counted: bool = False,
) -> tf.Tensor:
    """Run a model on `x`, at inference, and call `visitor(product)` for each of its products.

    Parameters
    ----------
    model : keras.Model
        Functional, sequential or subclassed. The products of a recurrent layer are visited at
        every time step.
    x : ndarray or tensor, shape (n, ...)
        All of it goes through the model at once: many images come in batches.
    visitor : callable
        Takes a `Product`. To keep one keeps its tensors in memory.
    known_only : bool
        Pass over what `unknown_layers` lists?
    counted : bool
        Count products in bits where layers can? They are the same. Each size of a batch is
        compiled once.

    Returns
    -------
    tensor
        The model's output.

    Raises
    ------
    ValueError
        If it is not known how a layer with a kernel multiplies.
    """

    def after(layer, args, outputs):
        for product in products_of(layer, *args):
            product.name = _name(names, product)
            product.outputs = outputs if _returns_product(layer) else None
            visitor(product)
        return outputs

    layers = _all_layers(model)
    unknown = [layer.name for layer in layers if owns_kernel(layer) and not forms_product(layer)]
    require(
        known_only or not unknown,
        f"it is not known how these layers multiply: {', '.join(unknown)}",
    )
    names = _names_of(layers)
    if known_only:
        layers = [layer for layer in layers if not obstacle(layer)]
    with _calls_followed(layers, after, counted):
        return model(keras.tree.map_structure(tf.convert_to_tensor, x), training=False)


def unknown_layers(model: keras.Model) -> dict[str, str]:
    """Names of the layers with a kernel whose products cannot be measured, and why, as a dict."""
    layers, found = _all_layers(model), {}
    names = _names_of(layers)
    for layer in layers:
        if owns_kernel(layer) and not forms_product(layer):
            found[names[id(layer)]] = f"it is not known how a {type(layer).__name__} multiplies"
        elif forms_product(layer) and obstacle(layer):
            found[names[id(layer)]] = f"it {obstacle(layer)}"
    return found


def kernels(model: keras.Model) -> dict[str, tuple[keras.Layer, Kernel]]:
    """Layer and `Kernel` of every product of a model, by the product's name; it runs nothing."""
    layers, found = _all_layers(model), {}
    names = _names_of(layers)
    for layer in layers:
        for kernel in () if obstacle(layer) else kernels_of(layer):
            found[".".join(filter(None, (names[id(layer)], kernel.part)))] = layer, kernel
    return found


def products(model: keras.Model, x: np.ndarray | tf.Tensor) -> list[Product]:
    """All products that a model forms of `x`, as a list of `Product`; see `visit`."""
    found = []
    visit(model, x, found.append)
    return found


def first_products(model: keras.Model, x: np.ndarray | tf.Tensor) -> set[str]:
    """Names of the products in whose inputs no other product has a part.

    That is a matter of the flow of data, not of position. A functional model's graph tells it;
    elsewhere derivatives do.

    Parameters
    ----------
    model : keras.Model
    x : ndarray, shape (n, ...)
        One image is enough.

    Returns
    -------
    set of str
    """
    graph = graph_of(model)
    if graph is not None and not any(_holds_products(step.layer) for step in graph.steps):
        return _first_in(graph)
    first, before = {}, []
    with tf.GradientTape(persistent=True) as tape:

        def after(layer, args, outputs):
            formed = products_of(layer, *args)
            for product in formed:
                name = _name(names, product)
                first[name] = first.get(name, True) and not _depends(tape, product.inputs, before)
            if formed:
                outputs = keras.tree.map_structure(tf.identity, outputs)
                keras.tree.map_structure(tape.watch, outputs)
                before.extend(keras.tree.flatten(outputs))
            return outputs

        layers = _all_layers(model)
        names = _names_of(layers)
        with _calls_followed(layers, after):
            model(keras.tree.map_structure(lambda v: tf.convert_to_tensor(v[:1]), x))
    return {name for name, is_first in first.items() if is_first}


def _depends(tape, tensor, sources):
    if not (sources and tensor.dtype.is_floating):
        return False
    with tape.stop_recording():
        return any(gradient is not None for gradient in tape.gradient(tensor, sources))


def _all_layers(model):
    """All layers in a model and inside of its layers, each once."""
    return list(model._flatten_layers(include_self=False))


def _holds_products(layer):
    """Are there layers with a product inside of this one?"""
    if forms_product(layer) or not isinstance(layer, keras.Layer):
        return False
    return any(map(forms_product, _all_layers(layer)))


def _returns_product(layer):
    """Does the layer return its product as it is, without bias or activation?"""
    quantized = isinstance(layer, graph_ops.QuantConv2D | graph_ops.QuantDense)
    return quantized and not layer.use_bias and layer.activation is keras.activations.linear


def _names_of(layers):
    layers = list({id(layer): layer for layer in layers}.values())
    names = [layer.name for layer in layers]
    return {
        id(layer): layer.name if names.count(layer.name) == 1 else layer.path for layer in layers
    }


def _name(names, product):
    return ".".join(filter(None, (names[id(product.layer)], product.part)))


@contextlib.contextmanager
def _calls_followed(layers, after, counted=False):
    """Meanwhile `after(layer, args, outputs)` gives what each call of a layer returns."""
    extra = set()  # Cells whose next call is not a time step.
    with contextlib.ExitStack() as stack:
        for layer in layers:
            if forms_product(layer):
                stack.enter_context(_call_replaced(layer, _followed(layer, after, extra, counted)))
            elif isinstance(layer, keras.layers.RNN) and not layer.unroll:
                stack.enter_context(_call_replaced(layer, _extra_call_marked(layer, extra)))
        yield


def _followed(layer, after, extra, counted):
    call = layer.call
    if counted and isinstance(layer, graph_ops.QuantConv2D | graph_ops.QuantDense):
        call = functools.partial(call, counted=True)

    def followed(*args, **kwargs):
        outputs = call(*args, **kwargs)
        if id(layer) in extra:
            extra.remove(id(layer))
            return outputs
        return after(layer, args or tuple(kwargs.values())[:1], outputs)

    return followed


def _extra_call_marked(rnn, extra):
    """Keras calls a cell once before the first time step, to learn what it returns."""
    call = rnn.call

    def marked(*args, **kwargs):
        extra.update(id(layer) for layer in rnn.cell._flatten_layers() if forms_product(layer))
        return call(*args, **kwargs)

    return marked


@contextlib.contextmanager
def inputs_changed(layer: keras.Layer, change: Callable[[tf.Tensor], tf.Tensor]) -> Iterator[None]:
    """Meanwhile the layer is called on `change(inputs)` in place of its first argument."""
    call = layer.call

    def changed(*args, **kwargs):
        if args:
            return call(change(args[0]), *args[1:], **kwargs)
        first = next(iter(kwargs))
        return call(**{**kwargs, first: change(kwargs[first])})

    with _call_replaced(layer, changed):
        yield


@contextlib.contextmanager
def _call_replaced(layer, call):
    # Past Keras' own `__setattr__`, which would track the function's layer a second time.
    object.__setattr__(layer, "call", call)
    try:
        yield
    finally:
        object.__delattr__(layer, "call")


# --- Steps ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """A tensor of a `Graph`, by its number."""

    number: int


@dataclass(frozen=True)
class Step:
    """An operation of a functional model.

    Attributes
    ----------
    layer : keras.Layer or keras.Operation
    args, kwargs : tuple, dict
        What it is called on, with a `Slot` for each tensor.
    outputs : Slot or structure of them
    """

    layer: keras.Operation
    args: tuple
    kwargs: dict
    outputs: object

    @functools.cached_property
    def reads(self) -> frozenset[int]:
        """Numbers of the tensors that it is called on."""
        return frozenset(map(_number, _slots((self.args, self.kwargs))))

    @functools.cached_property
    def writes(self) -> frozenset[int]:
        """Numbers of the tensors that it returns."""
        return frozenset(map(_number, _slots(self.outputs)))

    def run(self, tensors: dict[int, tf.Tensor], **options: object) -> None:
        """Call the layer on `tensors`, a dict by number, and add there what it returns."""

        def value(part):
            return tensors[part.number] if isinstance(part, Slot) else part

        args, kwargs = keras.tree.map_structure(value, (self.args, self.kwargs))
        returned = self.layer(*args, **kwargs, **options)
        for slot, tensor in zip(
            keras.tree.flatten(self.outputs), keras.tree.flatten(returned), strict=True
        ):
            tensors[slot.number] = tensor


@dataclass(frozen=True, eq=False)
class Graph:
    """The operations of a functional model in topological order, nested models opened.

    Attributes
    ----------
    steps : tuple of Step
    inputs, outputs : tuple of int
        Numbers of the model's input and output tensors.
    """

    steps: tuple
    inputs: tuple
    outputs: tuple

    def last_readers(self) -> dict[int, int]:
        """For the number of each tensor, the position of the last step that reads it."""
        last = {n: len(self.steps) for n in self.outputs}
        for position, step in reversed(list(enumerate(self.steps))):
            for number in step.reads:
                last.setdefault(number, position)
        return last


_GRAPHS = weakref.WeakKeyDictionary()


def steps(model: keras.Model) -> tuple[Step, ...]:
    """The operations of a functional or sequential model in topological order.

    Parameters
    ----------
    model : keras.Model

    Returns
    -------
    tuple of Step

    Raises
    ------
    ValueError
        If the model is not functional: then only running it tells what it does.
    """
    graph = graph_of(model)
    require(graph is not None, f"the model {model.name} is not functional: it has no list of steps")
    return graph.steps


_TAKING_FLOATS = weakref.WeakKeyDictionary()


def taking_floats(model: keras.Model) -> keras.Model:
    """A functional model of uint8 images as one, with the same layers, of floats in [−1, 1].

    A functional model casts its input to one type, and pixels mean something else than floats.
    Other models are returned as they are.
    """
    if _functional(model) is None or model.inputs[0].dtype != "uint8":
        return model
    if model not in _TAKING_FLOATS:
        uncompiled = keras.Model(model.input, model.output, name=model.name)
        _TAKING_FLOATS[model] = keras.models.clone_model(
            uncompiled,
            input_tensors=keras.Input(model.inputs[0].shape[1:], name="images"),
            clone_function=lambda layer: layer,
        )
    return _TAKING_FLOATS[model]


def graph_of(model: keras.Model) -> Graph | None:
    """The `Graph` of a functional or sequential model, or None of another."""
    # Listing the steps adds a node to each layer: it is done once.
    if model not in _GRAPHS:
        _GRAPHS[model] = _graph_of(model)
    return _GRAPHS[model]


def _graph_of(model):
    functional = _functional(model)
    if functional is None:
        return None
    numbers, found = {}, []

    def slots(structure):
        return keras.tree.map_structure(
            lambda v: (
                Slot(numbers.setdefault(id(v), len(numbers)))
                if isinstance(v, keras.KerasTensor)
                else v
            ),
            structure,
        )

    kept = []  # A number is that of one tensor as long as the tensor lives.

    def call(layer, *args, **kwargs):
        inner = _functional(layer) if isinstance(layer, keras.Model) else None
        if inner is None:
            outputs = layer(*args, **kwargs)
            found.append(Step(layer, slots(args), slots(kwargs), slots(outputs)))
            kept.append((args, kwargs, outputs))
            return outputs
        inputs = keras.tree.flatten(args[0])
        if not isinstance(layer, graph_ops.Block):
            inputs = [
                _cast_for(layer, v, wanted.dtype, call)
                for v, wanted in zip(inputs, inner.inputs, strict=True)
            ]
        return _inlined(graph_of(layer), inputs, call)

    inputs = [keras.Input(batch_shape=v.shape, dtype=v.dtype) for v in functional.inputs]
    slots(inputs)
    clone = keras.models.clone_model(
        functional,
        input_tensors=inputs,
        clone_function=lambda layer: layer,
        call_function=call,
    )
    return Graph(
        tuple(found),
        tuple(numbers[id(tensor)] for tensor in inputs),
        tuple(numbers[id(tensor)] for tensor in clone.outputs),
    )


def _functional(model):
    """The model without its compilation, as a plain functional one; None where it is none."""
    try:
        inputs, outputs = model.inputs, model.outputs
    except AttributeError:
        return None
    return keras.Model(list(inputs), list(outputs)) if inputs and outputs else None


class Cast(keras.Operation):
    """To the dtype of a nested model's input, as Keras does it there."""

    def __init__(self, dtype: str, name: str | None = None):
        super().__init__(name=name)
        self._dtype = dtype

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return keras.ops.cast(x, self._dtype)

    def compute_output_spec(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self._dtype)


def _cast_for(model, tensor, dtype, call):
    cast = Cast(dtype, name=f"{model.name}_cast")
    return tensor if tensor.dtype == dtype else call(cast, tensor)


def _inlined(graph, inputs, call):
    """The outputs of a nested model, each of its steps called in turn."""
    tensors = dict(zip(graph.inputs, keras.tree.flatten(inputs), strict=True))
    for step in graph.steps:
        value = lambda part: tensors[part.number] if isinstance(part, Slot) else part  # noqa: E731
        args, kwargs = keras.tree.map_structure(value, (step.args, step.kwargs))
        returned = call(step.layer, *args, **kwargs)
        for slot, tensor in zip(
            keras.tree.flatten(step.outputs), keras.tree.flatten(returned), strict=True
        ):
            tensors[slot.number] = tensor
    outputs = [tensors[number] for number in graph.outputs]
    return outputs[0] if len(outputs) == 1 else outputs


def _slots(structure):
    return [part for part in keras.tree.flatten(structure) if isinstance(part, Slot)]


def _number(slot):
    return slot.number


def _first_in(graph):
    """Names of the products in whose inputs no other product has a part, by the graph."""
    names = _names_of([step.layer for step in graph.steps])
    after_product, first = set(), set()
    for step in graph.steps:
        known = forms_product(step.layer)
        follows = bool(step.reads & after_product)
        if known and not follows:
            first.add(names[id(step.layer)])
        if known or follows:
            after_product |= step.writes
    return first
