"""Reified linear constraints on truth values.

Literals are whole numbers other than 0: 1 is true, −1 is false, 2 and above are variables, and −n
is the negation of n.
"""

import math

import numpy as np

TRUE, FALSE = 1, -1
# Weights of a constraint and their sum stay below it, as solvers count with 32 bits.
LARGEST = 2**30
# Literals in all constraints together, which bounds memory and the time before the solver starts.
MOST_TERMS = 2 * 10**7


class TooLarge(Exception):
    """The constraints of a network exceed `MOST_TERMS`."""


class Constraints:
    """Reified linear constraints, each written down once.

    Attributes
    ----------
    variables : int
        The largest literal so far; 1 is true.
    free : list of int
        Variables that no constraint defines: the pixels.
    clauses : list of tuple of int
        In each at least one literal is true.
    sums : list of (int, tuple of (int, int), int)
        Variable, (literal, weight) of positive weights, bound: the variable is true exactly where
        the weights of true literals add up to the bound or more.
    """

    def __init__(self):
        self.variables, self.free, self.clauses, self.sums = 1, [], [], []
        self._known, self._terms = {}, 0

    def choose(self) -> int:
        """A literal that may be true or false."""
        self.variables += 1
        self.free.append(self.variables)
        return self.variables

    def at_least(self, weights: np.ndarray, literals: np.ndarray, bound: int) -> int:
        """The literal that is true exactly where Σ weights·literals ≥ bound.

        Parameters
        ----------
        weights, literals : ndarray of int, shape (n,)
            Of any sign; a literal may occur several times.
        bound : int
        """
        bound, merged = int(bound), {}
        for weight, literal in zip(weights.tolist(), literals.tolist(), strict=True):
            if literal < 0:  # w·(¬l) = w − w·l
                bound, weight, literal = bound - weight, -weight, -literal
            merged[literal] = merged.get(literal, 0) + weight
        bound -= merged.pop(TRUE, 0)
        terms = []
        for literal, weight in sorted(merged.items()):
            if weight < 0:
                bound, weight, literal = bound - weight, -weight, -literal
            if weight:
                terms.append((literal, weight))
        return self._reified(terms, bound)

    def any_of(self, literals: np.ndarray) -> int:
        """The literal that is true where one of `literals` is, an array of any shape."""
        return self.at_least(np.ones(literals.size, int), literals.ravel(), 1)

    def _reified(self, terms, bound):
        if bound <= 0:
            return TRUE
        if bound > sum(weight for _, weight in terms):
            return FALSE
        common = math.gcd(*(weight for _, weight in terms))
        bound = -(-bound // common)
        terms = tuple((literal, min(weight // common, bound)) for literal, weight in terms)
        if len(terms) == 1:
            return terms[0][0]
        if (terms, bound) not in self._known:
            self._terms += len(terms)
            if self._terms > MOST_TERMS:
                raise TooLarge
            self.variables += 1
            self._known[terms, bound] = self.variables
            self.sums.append((self.variables, terms, bound))
        return self._known[terms, bound]
