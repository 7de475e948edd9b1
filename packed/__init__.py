"""A trained network on bits: a program of integer steps, how it is made and what runs it.

`program` has the steps and their file, without TensorFlow; `compile` makes them from a Keras model;
`run` executes them with XLA.
"""

from packed.program import Program

__all__ = ["PackedNetwork", "Program"]


def __getattr__(name):
    # Late, as it needs TensorFlow and the steps do not.
    if name == "PackedNetwork":
        from packed.run import PackedNetwork

        return PackedNetwork
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
