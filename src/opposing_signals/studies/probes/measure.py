"""Jobs on the data alone: each fills the record of one run without training."""

from __future__ import annotations

from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from opposing_signals.configuration import refuse_seed
from opposing_signals.data.dataset import Dataset
from opposing_signals.data.probes import named_colour, nearest_to_colour
from opposing_signals.errors import InputError
from opposing_signals.provenance import recording
from opposing_signals.record import Record
from opposing_signals.record.quantities import COLOUR, NEIGHBOUR, NEIGHBOUR_DISTANCE


def colour_neighbours(config: DictConfig, record: Record, logger: Any) -> None:  # noqa: ARG001 (jobs have one signature)
    """The training images closest to blocks of one colour (figure 12).

    ``neighbours``: ``colours``, names as for `named_colour`, and the ``count`` of images. Records for the i-th colour
    at step i ``colour`` ``[3]`` uint8, ``neighbour`` ``[count]``, indices of training images, the nearest first, and
    ``neighbour_distance`` ``[count]``, see `nearest_to_colour`.

    Raises:
        InputError: An unknown colour, no list of colours, a count outside 1 to N, data without pictures, or a seed,
            which would change nothing.
    """
    refuse_seed(config)
    dataset: Dataset = instantiate(config.data)
    colours, count = config.neighbours.colours, config.neighbours.count
    if dataset.images is None:
        raise InputError(f"neighbours of a colour need data with pictures, and {dataset.name} has none")
    if not colours or not OmegaConf.is_list(colours):
        raise InputError(f"neighbours.colours={colours}: expected a list of one or more, such as [green]")
    if not isinstance(count, int) or not 1 <= count <= len(dataset):
        raise InputError(f"neighbours.count={count}: expected 1 to {len(dataset)}, the number of training images")
    with recording(record, {"name": dataset.name, "sha256": dataset.checksum, "examples": len(dataset)}):
        for index, name in enumerate(colours):
            colour = named_colour(str(name), dataset)
            nearest, distances = nearest_to_colour(dataset, colour, count)
            record.append(COLOUR, index, np.array(colour, np.uint8))
            record.append(NEIGHBOUR, index, nearest)
            record.append(NEIGHBOUR_DISTANCE, index, distances)
