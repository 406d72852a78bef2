"""The arithmetic of Muon, and of AdamW for what is no matrix, in one optimizer: engines and checkpoints have one.

Muon: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. Its update is scaled to the
root mean square of AdamW's, so that one learning rate serves both: Liu et al., 2025, arXiv:2502.16982.
"""

from __future__ import annotations

from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: chosen by its authors for a steep slope at 0, so that few iterations do."""
ADAMW_RMS = 0.2
"""The root mean square of an update of AdamW, as arXiv:2502.16982 measured it."""


class Muon(torch.optim.Optimizer):
    """Steps groups with ``orthogonal: True`` by Muon, all others by AdamW.

    For a matrix W of shape (m, n) with gradient G, momentum M and rate r:

        M <- mu M + (1 - mu) G
        U = NewtonSchulz((1 - mu) G + mu M)   with Nesterov, else of M
        W <- (1 - r decay) W - r 0.2 sqrt(max(m, n)) U
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        momentum: float,
        nesterov: bool,
        newton_schulz_steps: int,
        eps: float = 1e-8,
    ) -> None:
        self.newton_schulz_steps = newton_schulz_steps
        defaults = {"lr": lr, "betas": betas, "momentum": momentum, "nesterov": nesterov, "eps": eps}
        super().__init__(groups, defaults | {"weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self) -> None:
        """Step every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    (self._step_matrix if group["orthogonal"] else self._step_adam)(parameter, group)

    def _step_matrix(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
        scale = ADAMW_RMS * max(parameter.shape) ** 0.5
        parameter.add_(orthogonalised(update, self.newton_schulz_steps), alpha=-group["lr"] * scale)

    def _step_adam(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step = state["step"].item()
        mean = state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        denominator = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(mean, denominator, value=-group["lr"] / (1 - beta1**step))


def orthogonalised(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """A matrix with the singular vectors of this one and singular values near 1, by Newton-Schulz iterations.

    Args:
        matrix: of shape (m, n).
        steps: iterations; five bring all but the smallest singular values between 0.7 and 1.2.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.mT
    if matrix.is_cuda:
        x = x.bfloat16()  # its authors measured that this is enough
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrix.dtype)
