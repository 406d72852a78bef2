"""``arctic run``: the recipe is checked here once, and then trained in this process or handed to a launcher's ranks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import attrs
import click

from arctic_cli.arguments import Words, divide
from arctic_cli.options import Settings, words_of_common_options
from arctic_training.errors import UsageError

if TYPE_CHECKING:
    from arctic_training.trainer_config import TrainerConfig

RESUME = "--resume"
WORDS = "arctic_cli.words"
"""Where a context keeps the divided command line."""


class RunCommand(click.Command):
    """A command whose unknown options belong to the launcher, which click alone cannot tell from its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with_value, flags = words_of_common_options()
        with_value |= {RESUME}
        if not {"-h", "--help"}.isdisjoint(args[: args.index("--")] if "--" in args else args):
            return super().parse_args(ctx, ["--help"])
        try:
            words = divide(args, with_value=with_value, flags=flags)
        except click.UsageError as error:
            error.ctx = ctx
            raise
        ctx.meta[WORDS] = words
        return super().parse_args(ctx, [*words.own, "--", words.recipe])


@click.command(
    cls=RunCommand,
    options_metavar="",
    epilog="\b\nExamples:\n  arctic run recipe.yaml optimizer.lr=1e-4\n  arctic run recipe.yaml --num_gpus 2",
)
@click.argument("recipe", metavar="RECIPE [key=value ...] [launcher arguments]")
@click.option(RESUME, metavar="PATH", help="Go on from a checkpoint, or from the newest of a directory of them.")
@click.pass_context
def run(context: click.Context, recipe: str, resume: str | None) -> None:
    """Train what RECIPE describes.

    key=value sets any key of the recipe. Arguments that arctic does not know (--num_gpus 2, --hostfile F, --include
    ...) go to the launcher, which starts one process a rank.
    """
    words = context.meta[WORDS]
    if resume is not None:
        if not resume.strip():  # an unset variable of a shell, which would name the working directory
            raise click.BadParameter("wants a path: a checkpoint, or a directory of them", context, param_hint=RESUME)
        words = attrs.evolve(words, overrides=(*words.overrides, f"resume={os.path.abspath(resume)}"))
    context.exit(train(words, context.obj))


def train(words: Words, settings: Settings) -> int:
    """Train in this process or through a launcher.

    Returns:
        The exit code.

    Raises:
        ArcticError: the recipe, a plugin, the data or training is at fault.
    """
    from arctic_training.distributed import wait_without_spinning

    wait_without_spinning()
    if is_rank():
        if words.launcher:
            raise UsageError(
                f"this process is a rank of a launcher already (RANK is set), so {words.launcher[0]} has no use",
                remedy="leave the launcher's arguments out, or start outside torchrun, srun and the like",
            )
        if os.environ.get("WORLD_SIZE") != "1":
            settings.speaker = f"rank {os.environ.get('RANK', '?')}"
        return train_here(configure(words, settings))
    config = configure(words, settings)
    config.plugin_manager.refuse_broken()  # before a directory is made for a run that cannot be
    from arctic_cli import launch

    launcher = launch.choose_launcher(config, words.launcher)
    return train_here(config) if launcher is None else launch.launch(launcher, config, words, settings)


def is_rank() -> bool:
    """Whether a launcher (ours, torchrun, srun) started this process as one of its ranks."""
    return "RANK" in os.environ or "WORLD_SIZE" in os.environ


def configure(words: Words, settings: Settings) -> TrainerConfig:
    """The resolved recipe. ``-q`` and ``-v`` are overrides too, that others on the command line win over."""
    from arctic_training.api import configure

    overrides = [*_overrides_of_verbosity(settings.verbosity), *words.overrides]
    return configure(
        words.recipe,
        overrides,
        block=settings.block,
        code=settings.code,
        trust=settings.trust,
        refuse_broken=True,
    )


def train_here(config: Any) -> int:
    """Train in this process.

    Returns:
        0; whatever goes wrong is raised.
    """
    from arctic_training.run import Run

    Run(config).execute()
    return 0


def _overrides_of_verbosity(verbosity: int) -> list[str]:
    if verbosity == 0:
        return []
    if verbosity < 0:
        return ["train_log_iter_interval=0", "loss_log_interval=0"]
    return ["logger.level=INFO" if verbosity == 1 else "logger.level=DEBUG"]
