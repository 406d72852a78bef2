"""ZeRO stage 0 in 16 bits: fp32 master weights on every rank, and gradients that are added up and reduced in fp32.

DeepSpeed's own optimizers for this case add gradients up in 16 bits, decay the weights once before the first step, and
forget the loss scale, so under stage 0 DeepSpeed drives a plain optimizer over the master weights that stand here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class MasterWeights:
    """fp32 copies of a model's 16-bit parameters, in the optimizer's place of them.

    The gradient of a 16-bit parameter is kept in fp32 (``grad_dtype``), so DeepSpeed reduces it in fp32 as well, and
    its master copy steps with the very same tensor.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the copies into the optimizer's groups; the model must be on its device already."""
        import torch

        self.master_of: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
        for group in optimizer.param_groups:
            for position, parameter in enumerate(group["params"]):
                if parameter.dtype in (torch.bfloat16, torch.float16):
                    parameter.grad_dtype = torch.float32
                    master = torch.nn.Parameter(parameter.detach().float())
                    self.master_of[parameter] = group["params"][position] = master

    def read_model(self) -> None:
        """Take the values of the model's parameters over."""
        import torch

        with torch.no_grad():
            for parameter, master in self.master_of.items():
                master.copy_(parameter)

    def take_gradients(self) -> None:
        """Give each master copy the gradient of its parameter."""
        for parameter, master in self.master_of.items():
            master.grad = parameter.grad

    def write_back(self) -> None:
        """Round the master copies into the model."""
        import torch

        with torch.no_grad():
            for parameter, master in self.master_of.items():
                parameter.copy_(master)

    def clear(self) -> None:
        """Forget all gradients."""
        for parameter, master in self.master_of.items():
            parameter.grad = master.grad = None

    def state_dict(self) -> list[torch.Tensor]:
        """The master copies, in the optimizer's order."""
        return [master.detach() for master in self.master_of.values()]

    def load_state_dict(self, state: list[Any]) -> None:
        """Go on with what ``state_dict`` gave."""
        for master, saved in zip(self.master_of.values(), state, strict=True):
            master.data.copy_(saved)
