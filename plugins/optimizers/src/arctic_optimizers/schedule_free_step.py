"""Schedule-free AdamW's step (Defazio et al., 2024, arXiv:2405.15682), in a module of its own because it needs torch at
once.

There are three points: z takes the steps, x is the average of z, and y = (1 - beta1) z + beta1 x is where gradients are
taken. The model holds y while it trains and x, the result, while it is evaluated and saved; z is kept beside it. Every
parameter has its own counts, so that flat parts, other groups and other engines can go on with them.
"""

from __future__ import annotations

from typing import Any

import torch

KEPT = "training_point"
"""What keeps y while the model holds x, so that coming back rounds nothing."""


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """AdamW whose iterates are averaged, with weights that are the squares of their learning rates.

    Args:
        groups: of parameters, each with its ``weight_decay``; decay is taken at y.
        lr: learning rate; a schedule may warm it up, and need not lower it.
        betas: weight of x in y, and decay rate of the running mean of squared gradients.
        eps: what is added to the root of that mean.
    """

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float], eps: float = 1e-8) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, group)

    @torch.no_grad()
    def use_average(self) -> None:
        """Let the parameters hold x."""
        for parameter, state in self.state.items():
            if KEPT not in state:
                state[KEPT] = parameter.detach().clone()
                parameter.lerp_(state["z"], 1 - 1 / self.defaults["betas"][0])

    @torch.no_grad()
    def use_training_point(self) -> None:
        """Let the parameters hold y again."""
        for parameter, state in self.state.items():
            if KEPT in state:
                parameter.copy_(state.pop(KEPT))

    def _step_one(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state, gradient, rate, (beta1, beta2) = self.state[parameter], parameter.grad, group["lr"], group["betas"]
        assert gradient is not None
        if not state:
            state["z"] = parameter.detach().clone()
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"], state["weight_sum"] = 0, 0.0
        state["step"] += 1
        state["weight_sum"] += rate * rate
        share = rate * rate / state["weight_sum"] if state["weight_sum"] else 0.0
        squares = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = squares.div(1 - beta2 ** state["step"]).sqrt_().add_(group["eps"])
        direction = gradient.div(scale).add_(parameter, alpha=group["weight_decay"])
        # With z' = z - rate d and x' = (1 - share) x + share z', y' follows from y and z without x.
        parameter.lerp_(state["z"], share).add_(direction, alpha=rate * (beta1 * (1 - share) - 1))
        state["z"].sub_(direction, alpha=rate)
