"""The hook implementations of the peft plugin."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

from arctic_training.hookspecs import hookimpl

if TYPE_CHECKING:
    from arctic_training.config import KeyProblem


@hookimpl
def arctic_check_recipe(config: Any) -> Iterable[KeyProblem]:
    from arctic_peft.section import problems

    return list(problems(config))


@hookimpl
def arctic_configure(run: Any) -> None:
    """What a config class of peft refuses is told before data is prepared."""
    from arctic_peft.building import peft_config_of
    from arctic_peft.section import adapted_sections

    for path, section in () if run.only_prepares else adapted_sections(run.config):
        peft_config_of(section, path, run)


@hookimpl(wrapper=True)
def arctic_build_model(model_config: Any, config: Any, run: Any) -> Generator[None, Any, Any]:
    """Put the adapter on whatever model the others built, where its section asks for one."""
    model = yield
    if not getattr(config, "peft_config", None):
        return model
    from arctic_peft.building import adapted

    return adapted(model, config, run)
