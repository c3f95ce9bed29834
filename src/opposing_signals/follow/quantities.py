"""The quantities that following a training adds to its record, beside ``sample_loss``, ``train_loss`` and λ."""

from __future__ import annotations

BATCH_LOSS = "batch_loss"
"""``[W]``: loss of each example of the training batch, from the training forward; NaN behind the last. If there are
more than W, those of the largest loss."""

BATCH_INDEX = "batch_index"
"""``[W]`` int64: where each of them stands in the data set; -1 where that is not known."""

BATCH_SIZE = "batch_size"
"""Examples in the batches of the step; -1 where that is not known."""

GRADIENT_NORM = "gradient_norm"
"""Euclidean norm of the step's gradient, before it is clipped."""

LEARNING_RATE = "learning_rate"
"""Of the first parameter group, as the step uses it."""

TRAIN_LOSS = "train_loss"
"""The training step's own loss; the mean of ``batch_loss`` where that is not known."""

SAMPLE_LOSS = "sample_loss"
"""``[N]``: losses of the tracking set at θ_t, in evaluation mode."""
