"""The whole idea in one file of plain PyTorch: opposing signals on handwritten digits, in about a minute.

    python examples/minimal.py        # writes opposing_signals.png; needs torch, scikit-learn, matplotlib

Full-batch gradient descent on a small network. Every training example's loss is kept at each step; the forward pass
computes it anyway. Then, as in §2 of Rosenfeld and Risteski (arXiv 2311.04163), take one step and find the examples
whose loss rises most and those whose loss falls most. The two groups are outliers with a strong common feature that
pulls in opposite directions: what helps one harms the other. Once the step size is too large for the curvature along
that feature, their losses alternate at every step. The train loss barely shows it.

The package adds what this file lacks: tests against chance, exact curvature at every step, any model and optimizer,
and runs that resume.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

STEPS, STEP_SIZE, GROUP = 300, 0.25, 20
MEASURE_EVERY = 5
COLOURS = ("#d95f02", "#1b6ca8")


def main() -> None:
    """Train, find the groups, draw them."""
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images / 8 - 1, dtype=torch.float32)
    targets = torch.tensor(labels)
    losses, sharpness = train(inputs, targets)
    step, rising, falling = opposing_groups(np.diff(losses, axis=0))
    correlation = correlation_of(losses, rising, falling, step)
    for name, group in (("rises", rising), ("falls", falling)):
        digits, counts = np.unique(labels[group], return_counts=True)
        of_each = ", ".join(f"{count} of digit {digit}" for digit, count in zip(digits, counts, strict=True))
        print(f"at step {step} the loss of these {name}: {of_each}")
    print(f"correlation of the two groups' one-step changes around it, that step left out: {correlation:.2f}")
    draw(losses, sharpness, images, step, (rising, falling))


def train(inputs: Tensor, targets: Tensor) -> tuple[np.ndarray, list[tuple[int, float]]]:
    """Gradient descent on all examples.

    Returns:
        ``[STEPS, N]`` every example's loss before each step, and (step, sharpness) where it was measured.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    parameters = list(model.parameters())
    direction = [torch.randn_like(p) for p in parameters]
    history, sharpness = [], []
    for step in range(STEPS):
        sample_losses = cross_entropy(model(inputs), targets, reduction="none")
        gradient = torch.autograd.grad(sample_losses.mean(), parameters, create_graph=True)
        history.append(sample_losses.detach().numpy())
        if step % MEASURE_EVERY == 0:
            value, direction = top_eigenvalue(gradient, parameters, direction)
            sharpness.append((step, value))
        with torch.no_grad():
            for parameter, slope in zip(parameters, gradient, strict=True):
                parameter -= STEP_SIZE * slope
    return np.array(history), sharpness


def top_eigenvalue(
    gradient: tuple[Tensor, ...], parameters: list[nn.Parameter], direction: list[Tensor], products: int = 20
) -> tuple[float, list[Tensor]]:
    """The Hessian's top eigenpair, by power iteration from the last eigenvector (Pearlmutter's product)."""
    value = 0.0
    for _ in range(products):
        length = torch.sqrt(sum((d * d).sum() for d in direction))
        direction = [d / length for d in direction]
        slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
        product = torch.autograd.grad(slope, parameters, retain_graph=True)
        value = float(sum((p * d).sum() for p, d in zip(product, direction, strict=True)))
        direction = [p.detach() for p in product]
    return value, direction


def opposing_groups(changes: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """The step at which the largest rises and falls are furthest apart, and the examples behind them.

    The first tenth of the steps is left out: there the loss falls everywhere, and nothing oscillates yet.

    Args:
        changes: ``[T, N]`` change of each example's loss in each step.
    """
    ordered = np.sort(changes, axis=1)
    gaps = ordered[:, -GROUP:].mean(1) - ordered[:, :GROUP].mean(1)
    gaps[: len(gaps) // 10] = 0
    step = int(gaps.argmax())
    order = np.argsort(changes[step])
    return step, order[::-1][:GROUP], order[:GROUP]


def correlation_of(losses: np.ndarray, rising: np.ndarray, falling: np.ndarray, step: int, reach: int = 15) -> float:
    """Pearson's correlation of the groups' mean one-step changes; the step at which they were chosen is left out."""
    changes = np.diff(losses, axis=0)
    first = max(0, step - reach)
    window = np.delete(changes[first : step + reach], step - first, axis=0)
    return float(np.corrcoef(window[:, rising].mean(1), window[:, falling].mean(1))[0, 1])


def draw(
    losses: np.ndarray,
    sharpness: list[tuple[int, float]],
    images: np.ndarray,
    step: int,
    groups: tuple[np.ndarray, np.ndarray],
) -> None:
    """Draw the losses of all examples and of the groups, the sharpness, and the groups' images."""
    figure = plt.figure(figsize=(12, 6.5), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=[1.2, 1])
    curves, zoom = figure.add_subplot(grid[0, :3]), figure.add_subplot(grid[1, :2])
    names = (f"the {GROUP} that rise most at step {step}", f"the {GROUP} that fall most")
    near = slice(max(0, step - 12), step + 13)
    for axes, rows in ((curves, slice(0, len(losses))), (zoom, near)):
        shown = np.arange(len(losses))[rows]
        axes.plot(shown, losses[rows].mean(1), color="black", label="all examples")
        for group, colour, name, style in zip(groups, COLOURS, names, ("-", "--"), strict=True):
            axes.plot(shown, losses[rows][:, group].mean(1), style, color=colour, label=name, linewidth=1)
        axes.set(xlabel="step", ylabel="mean loss")
    curves.set_title(f"MLP on {len(images):,} digits, gradient descent, η = {STEP_SIZE}")
    curves.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)
    zoom.set_title("the same, around that step")
    edge = figure.add_subplot(grid[0, 3])
    edge.plot(*zip(*sharpness, strict=True), color="#555555")
    edge.axhline(2 / STEP_SIZE, color="black", linestyle=":")
    edge.set(title="sharpness λ; dotted: 2/η", xlabel="step", ylim=(0, None))
    for column, (group, colour, name) in enumerate(zip(groups, COLOURS, ("rising", "falling"), strict=True), 2):
        axes = figure.add_subplot(grid[1, column])
        tiles = np.pad(images[group].reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
        axes.imshow(tiles.reshape(4, 5, 10, 10).transpose(0, 2, 1, 3).reshape(40, 50), cmap="gray_r")
        axes.set_title(name, color=colour)
        axes.set_axis_off()
    figure.savefig("opposing_signals.png", dpi=120)
    print("drawn: opposing_signals.png")


if __name__ == "__main__":
    main()
