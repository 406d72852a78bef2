"""What somebody else could have put there is not run or read unasked, and a run's own files are closed to others."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import stat
from pathlib import Path

import pytest

from arctic_training.api import get_config
from arctic_training.errors import CheckpointError, RecipeError
from arctic_training.manifest import verify
from arctic_training.trust import closed_to_others, written_by_others


@pytest.fixture
def give_away(monkeypatch):
    """Makes a file another user's: by root in truth, else by changing who asks."""

    def give(path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, 12345, -1)
        else:
            other = os.geteuid() + 1
            monkeypatch.setattr(os, "geteuid", lambda: other)

    return give


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "shared"
    path.mkdir()
    (path / "mine").write_text("")
    return path


def test_a_file_of_one_s_own_may_lie_anywhere(folder):
    folder.chmod(0o1777)
    assert written_by_others(folder / "mine") is None
    folder.chmod(0o777)
    assert written_by_others(folder / "mine") is None


def test_a_file_of_another_user_may_lie_where_only_they_could_put_it(folder, give_away):
    give_away(folder / "mine")
    assert written_by_others(folder / "mine") is None


def test_a_file_of_another_user_in_a_temporary_folder_could_be_anybody_s(folder, give_away):
    folder.chmod(0o1777)
    give_away(folder / "mine")
    assert "belongs to another user" in str(written_by_others(folder / "mine"))


def test_a_link_of_another_user_is_theirs_wherever_it_leads(folder, give_away, tmp_path):
    (folder / "link").symlink_to(tmp_path)
    folder.chmod(0o1777)
    if os.geteuid() == 0:
        os.lchown(folder / "link", 12345, -1)
    else:
        give_away(folder / "link")
    assert "belongs to another user" in str(written_by_others(folder / "link"))


def test_what_everybody_can_write_to_is_nobody_s(folder):
    (folder / "mine").chmod(0o666)
    assert "everybody can write" in str(written_by_others(folder / "mine"))


def test_code_beside_a_recipe_is_not_run_where_anybody_could_have_put_it(folder, give_away, arctic_home):
    marker = arctic_home / "ran"
    (folder / "train.py").write_text(f"open({str(marker)!r}, 'w')")
    (folder / "recipe.yaml").write_text(
        "{type: tiny, plugins: {use: [arctic_training.testing.tiny]}, model: {}, data: {sources: [{type: tiny}]}}"
    )
    folder.chmod(0o1777)
    give_away(folder / "train.py")
    with pytest.raises(RecipeError, match=r"belongs to another user.*--trust"):
        get_config(folder / "recipe.yaml")
    assert not marker.exists()
    assert get_config(folder / "recipe.yaml", code=False).loaded_code is None
    config = get_config(folder / "recipe.yaml", trust=True)
    assert config.trusted
    assert marker.exists()


def test_a_checkpoint_that_everybody_can_write_to_is_not_gone_on_from(run_recipe, tiny_recipe, arctic_home):
    tiny_recipe |= {"train_iters": 2, "checkpoint": {"output_dir": "kept", "save_end_of_training": True}}
    run_recipe(tiny_recipe)
    tiny_recipe |= {"train_iters": 4, "checkpoint": {"output_dir": "kept", "auto_resume": True}}
    manifest = arctic_home / "kept/global_step_2/manifest.json"
    manifest.chmod(0o666)
    with pytest.raises(CheckpointError, match=r"its manifest vouches for nothing\n.*chmod -R o-w.*--trust"):
        run_recipe(tiny_recipe)
    manifest.chmod(0o644)
    assert [line["step"] for line in run_recipe(tiny_recipe).metrics if line["kind"] == "train"] == [3, 4]


def test_trust_goes_on_from_it_all_the_same(run_recipe, tiny_recipe, arctic_home, plugin_manager):
    from arctic_training.recipe import load_recipe
    from arctic_training.resolve import resolve
    from arctic_training.run import Run

    tiny_recipe |= {"train_iters": 2, "checkpoint": {"output_dir": "kept", "save_end_of_training": True}}
    run_recipe(tiny_recipe)
    (arctic_home / "kept/global_step_2").chmod(0o777)
    tiny_recipe |= {"train_iters": 4, "checkpoint": {"output_dir": "kept", "auto_resume": True}}
    run = Run(resolve(load_recipe(tiny_recipe), plugin_manager, trust=True))
    run.execute()
    assert run.first_step == 2


@pytest.mark.parametrize(("umask", "left"), [(0o000, 0o022), (0o002, 0o002), (0o077, 0o077), (0o020, 0o022)])
def test_only_a_umask_that_lets_everybody_write_is_changed(umask, left):
    before = os.umask(umask)
    try:
        with closed_to_others():
            during = os.umask(umask)
            os.umask(during)
        after = os.umask(umask)
    finally:
        os.umask(before)
    assert (during, after) == (left, umask)


def test_nothing_that_a_run_writes_is_open_for_everybody(run_recipe, tiny_recipe, arctic_home):
    tiny_recipe |= {"train_iters": 1, "checkpoint": {"output_dir": "kept", "save_end_of_training": True}}
    before = os.umask(0)
    try:
        run = run_recipe(tiny_recipe)
    finally:
        os.umask(before)
    written = [*run.run_dir.rglob("*"), run.run_dir, *(arctic_home / "kept").rglob("*"), arctic_home / "kept"]
    written += (arctic_home / "arctic-home").rglob("*")
    assert len(written) > 12
    assert not [path for path in written if path.stat().st_mode & (stat.S_IWOTH | stat.S_IWGRP)]


class Marks:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_a_forged_manifest_vouches_for_is_not_run(run_recipe, tiny_recipe, arctic_home):
    tiny_recipe |= {"train_iters": 2, "checkpoint": {"output_dir": "kept", "save_end_of_training": True}}
    run_recipe(tiny_recipe)
    forged = pickle.dumps(Marks(arctic_home / "ran"), protocol=2)
    folder = arctic_home / "kept/global_step_2"
    (folder / "engine.pt").write_bytes(forged)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "engine.pt" in manifest["files"]
    manifest["files"]["engine.pt"] = [len(forged), hashlib.sha256(forged).hexdigest()]
    del manifest["sha256"]
    manifest["format"] = 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    tiny_recipe |= {"train_iters": 4, "checkpoint": {"output_dir": "kept", "auto_resume": True}}
    with pytest.raises(CheckpointError):
        run_recipe(tiny_recipe)
    assert not (arctic_home / "ran").exists()


@pytest.mark.parametrize("name", ["engine-2.pt", "deepspeed/zero_pp_rank_1_mp_rank_00_optim_states.pt", "rows.pkl"])
def test_a_pickle_that_was_added_to_a_checkpoint_spoils_it(run_recipe, tiny_recipe, arctic_home, name):
    tiny_recipe |= {"train_iters": 2, "checkpoint": {"output_dir": "kept", "save_end_of_training": True}}
    run_recipe(tiny_recipe)
    folder = arctic_home / "kept/global_step_2"
    (folder / "notes.txt").write_text("the best so far")
    assert verify(folder) is None
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(Marks(arctic_home / "ran")))
    assert verify(folder) == f"{name} is not in its manifest"


def test_a_run_directory_that_everybody_can_write_to_is_told(run_recipe, tiny_recipe, arctic_home, capsys):
    (arctic_home / "open").mkdir()
    (arctic_home / "open").chmod(0o777)
    run_recipe({**tiny_recipe, "train_iters": 1, "run_dir": "open"})
    assert "warning: run_dir: everybody can write to" in capsys.readouterr().err
