"""Data preparation against a bare loop and against other frameworks, in turn on the same chats and machine.

Run it from the root of the repository:

    python tests/benchmarks/data_preparation.py [--rows N [N ...]] [--rounds N] [--num-proc N]
        [--contenders NAME ...] [--trl-python PATH] [--arctictraining-python PATH]

`nox -s peers` makes the environments of the other frameworks and gives their interpreters. Every contender runs in a
process of its own with empty caches: the bare loop renders and encodes batches of 1,000 chats and does nothing else;
the others load the same JSONL, tokenise, mask, pack and write. Rates are those of preparation itself, without imports;
whole processes are told beside them. Memory is that of all processes of a contender, shared pages counted once, and
measured in a round of its own. With several --rows each size is measured, and the growth of memory from the first to
the last. Nothing is asserted: machines are noisy.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "examples" / "quickstart" / "model"
MAX_LENGTH = 1024
SECONDS_BETWEEN_SAMPLES = 0.05
SCRIPTS = {
    "bare loop": "bare_loop.py",
    "arctic": "arctic.py",
    "trl": "trl_trainer.py",
    "arctictraining": "arctictraining.py",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000], help="chats to prepare")
    parser.add_argument("--rounds", type=int, default=3, help="how often the contenders take turns")
    parser.add_argument("--num-proc", type=int, default=2, help="processes of each, but of the bare loop")
    parser.add_argument("--contenders", nargs="+", choices=SCRIPTS, default=list(SCRIPTS), metavar="NAME")
    parser.add_argument("--trl-python", help="interpreter of an environment with trl; this one by default")
    parser.add_argument("--arctictraining-python", help="interpreter of an environment with ArcticTraining")
    arguments = parser.parse_args()
    pythons = interpreters(arguments)
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        model = copied_model(Path(folder))
        for rows in arguments.rows:
            chats = Path(folder) / "chats.jsonl"
            subprocess.run([sys.executable, HERE / "docstring_chats.py", chats, "--rows", str(rows)], check=True)

            def run(name: str, *, watched: bool = False, chats: Path = chats) -> dict[str, Any]:
                return prepare(name, pythons[name], chats, model, arguments.num_proc, watched=watched)

            print(f"\n{rows:,} chats, {chats.stat().st_size / 1e6:.1f} MB, packs of {MAX_LENGTH}", flush=True)
            rounds = []
            for number in range(arguments.rounds):  # there and back, so that nobody always comes after the same one
                names = list(pythons)[:: -1 if number % 2 else 1]
                measured = {name: run(name) for name in names}
                rounds.append({name: measured[name] for name in pythons})
            peaks.append({name: run(name, watched=True) for name in pythons})
            report(rows, rounds, peaks[-1])
    if len(peaks) > 1:
        report_growth(arguments.rows, peaks)


def interpreters(arguments: argparse.Namespace) -> dict[str, str]:
    """The interpreter of each contender that can be measured; says which cannot."""
    own_trl = sys.executable if importlib.util.find_spec("trl") else None
    known = {
        "bare loop": sys.executable,
        "arctic": sys.executable,
        "trl": arguments.trl_python or own_trl,
        "arctictraining": arguments.arctictraining_python,
    }
    found = {}
    for name in arguments.contenders:
        if known[name]:
            found[name] = os.path.abspath(known[name])
        else:
            print(f"{name} is not measured: give --{name}-python, or run `nox -s peers`")
    return found


def copied_model(folder: Path) -> Path:
    """The quickstart's tokenizer, without the warnings about long texts and without a column that nobody uses but one
    contender stumbles over."""
    model = folder / "model"
    shutil.copytree(MODEL, model)
    path = model / "tokenizer_config.json"
    changes = {"model_max_length": 10**9, "model_input_names": ["input_ids", "attention_mask"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return model


def prepare(name: str, python: str, chats: Path, model: Path, num_proc: int, *, watched: bool) -> dict[str, Any]:
    """Run one contender in an empty folder.

    Returns:
        What its script tells (``seconds``, and ``tokens`` or ``packs`` and ``fill``), with ``whole``, the seconds of
        the whole process, and where it was watched ``peak`` and ``peak_own``, its memory in GiB with and without mapped
        files.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Paths that are meant for this interpreter would hand Arctic's core to a peer whose package has the same name.
        dropped = {"TOKENIZERS_PARALLELISM"} if python == sys.executable else {"TOKENIZERS_PARALLELISM", "PYTHONPATH"}
        environment = {key: value for key, value in os.environ.items() if key not in dropped}
        environment |= {"HF_HOME": f"{folder}/hf", "HF_HUB_OFFLINE": "1", "ARCTIC_HOME": f"{folder}/arctic"}
        command = [python, HERE / "contenders" / SCRIPTS[name], chats, model, folder, str(num_proc), str(MAX_LENGTH)]
        output, errors = Path(folder) / "stdout", Path(folder) / "stderr"
        with output.open("w") as output_file, errors.open("w") as errors_file:
            started = time.perf_counter()
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output_file, stderr=errors_file)
            try:
                peaks = watch(process) if watched else {}
                process.wait()
            except BaseException:
                process.kill()
                raise
            whole = time.perf_counter() - started
        if process.returncode:
            sys.exit(f"{name} ended with {process.returncode}:\n{errors.read_text()[-4000:]}")
        return {**json.loads(output.read_text().splitlines()[-1]), "whole": whole, **peaks}


