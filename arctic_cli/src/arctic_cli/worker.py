"""What a launcher starts once a rank: the same run, with its errors said in one line that names the rank."""

from __future__ import annotations

import atexit
import os
import socket
import sys

if __name__ == "__main__":
    # Python puts the folder of this file first, where our modules would be found as `run`, `plugins` and the like;
    # PYTHONSAFEPATH keeps it from doing so.
    sys.path[:1] = [folder for folder in sys.path[:1] if folder != os.path.dirname(os.path.abspath(__file__))]

import click

from arctic_cli.arguments import Words
from arctic_cli.errors import guarded
from arctic_cli.options import Settings, with_common_options
from arctic_cli.run import configure, train_here


def main(words: list[str] | None = None) -> int:
    """Train as the rank that the environment says.

    Returns:
        The exit code.
    """
    watch_parent()
    wait_without_spinning()
    settings = Settings(speaker=f"rank {os.environ.get('RANK', '?')}")
    command = with_common_options(worker)
    return guarded(lambda: command.main(args=words, prog_name="worker", standalone_mode=False, obj=settings), settings)


@click.command()
@click.option("--run-dir", help="Directory of the run, chosen by the parent.")
@click.option("--parent-host", help="Machine of the parent, which reads what ranks there write down.")
@click.option("--local_rank", "--local-rank", expose_value=False, help="Taken and ignored: the environment says it.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@click.pass_obj
def worker(
    settings: Settings, run_dir: str | None, parent_host: str | None, recipe: str, overrides: tuple[str, ...]
) -> None:
    """Train RECIPE as one rank."""
    settings.parent_tells = parent_host == socket.gethostname()
    if run_dir:
        os.environ["ARCTIC_RUN_DIR"] = run_dir
    train_here(configure(Words(recipe, overrides), settings))


def wait_without_spinning() -> None:
    """Before anything imports torch: let this rank's threads sleep while they wait."""
    from arctic_training.distributed import wait_without_spinning

    wait_without_spinning()


def watch_parent() -> None:
    """End this process should the launcher die without a word, so that no rank is left behind."""
    from arctic_training.orphans import watch_parent

    watch_parent()


def end(code: int) -> None:
    """End this rank with a code that nothing can change any more.

    Threads of the libraries sometimes abort an interpreter that shuts down, after all is done and written.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    end(main())
