"""One class out of the probabilities of a row: three rules, each the best answer to another question.

``most-probable`` is right most often. ``median`` is the middle of the distribution over ordered grades: no other grade
has a smaller expected error in grades. ``mean`` is the expected grade, rounded: no other grade has a smaller expected
squared error, which is what quadratic kappa punishes. The last two need classes in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from osteograde.errors import UserError
from osteograde.tasks.spec import Task

MOST_PROBABLE = "most-probable"


def most_probable(probs: np.ndarray) -> np.ndarray:
    """(N, K) probabilities -> (N,) indices of the most probable class, of equals the first.

    >>> most_probable(np.array([[0.4, 0.3, 0.3], [0.2, 0.4, 0.4]])).tolist()
    [0, 1]
    """
    return np.argmax(probs, axis=-1)


def median(probs: np.ndarray) -> np.ndarray:
    """(N, K) probabilities of ordered classes -> (N,) indices of the first class up to which half of them lie.

    >>> median(np.array([[0.4, 0.3, 0.3], [0.5, 0.0, 0.5]])).tolist()
    [1, 0]
    """
    share = np.cumsum(probs, axis=-1)
    return np.argmax(share >= 0.5 * share[..., -1:], axis=-1)


def mean(probs: np.ndarray) -> np.ndarray:
    """(N, K) probabilities of ordered classes -> (N,) expected index, rounded; a half is rounded up.

    >>> mean(np.array([[0.6, 0.0, 0.4], [0.5, 0.5, 0.0]])).tolist()
    [1, 1]
    """
    probs = np.asarray(probs, dtype=np.float64)
    expected = probs @ np.arange(probs.shape[-1]) / probs.sum(-1)
    return np.floor(expected + 0.5).astype(np.intp)


RULES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    MOST_PROBABLE: most_probable,
    "median": median,
    "mean": mean,
}


def check(rule: str, task: Task) -> None:
    """UserError where there is no such rule, or it needs an order that the task's classes do not have."""
    if rule not in tuple(RULES):  # compared one by one: what comes from Python may be a list
        raise UserError(f"the rule of decision is {rule!r}; expected one of {', '.join(RULES)}")
    if rule != MOST_PROBABLE and not task.classes_are_ordered:
        raise UserError(
            f"the classes of these labels ({', '.join(task.classes[:4])}) have no order, so there is no {rule} of "
            f"them; take {MOST_PROBABLE}"
        )
