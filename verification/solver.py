"""Find an image that an `Encoding` allows, by clingo, or prove that there is none."""

import numpy as np

from verification.encoding import Encoding


def solve(
    encoding: Encoding, seconds: float | None = None
) -> tuple[bool | None, np.ndarray | None]:
    """An image that gets another label, if there is one.

    Parameters
    ----------
    encoding : verification.encoding.Encoding
    seconds : float, optional
        The most that the solver may take.

    Returns
    -------
    bool or None
        Is there such an image? None if the time was too short.
    image : ndarray of uint8 or None
        If there is one.
    """
    import clingo

    constraints = encoding.constraints
    control = clingo.Control(["--trans-ext=no"])
    with control.backend() as backend:
        atoms = [backend.add_atom() for _ in range(constraints.variables + 1)]

        def literal(number):
            return atoms[number] if number > 0 else -atoms[-number]

        backend.add_rule([atoms[1]])
        backend.add_rule([atoms[variable] for variable in constraints.free], choice=True)
        # A rule that alone defines an atom makes it true exactly where its body is.
        for variable, terms, bound in constraints.sums:
            body = [(literal(number), weight) for number, weight in terms]
            backend.add_weight_rule([atoms[variable]], bound, body)
        for clause in (*constraints.clauses, encoding.wins.values()):
            backend.add_rule([], [-literal(number) for number in clause])
    with control.solve(async_=True, yield_=True) as handle:
        if not handle.wait(seconds):
            handle.cancel()
            return None, None
        model = handle.model()
        if model is None:
            return False, None
        return True, encoding.image(lambda variable: model.is_true(atoms[variable]))
