"""Any Python can be tuned: `continua run examples/rosenbrock.yaml`."""

from trials.objective import LiveTrial


def objective(trial: LiveTrial) -> float:
    """Rosenbrock's valley; its least value, 0, lies at (1, 1)."""
    x, y = float(trial["x"] or 0), float(trial["y"] or 0)
    trial.report(0, distance=((x - 1) ** 2 + (y - 1) ** 2) ** 0.5)
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2
