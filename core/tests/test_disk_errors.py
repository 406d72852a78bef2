"""What is said where a file of the run does not fit on its disk; on disks that are really full in tests/."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from arctic_training import column_files
from arctic_training.disk_errors import explained, naming
from arctic_training.errors import ArcticError, DiskError

FULL = Path("/dev/full")

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is always full")


def test_a_record_that_does_not_fit_ends_the_run_with_its_path_and_what_is_free(run_recipe, tiny_recipe, capsys):
    with pytest.raises(DiskError) as caught:
        run_recipe(tiny_recipe | {"checkpoint": [], "train_log_metrics_path": str(FULL)})
    assert caught.value.exit_code == 5
    assert caught.value.message == "No space left on device: /dev/full"
    assert " were to be written, and " in caught.value.remedy
    assert caught.value.remedy.endswith(" are free: free some space")


def test_prepared_data_that_does_not_fit_names_the_key_that_moves_it(run_recipe, tiny_recipe, arctic_home, monkeypatch):
    monkeypatch.setattr(column_files, "open", lambda path, mode: open(FULL, mode), raising=False)  # noqa: SIM115
    with pytest.raises(DiskError) as caught:
        run_recipe(tiny_recipe)
    assert caught.value.message.startswith(f"No space left on device: {arctic_home}")
    assert caught.value.remedy.endswith(
        "free some space, or set data.cache_dir or ARCTIC_HOME to a directory with more"
    )


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.EFBIG, DiskError, "raise the limit of file sizes (ulimit -f)"),
        (errno.EDQUOT, DiskError, "free some space of your quota"),
        (errno.EROFS, DiskError, "set run_dir to a directory that you may write to"),
        (errno.EACCES, ArcticError, "set run_dir to a directory that you may write to"),
    ],
)
def test_what_else_keeps_a_file_from_being_written_has_a_remedy_of_its_own(run_recipe, tiny_recipe, number, kind, said):
    run = run_recipe(tiny_recipe | {"checkpoint": []})
    with pytest.raises(OSError, match=os.strerror(number)) as caught, naming(run.run_dir / "run.json"):
        raise OSError(number, os.strerror(number))
    told = explained(caught.value, run)
    assert type(told) is kind
    assert str(told).startswith(f"{os.strerror(number)}: {run.run_dir}/run.json\n")
    assert said in told.remedy
