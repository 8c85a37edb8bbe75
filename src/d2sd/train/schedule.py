"""How long a stage trains, at which rates, on which objective."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Steps, learning rates and objective of one stage.

    Both rates rise over `warmup` steps, stay, and fall to 0 in a straight line over the last
    `cooldown` share of the steps. While they stay, `steps` can still be changed by resuming.
    """

    steps: int
    matrix_rate: float = 2e-3
    """For matrices, on the scale of AdamW's (Muon's update RMS is matched to it)."""
    vector_rate: float = 1e-3
    """AdamW's rate for norms."""
    warmup: int = 50
    cooldown: float = 0.3
    clip: float = 1.0
    """Largest length of the whole gradient."""
    optimizer: str = "muon"
    """Of the matrices: muon, or adamw."""
    objective: str = "soft:tau=4,hard=0.5"
    """A name and its options, as `parse_objective` reads them."""

    def factor(self, step: int) -> float:
        """Share of the rates at a step."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return min(1.0, (self.steps - step) / max(self.cooldown * self.steps, 1))

    def rates(self, step: int) -> tuple[float, float]:
        """The rates of matrices and of vectors at a step."""
        factor = self.factor(step)
        return self.matrix_rate * factor, self.vector_rate * factor
