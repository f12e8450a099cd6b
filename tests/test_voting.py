"""Voting rules: equal to the rules in words, also where votes and means tie exactly."""

from collections import Counter
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osteograde.pipeline import voting

STEPS = 8  # probabilities are eighths: sums are exact and ties abound


@st.composite
def answers(draw):
    """(M, N, K) probabilities in eighths."""
    m, n, k = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.multinomial(STEPS, np.full(k, 1 / k), size=(m, n)) / STEPS


def in_words(rows, rule):
    """The label of one site. rows: the members' probabilities of its classes."""
    rows = [[Fraction(float(p)) for p in row] for row in rows]
    classes = range(len(rows[0]))
    means = [sum(row[k] for row in rows) / len(rows) for k in classes]
    most_probable = min(k for k in classes if means[k] == max(means))
    if rule in ("mean", "soft"):
        return most_probable
    votes = Counter(min(k for k in classes if row[k] == max(row)) for row in rows)
    leading = sorted(k for k, count in votes.items() if count == max(votes.values()))
    if rule == "hard" or len(leading) == 1:
        return leading[0]
    return most_probable


@settings(max_examples=120, deadline=None)
@given(answers(), st.sampled_from(["mean", "soft", "hard", "mix"]))
def test_labels_are_those_of_the_rules_in_words(members, rule):
    labels, _ = voting.vote(members, rule)
    assert labels.tolist() == [in_words(members[:, i], rule) for i in range(members.shape[1])]


@settings(max_examples=100, deadline=None)
@given(answers(), st.sampled_from(voting.RULES))
def test_the_table_names_the_label_and_is_one_of_probabilities(members, rule):
    labels, table = voting.vote(members, rule)
    assert np.array_equal(table.argmax(-1), labels)
    assert np.array_equal(np.round(table, 6).argmax(-1), labels)  # as submissions are written
    assert np.allclose(table.sum(-1), 1, atol=1e-12)
    assert (table >= 0).all()


@settings(max_examples=50, deadline=None)
@given(answers(), st.sampled_from(voting.RULES), st.randoms(use_true_random=False))
def test_the_order_of_members_does_not_matter(members, rule, random):
    order = list(range(len(members)))
    random.shuffle(order)
    labels, table = voting.vote(members, rule)
    other_labels, other = voting.vote(members[order], rule)
    assert np.array_equal(labels, other_labels)
    assert np.allclose(table, other, atol=1e-12)


def test_means_that_tie_but_for_rounding_give_the_lowest_class_in_every_order():
    members = np.array([[[0.1, 0.2, 0.7]], [[0.2, 0.5, 0.3]], [[0.6, 0.2, 0.2]], [[0.4, 0.4, 0.2]]])
    members = members[..., [0, 2, 1]]  # sums 1.3, 1.4, 1.3
    members = np.concatenate([members, [[[0.1, 0.0, 0.9]]]])  # 1.4, 1.4, 2.2
    tied = np.array([[[0.1, 0.6, 0.3]], [[0.7, 0.2, 0.1]], [[0.3, 0.3, 0.4]], [[0.3, 0.3, 0.4]]])  # 1.4, 1.4, 1.2
    assert {int(voting.vote(tied[list(order)], "mean")[0][0]) for order in permutations(range(4))} == {0}
    assert voting.vote(members, "mean")[0].tolist() == [2]


def test_mix_asks_the_mean_over_all_classes_where_votes_tie():
    """Two votes for 0, two for 4; the mean's favourite is 2, which nobody voted for."""
    members = np.array([[0.4, 0, 0.35, 0.25, 0]] * 2 + [[0, 0.25, 0.35, 0, 0.4]] * 2)[:, None]
    assert [int(voting.vote(members, rule)[0][0]) for rule in ("mean", "hard", "mix")] == [2, 0, 2]


def test_mix_follows_the_votes_where_one_class_alone_has_the_most():
    """Two faint votes for 1, one sure vote for 3: the votes win, the mean would not."""
    members = np.array([[0.3, 0.4, 0.3, 0], [0.3, 0.4, 0.3, 0], [0, 0, 0, 1.0]])[:, None]
    labels, table = voting.vote(members, "mix")
    assert labels.tolist() == [1]
    assert voting.vote(members, "mean")[0].tolist() == [3]
    assert np.sort(table[0])[-1] - np.sort(table[0])[-2] == pytest.approx(voting.LEAD)


def test_rows_that_their_label_leads_are_not_changed():
    members = np.random.default_rng(0).dirichlet(np.ones(5), size=(3, 200))
    mean = members.mean(0)
    for rule in voting.RULES:
        labels, table = voting.vote(members, rule)
        agreed = labels == mean.argmax(-1)
        assert agreed.mean() > 0.4
        assert np.allclose(table[agreed], mean[agreed], atol=1e-12)


def test_one_member_is_what_it_says_under_every_rule():
    member = np.random.default_rng(1).dirichlet(np.ones(5), size=(1, 50))
    for rule in voting.RULES:
        assert np.allclose(voting.vote(member, rule)[1], member[0], atol=1e-12)


@pytest.mark.parametrize(
    ("members", "rule", "message"),
    [
        (np.full((2, 1, 2), 0.5), "majority", "known: \\['hard', 'mean', 'mix', 'soft'\\]"),
        (np.full((0, 1, 2), 0.5), "mean", "at least one member"),
        (np.full((1, 2), 0.5), "mean", "expected \\(members, sites, classes\\)"),
        (np.full((1, 1, 2), np.nan), "mean", "not finite"),
        (np.full((1, 1, 2), 0.4), "hard", "do not sum to 1"),
    ],
)
def test_what_cannot_be_voted_on_is_refused(members, rule, message):
    with pytest.raises(ValueError, match=message):
        voting.vote(members, rule)
