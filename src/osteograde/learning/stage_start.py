"""A net that starts from the finished net of another stage: transfer from one locator or grader of a recipe to another.

Both nets are of the same fold, so they were trained on the same patients, and no study that is held out was seen.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from osteograde.errors import UserError
from osteograde.models.bundle import build_net, load_net

TRUNK = "encoder."

log = logging.getLogger("osteograde.learning")


def net_from_stage(config: Mapping[str, Any], source: Path, source_config: Mapping[str, Any]) -> nn.Module:
    """The net of a config with the weights and statistics of another stage's net.

    source: the file of that net, which ``source_config`` rebuilds. Every tensor is taken over that has the same name
    and the same shape in both: the whole trunk, and of the head what fits. The rest keeps its random start. UserError
    where a tensor of the trunk does not fit.
    """
    net = build_net(dict(config))
    own, given = net.state_dict(), load_net(source, source_config).state_dict()
    fits = {key: value for key, value in given.items() if key in own and own[key].shape == value.shape}
    if lost := [key for key in own if key.startswith(TRUNK) and key not in fits]:
        raise UserError(
            f"{source}: {len(lost)} tensors of the trunk do not fit the net that starts from it, first {lost[0]}; "
            "both stages need the same trunk"
        )
    net.load_state_dict({**own, **fits})
    log.info("%d of %d tensors start from %s", len(fits), len(own), source)
    return net
