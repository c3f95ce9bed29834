"""Opposing pairs in a regression in one variable: is a pair an interval and its neighbours (§2.1, figure 3)?"""

from __future__ import annotations

import numpy as np


def interval_coverage(one: np.ndarray, other: np.ndarray, points: int) -> float:
    """How nearly two groups of points on a line are an interval and its neighbours; 1 if they are.

    One of the groups, I, is taken for the interval and the other, N, for its neighbours. The *span* reaches from the
    lowest to the highest of the members of both and of the points next to I on either side. A point of the span is as
    it should be if it is a member of I, or a member of N that lies outside I's ends; the coverage is the share of such
    points in the span. So 1 needs all of this: I has no gap, N holds the point on either side of it (at an end of the
    line: on the one side there is), and together they have no gap. Points that neither group holds lower the coverage
    whether their losses move or not, and so does a group in two parts.

    A single point is trivially an interval, and so are all points together: there is an interval to speak of, and the
    coverage is above 0, only where I has two points or more, and the pair at most half of the ``points``. For two
    groups of three drawn at random from 20 points the mean is 0.32, and one draw in 12,000 has a coverage of 1.

    Args:
        one: ``[k]`` positions of the members of a group in the order of x, from 0 on.
        other: ``[k']`` those of the other group.
        points: N, the number of training points.

    Returns:
        The larger value of the two choices of I.
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
