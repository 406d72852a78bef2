"""Hashes of code: what changes them, and that the place where code lies is not among it."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import pytest

from arctic_training.source_code import file_hash, source_hash


@pytest.fixture
def imported(monkeypatch):
    """Imports a module from a folder, and forgets it and all that came with it when the test ends or asks again."""
    before = set(sys.modules)

    def forget():
        for name in set(sys.modules) - before:
            del sys.modules[name]
        importlib.invalidate_caches()

    def imported(folder, name):
        forget()
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            return importlib.import_module(name)

    yield imported
    forget()


def write(folder, **files):
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def with_init(*folders):
    for folder in folders:
        (folder / "__init__.py").write_text("")


FACTORY = "class Factory: pass\n"
DERIVED = "from zebra.factory import Factory\nclass Derived(Factory): pass\n"


def test_the_same_code_has_the_same_hash_wherever_its_packages_lie(imported, tmp_path, monkeypatch):
    def hash_in(one, other):
        write(tmp_path / one, zebra__factory=FACTORY)
        write(tmp_path / other, ant__derived=DERIVED)
        with_init(tmp_path / one / "zebra", tmp_path / other / "ant")
        monkeypatch.syspath_prepend(tmp_path / one)
        return source_hash(imported(tmp_path / other, "ant.derived").Derived)

    assert hash_in("a", "b") == hash_in("d", "c")


def test_files_that_change_their_names_within_a_package_are_other_code(imported, tmp_path):
    write(tmp_path, zebra__factory=FACTORY, zebra__one="limit = 1\n", zebra__two="limit = 2\n")
    with_init(tmp_path / "zebra")
    before = source_hash(imported(tmp_path, "zebra.factory").Factory)
    write(tmp_path, zebra__one="limit = 2\n", zebra__two="limit = 1\n")
    assert source_hash(imported(tmp_path, "zebra.factory").Factory) != before


def test_all_of_a_package_within_a_namespace_counts(imported, tmp_path):
    write(tmp_path, company__zebra__factory=FACTORY, company__zebra__helper="limit = 1\n")
    with_init(tmp_path / "company" / "zebra")
    before = source_hash(imported(tmp_path, "company.zebra.factory").Factory)
    write(tmp_path, company__zebra__helper="limit = 2\n")
    assert source_hash(imported(tmp_path, "company.zebra.factory").Factory) != before


def test_packages_of_plugins_count_where_they_are_imported_from_and_others_do_not(imported, tmp_path, monkeypatch):
    write(
        tmp_path, ant__derived="from zebra.helper import limit\n" + FACTORY, zebra__helper="limit = 1\n", cat__other=""
    )
    with_init(tmp_path / "ant", tmp_path / "zebra", tmp_path / "cat")
    monkeypatch.syspath_prepend(tmp_path)

    def hash_now():
        return source_hash(imported(tmp_path, "ant.derived").Factory, {"zebra", "cat"})

    before = hash_now()
    write(tmp_path, cat__other="limit = 3\n")
    assert hash_now() == before
    write(tmp_path, zebra__helper="limit = 2\n")
    assert hash_now() != before


@pytest.mark.parametrize(
    "line",
    ["import helper", "from helper import limit", "def later():\n    import helper"],
    ids=["import", "from", "within a function"],
)
def test_what_a_lone_file_imports_counts_however_it_does_so(imported, tmp_path, line):
    write(tmp_path, lone=f"{line}\n{FACTORY}", helper="import helper_of_helper\nlimit = 1\n", helper_of_helper="")
    hashes = []
    for changed in ("", "helper_of_helper", "helper"):
        if changed:
            (tmp_path / f"{changed}.py").write_text("import helper_of_helper\nlimit = 2\n")
        module = imported(tmp_path, "lone")
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(tmp_path)
            hashes.append((source_hash(module.Factory), file_hash(tmp_path / "lone.py")))
    assert len({code for code, _ in hashes}) == len({code for _, code in hashes}) == 3


def test_a_hash_does_not_depend_on_what_has_been_imported_meanwhile(imported, tmp_path, monkeypatch):
    write(tmp_path, lone="def later():\n    import helper\n", helper="limit = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = file_hash(tmp_path / "lone.py")
    module = imported(tmp_path, "lone")
    module.later()
    assert file_hash(tmp_path / "lone.py") == before


def test_what_was_installed_and_what_comes_with_python_is_not_read(tmp_path):
    alone = write(tmp_path, lone="x = 1\n") / "lone.py"
    names = file_hash(alone)
    alone.write_text("import json, pluggy, nowhere_to_be_found\nx = 1\n")
    with_imports = file_hash(alone)
    assert with_imports != names
    from arctic_training import source_code

    assert set(source_code._files_of(alone)) == {"lone.py"}


def test_a_class_with_a_base_of_the_standard_library_has_a_hash_too(imported, tmp_path):
    write(tmp_path, lone="import abc, typing\nclass Listed(list, typing.Generic[typing.TypeVar('T')]): pass\n")
    assert source_hash(imported(tmp_path, "lone").Listed)
