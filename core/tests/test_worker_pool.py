"""Processes that encode rows: every one of them is up before it is given something, or is started again."""

import multiprocessing
import os
import signal
import sys
import time

import pytest

from arctic_training import births, encoding
from arctic_training.encoding import WorkerPool
from arctic_training.errors import ArcticError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")


def plus(shared, task):
    return shared + task, os.getpid()


def hang():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def test_every_process_of_a_pool_works():
    with WorkerPool(2, plus, 10) as pool:
        results = [pool.submit(number) for number in range(8)]
        assert [result.result()[0] for result in results] == list(range(10, 18))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_that_is_never_born_is_ended_and_started_again(monkeypatch, tmp_path, processes):
    quietly = encoding.leave_signals_alone

    def born_late():
        quietly()
        try:
            (tmp_path / "hung").touch(exist_ok=False)
        except FileExistsError:
            return
        hang()

    monkeypatch.setattr(births, "SECONDS", 1.0)
    monkeypatch.setattr(encoding, "leave_signals_alone", born_late)
    with WorkerPool(processes, plus, 10) as pool:
        assert (tmp_path / "hung").exists()
        results = [pool.submit(number) for number in range(8)]
        assert [result.result()[0] for result in results] == list(range(10, 18))
        assert os.getpid() not in {result.result()[1] for result in results}
    assert not multiprocessing.active_children()


def test_processes_that_are_never_born_end_the_run_with_what_to_do(monkeypatch):
    monkeypatch.setattr(births, "SECONDS", 0.1)
    monkeypatch.setattr(births, "ATTEMPTS", 2)
    monkeypatch.setattr(encoding, "leave_signals_alone", hang)
    with pytest.raises(ArcticError, match="came up within 0 s in 2 tries") as caught, WorkerPool(2, plus, 10):
        pass
    assert "data.num_proc: 1" in caught.value.remedy
    assert not multiprocessing.active_children()
