"""Opposing pairs in a regression in one variable: is a pair an interval and its neighbours (§2.1, figure 3)?"""

from __future__ import annotations

import numpy as np


def interval_coverage(one: np.ndarray, other: np.ndarray, points: int) -> float:
    """How closely two groups of points on a line form an interval and its neighbours; 1 if they do.

    One group, I, is taken as the interval and the other, N, as its neighbours. The *span* runs from the lowest to the
    highest of all members and of the points next to I on either side. A point of the span is correct if it is a member
    of I, or a member of N that lies outside I's ends; the coverage is the fraction of correct points in the span. It is
    1 only if I has no gap, N holds the next point on each side of I (at an end of the line: on the one side there is),
    and together they have no gap. A point in neither group lowers the coverage, whether its loss moves or not, and so
    does a group in two parts.

    A single point is trivially an interval, and so are all points together. So the coverage is above 0 only if I has at
    least two points and the pair at most half of the ``points``. For two groups of three drawn at random from 20 points
    the mean is 0.32, and one draw in 12,000 has a coverage of 1.

    Args:
        one: ``[k]`` positions of the members of one group in the order of x, from 0 on.
        other: ``[k']`` those of the other group.
        points: N, the number of training points.

    Returns:
        The larger value over the two choices of I.
    """
    if 2 * (len(one) + len(other)) > points:
        return 0.0
    return max(_coverage(one, other, points), _coverage(other, one, points))


def _coverage(interval: np.ndarray, neighbours: np.ndarray, points: int) -> float:
    if len(interval) < 2:
        return 0.0
    low, high = int(interval.min()), int(interval.max())
    first = min(max(low - 1, 0), int(neighbours.min(initial=low)))
    last = max(min(high + 1, points - 1), int(neighbours.max(initial=high)))
    outside = int(((neighbours < low) | (neighbours > high)).sum())
    return (len(interval) + outside) / (last - first + 1)
