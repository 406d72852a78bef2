"""``arctic data`` shows what a recipe trains on; ``arctic cache`` shows, explains and clears what is kept of it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from arctic_cli.legacy import main as arctic_training

KEY = "0" * 32


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files of a test, which should be as empty in the end as it was."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def entries_folder(arctic_home):
    return arctic_home / "arctic-home" / "data"


def kept(arctic, *words):
    return json.loads(arctic("cache", "ls", "--json", *words).out)


def test_data_prints_the_figures_of_what_it_prepared(arctic, recipe):
    done = arctic("data", str(recipe))
    assert done.code == 0
    assert done.out.startswith("train: 64 rows\n")
    for line in ("rows read       64", "tokens          1,750", "trained tokens  1,686 (96.3%)", "longest 53"):
        assert line in done.out
    assert "33 to 64 tokens         24  ####" in done.out


def test_data_speaks_of_data_and_not_of_a_run_that_is_none(arctic, recipe, temporary, arctic_home):
    for words in (("data", str(recipe)), ("cache", "explain", str(recipe))):
        done = arctic(*words)
        assert "arctic: data of tiny" in done.err
        assert "engine:" not in done.err
        assert str(temporary) not in done.out + done.err
    assert list(temporary.iterdir()) == []
    assert not (arctic_home / "run").exists()


def test_data_writes_neither_metrics_nor_logs_where_the_recipe_wants_those_of_its_runs(arctic, recipe, arctic_home):
    recipe.write_text(recipe.read_text() + "train_log_metrics_path: metrics.jsonl\nlogger: {output_dir: logs}\n")
    before = set(arctic_home.iterdir())
    assert arctic("data", str(recipe)).code == 0
    assert {path.name for path in set(arctic_home.iterdir()) - before} == {"arctic-home"}


def test_a_second_time_and_a_run_use_what_is_kept(arctic, recipe):
    arctic("data", str(recipe))
    (entry,) = kept(arctic)
    assert arctic("data", str(recipe), "data.fail_on_missing_cache=true").code == 0
    assert arctic("run", str(recipe), "data.fail_on_missing_cache=true").code == 0
    assert [other["key"] for other in kept(arctic)] == [entry["key"]]


def test_rows_are_shown_with_brackets_around_what_is_trained_in_a_pipe(arctic, recipe):
    done = arctic("data", str(recipe), "--show", "2")
    assert "--- train row 0: 4 tokens, 3 trained\ne[[ins]]\n" in done.out
    assert "--- train row 1: 9 tokens, 8 trained\ne[[ins zwei]]\n" in done.out
    assert "train row 2" not in done.out


def test_rows_are_shown_in_colour_on_a_terminal(recipe):
    reader, writer = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    words = [sys.executable, "-m", "arctic_cli", "data", str(recipe), "--show", "1"]
    done = subprocess.Popen(words, stdout=writer, stderr=subprocess.DEVNULL, env=environment | {"TERM": "xterm"})
    os.close(writer)
    printed = b""
    try:
        while block := os.read(reader, 4096):
            printed += block
    except OSError:  # what a terminal says when the other side has gone
        pass
    os.close(reader)
    assert done.wait(60) == 0
    assert b"e\x1b[32mins\x1b[0m" in printed
    assert b"[[" not in printed


def test_json_holds_the_figures_and_the_rows_that_were_asked_for(arctic, recipe):
    facts = json.loads(arctic("data", str(recipe), "--json").out)["train"]
    assert (facts["rows"], facts["tokens"], facts["counts"]) == (64, 1750, {"rows read": 64, "rows kept": 64})
    assert "shown" not in facts
    shown = json.loads(arctic("data", str(recipe), "--json", "--show", "1").out)["train"]["shown"]
    stretches = [{"text": "e", "trained": False}, {"text": "ins", "trained": True}]
    assert shown == [[{"tokens": 4, "trained_tokens": 3, "stretches": stretches}]]


def test_a_split_is_chosen_by_its_name(arctic, recipe, temporary):
    evaluation = ("data.eval_sources=[{type: tiny, name: short, texts: [one]}]", "eval_interval=1")
    assert list(json.loads(arctic("data", str(recipe), *evaluation, "--json").out)) == ["train", "short"]
    assert arctic("data", str(recipe), *evaluation, "--split", "short").out.startswith("short: 1 row\n")
    wrong = arctic("data", str(recipe), *evaluation, "--split", "long")
    assert wrong.code == 2
    assert "--split is one of train, short" in wrong.err
    assert list(temporary.iterdir()) == []


def test_what_goes_wrong_has_the_exit_codes_of_a_run(arctic, recipe, temporary):
    assert arctic("data", str(recipe), "modle=1").code == 2
    assert arctic("data", "nowhere.yaml").code == 2
    assert list(temporary.iterdir()) == []
    failed = arctic("data", str(recipe), "data.fail_on_missing_cache=true")
    assert failed.code == 4
    assert "not cached" in failed.err
    assert str(temporary) not in failed.err
    assert list(temporary.iterdir()) == []


def test_data_that_would_be_streamed_is_prepared_to_be_looked_at(arctic, recipe):
    words = ("data.streaming=true", "data.stream_buffer=50", "data.weight_by=rows")
    assert arctic("data", str(recipe), *words).out.startswith("train: 64 rows\n")


def test_process_data_is_the_same_under_its_old_name(arctic, recipe):
    assert arctic("process-data", str(recipe), program=arctic_training).out == arctic("data", str(recipe)).out
    shown = arctic("process-data", "--help", program=arctic_training)
    assert shown.code == 0
    assert "Usage: arctic_training process-data" in shown.out


def test_ls_shows_what_is_kept_and_says_where(arctic, recipe, entries_folder):
    assert arctic("cache", "ls").out == f"0 entries, 0 B in {entries_folder}\n"
    arctic("data", str(recipe))
    lines = arctic("cache", "ls").out.splitlines()
    assert lines[0].split() == ["KEY", "SPLIT", "STATE", "SIZE", "LAST", "USED", "RECIPE"]
    (entry,) = kept(arctic)
    assert lines[1].startswith(f"{entry['key']}  train  whole")
    assert lines[1].endswith("recipe.yaml")
    assert lines[2].startswith("1 entry, ")
    assert entry["bytes"] == sum(file.stat().st_size for file in Path(entry["path"]).iterdir())


def test_entries_of_another_directory_are_shown_when_it_is_named(arctic, recipe, arctic_home):
    arctic("data", str(recipe), "data.cache_dir=elsewhere")
    assert kept(arctic) == []
    assert len(kept(arctic, "--dir", "elsewhere")) == 1


def test_explain_tells_what_differs_from_the_nearest_entry(arctic, recipe):
    assert "nothing else that was prepared for it is kept" in arctic("cache", "explain", str(recipe)).out
    arctic("data", str(recipe), "data.max_length=20")
    arctic("data", str(recipe), "data.max_length=20", "data.seed=7", "data.on_bad_row=skip")
    done = arctic("cache", "explain", str(recipe))
    assert done.code == 0
    first, nearest, *differing = done.out.splitlines()
    assert first.startswith("train: not kept; it would be ")
    assert nearest.startswith("  the nearest is ")
    assert nearest.endswith("from recipe.yaml, where")
    assert differing == ["    max_length differs: 512 here, 20 there"]


def test_explain_names_what_is_too_long_to_show(arctic, recipe):
    arctic("data", str(recipe))
    words = ("data.sources=[{type: tiny, texts: [another]}, {type: tiny}]",)
    lines = arctic("cache", "explain", str(recipe), *words).out.splitlines()
    assert "    sources.0.content differs" in lines
    assert "    sources.1 is only here" in lines


def test_explain_prepares_nothing_and_knows_what_is_kept(arctic, recipe):
    arctic("cache", "explain", str(recipe))
    assert kept(arctic) == []
    arctic("data", str(recipe))
    (entry,) = kept(arctic)
    assert arctic("cache", "explain", str(recipe)).out == f"train: kept as {entry['key']}\n"


def used_long_ago(entry, days):
    then = time.time() - days * 24 * 3600
    os.utime(Path(entry["path"]) / "rows.json", (then, then))


def test_gc_removes_what_was_not_used_for_long_and_tells_so(arctic, recipe):
    arctic("data", str(recipe))
    arctic("data", str(recipe), "data.max_length=20")
    recent, old = kept(arctic)
    used_long_ago(old, 40)
    dry = arctic("cache", "gc", "--dry-run")
    assert f"would go: {old['key']}" in dry.out
    assert "1 entry, " in dry.out
    assert len(kept(arctic)) == 2
    assert arctic("cache", "gc", "--older-than", "6w").out == "0 entries, 0 B freed\n"
    assert f"gone: {old['key']}" in arctic("cache", "gc").out
    assert [entry["key"] for entry in kept(arctic)] == [recent["key"]]
    assert arctic("cache", "gc", "--all").code == 0
    assert kept(arctic) == []


def test_an_entry_that_was_used_is_young_again(arctic, recipe):
    arctic("data", str(recipe))
    used_long_ago(kept(arctic)[0], 40)
    arctic("data", str(recipe))
    assert arctic("cache", "gc").out == "0 entries, 0 B freed\n"


def test_gc_removes_what_a_killed_process_left_and_nothing_that_is_in_preparation(arctic, entries_folder):
    from filelock import FileLock

    half_way = entries_folder / f"{KEY}.incomplete"
    half_way.mkdir(parents=True)
    with FileLock(entries_folder / f"{KEY}.lock"):
        assert [entry["state"] for entry in kept(arctic)] == ["in preparation"]
        for words in (["--all"], ["--all", "--dry-run"]):
            done = arctic("cache", "gc", *words)
            assert f"in preparation, stays: {KEY}" in done.out
            assert "0 entries, 0 B" in done.out
        assert half_way.is_dir()
    assert [entry["state"] for entry in kept(arctic)] == ["half-way"]
    assert f"gone: {KEY}" in arctic("cache", "gc").out
    assert list(entries_folder.iterdir()) == []


def test_gc_removes_the_locks_of_preparations_that_failed_and_no_others(arctic, recipe, entries_folder):
    from filelock import FileLock

    arctic("data", str(recipe))
    (entry,) = kept(arctic)
    (entries_folder / f"{KEY}.lock").touch()
    with FileLock(entries_folder / f"{KEY[1:]}1.lock"):
        arctic("cache", "gc", "--dry-run")
        assert (entries_folder / f"{KEY}.lock").exists()
        assert arctic("cache", "gc").out == "0 entries, 0 B freed\n"
        locks = {path.name for path in entries_folder.glob("*.lock")}
    assert locks == {f"{entry['key']}.lock", f"{KEY[1:]}1.lock"}


def test_an_age_that_is_none_is_refused(arctic):
    done = arctic("cache", "gc", "--older-than", "soon")
    assert done.code == 2
    assert "such as 12h, 30d, 4w, not 'soon'" in done.err


def test_after_an_error_of_data_its_log_is_in_the_cache_and_nothing_else_is_left(
    arctic, recipe, temporary, arctic_home
):
    done = arctic("data", str(recipe), "data.fail_on_missing_cache=true")
    assert done.code == 4
    log = Path(done.err.splitlines()[-1].partition("the whole log: ")[2])
    assert log.parent == arctic_home / "arctic-home" / "logs"
    assert "the prepared train data is not cached" in log.read_text()
    assert list(temporary.iterdir()) == []