def watch(process: subprocess.Popen) -> dict[str, float]:
    """The most memory that a process and its descendants held together, until it ends."""
    import psutil

    parent = psutil.Process(process.pid)
    peaks = {"peak": 0.0, "peak_own": 0.0}
    while process.poll() is None:
        held = [memory_of(each) for each in (parent, *parent.children(recursive=True))]
        for key, now in zip(peaks, map(sum, zip(*held, strict=True)), strict=True):
            peaks[key] = max(peaks[key], now / 2**20)
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    return peaks


def memory_of(process: Any) -> tuple[int, int]:
    """KiB of one process in all and without mapped files, by its share of pages that it shares; 0 once it has ended.

    Where the system does not tell shares, both are its resident memory.
    """
    import psutil

    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        try:
            return (process.memory_info().rss // 1024,) * 2 if sys.platform != "linux" else (0, 0)
        except psutil.Error:
            return 0, 0
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return sizes["Pss"], sizes["Pss_Anon"] + sizes["Pss_Shmem"]


def report(rows: int, rounds: list[dict[str, Any]], peaks: dict[str, Any]) -> None:
    """Print what each contender did with one number of rows, and the ratios."""
    tokens = next((told["tokens"] for told in peaks.values() if "tokens" in told), None)
    titles = ("rows/s", "tokens/s", "seconds", "least", "most", "whole", "packs", "fill", "peak GiB", "own GiB")
    print(f"{'':14}" + "".join(f"{title:>11}" for title in titles))
    for name, peak in peaks.items():
        seconds = [each[name]["seconds"] for each in rounds] or [peak["seconds"]]
        whole = [each[name]["whole"] for each in rounds] or [peak["whole"]]
        median = statistics.median(seconds)
        cells = [
            f"{rows / median:,.0f}",
            f"{tokens / median:,.0f}" if tokens else "-",
            f"{median:.2f}",
            f"{min(seconds):.2f}",
            f"{max(seconds):.2f}",
            f"{statistics.median(whole):.2f}",
            f"{peak['packs']:,}" if "packs" in peak else "-",
            f"{peak['fill']:.2%}" if "fill" in peak else "-",
            f"{peak['peak']:.2f}",
            f"{peak['peak_own']:.2f}",
        ]
        print(f"{name:14}" + "".join(f"{cell:>11}" for cell in cells))
    if tokens:
        print(f"{tokens:,} tokens")
    if rounds and "arctic" in peaks:
        print("rate of arctic by that of the others, median of the rounds (least to most):")
        for name in peaks:
            if name != "arctic":
                told = [ratios(rounds, name, figure) for figure in ("seconds", "whole")]
                print(f"  {name:14} preparation {told[0]}, whole process {told[1]}")


def ratios(rounds: Iterable[dict[str, Any]], other: str, figure: str) -> str:
    values = sorted(each[other][figure] / each["arctic"][figure] for each in rounds)
    return f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"


def report_growth(sizes: list[int], peaks: list[dict[str, Any]]) -> None:
    print(f"\npeak memory for {sizes[-1]:,} rows by that for {sizes[0]:,}:")
    for name in peaks[0]:
        grown = [peaks[-1][name][key] / peaks[0][name][key] for key in ("peak", "peak_own")]
        print(f"  {name:14} {grown[0]:.2f}, without mapped files {grown[1]:.2f}")


if __name__ == "__main__":
    main()
