"""What the nets of a grader are told of its sites beside the images, and which of these answers are in doubt for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from osteograde.models.covariates import Values, features_of
from osteograde.tasks.covariates import values_of
from osteograde.tasks.spec import Study

UNKNOWN = "covariates_unknown"  # flag code: nothing that the nets read of the row is known
NEW_VALUE = "covariate_unseen"  # flag code: a category that the training data did not have; it counts as unknown

Row = tuple[Study, str]  # a study and one of its targets


def inputs_of(net: nn.Module, rows: Sequence[Row], device: torch.device) -> tuple[Values, ...]:
    """What a net is given behind the crops of the rows: their values, (S,) each; nothing where it reads none."""
    features = features_of(net)
    if features is None:
        return ()
    values = values_of(features.reads, rows)
    return ({name: torch.from_numpy(column).to(device) for name, column in values.items()},)


def doubts_of(nets: Sequence[nn.Module], rows: Sequence[Row]) -> list[Counter[str]]:
    """Codes of every row: UNKNOWN where no net knows any of its covariates, NEW_VALUE and how many of the covariates
    have values that no net knows. Empty where the nets read none."""
    read = [features for net in nets if (features := features_of(net)) is not None]
    codes = [Counter[str]() for _ in rows]
    if not read or not rows:
        return codes
    known: dict[str, np.ndarray] = {}  # covariate -> (S,) whether any net knows the value
    for features in read:
        values = values_of(features.reads, rows)
        device = features.mean.device
        _, missing = features.columns({name: torch.from_numpy(v).to(device) for name, v in values.items()}, len(rows))
        for c, covariate in enumerate(features.reads):
            known[covariate.name] = known.get(covariate.name, False) | ~missing[:, c].cpu().numpy()
    for s, (study, target) in enumerate(rows):
        given = {name for name, values in study.covariates.items() if target in values or "" in values}
        unseen = sum(name in given and not column[s] for name, column in known.items())
        codes[s].update({UNKNOWN: not any(column[s] for column in known.values()), NEW_VALUE: unseen})
    return [+one for one in codes]
