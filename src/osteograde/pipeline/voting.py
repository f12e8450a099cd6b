"""Several members answer, one grade is given: the voting rules of published ensembles, as pure functions.

Rules after Pi et al., Sci Rep 13:22887, 2023. Shapes: M members, N sites, K classes.
"""

from __future__ import annotations

import numpy as np

from osteograde.errors import UserError

RULES = ("mean", "hard", "mix")  # "soft" is another name of "mean"
ALIASES = {"soft": "mean"}
LEAD = 1e-4  # of the voted class before the next one: what a table written with six decimals keeps
_DIGITS = 12  # means are compared to so many decimals: members in another order then give the same label


def vote(members: np.ndarray, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """(labels (N,), table (N, K)) of members (M, N, K), each row of probabilities.

    * "mean" or "soft": the most probable class of the mean.
    * "hard": the class that most members hold most probable; of classes with as many votes the lowest.
    * "mix": that class where it alone has the most votes, else the most probable class of the mean over all classes.

    Of equally probable classes the lowest counts, everywhere. The table holds the mean probabilities; where these do
    not name the label, just so much is moved to it from all classes in proportion that it leads by ``LEAD``: argmax
    of a row is always its label, rows sum to 1, and what depends on the probabilities keeps its meaning, which shares
    of votes, mostly 0 and 1, would not. ValueError for another rule, no member, or rows that are no probabilities.
    """
    rule, members = ALIASES.get(rule, rule), np.asarray(members, float)
    if rule not in RULES:
        raise UserError(f"voting rule {rule!r} is unknown; known: {sorted((*RULES, *ALIASES))}")
    if members.ndim != 3 or not len(members):
        raise ValueError(f"members are {members.shape}; expected (members, sites, classes) with at least one member")
    if not np.isfinite(members).all() or (members < 0).any() or (np.abs(members.sum(-1) - 1) > 1e-3).any():
        raise UserError("members hold rows that are not finite, negative or do not sum to 1; vote on graded sites")
    mean = members.mean(0)
    mean = mean / mean.sum(-1, keepdims=True)
    likeliest = np.round(mean, _DIGITS).argmax(-1)
    labels = likeliest
    if rule != "mean":
        votes = vote_counts(members)
        labels = votes.argmax(-1)  # the lowest of equals
        if rule == "mix":
            alone = (votes == votes.max(-1, keepdims=True)).sum(-1) == 1
            labels = np.where(alone, labels, likeliest)
    return labels, with_lead(mean, labels)


def vote_counts(members: np.ndarray) -> np.ndarray:
    """(N, K) votes: how many members hold each class most probable, the lowest of equals."""
    said = members.argmax(-1)
    return np.stack([(said == k).sum(0) for k in range(members.shape[-1])], -1)


def with_lead(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, K) the rows of ``probs`` (N, K), which sum to 1, changed as little as makes labels (N,) lead by ``LEAD``.

    A row that its label leads already, be it as the lowest of exact equals, is as it was.
    """
    rows = np.arange(len(probs))
    own, most = probs[rows, labels], probs.max(-1)
    wanting = most - own
    share = np.where(probs.argmax(-1) == labels, 0.0, (wanting + LEAD) / (1 + wanting))
    moved = probs * (1 - share)[:, None]
    moved[rows, labels] += share
    return moved
