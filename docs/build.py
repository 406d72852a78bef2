"""Builds the documentation into `site/`, with warnings as errors, after checking that its references are up to date.

python docs/build.py            builds; other arguments go to `mkdocs build`
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Check and build.

    Returns:
        0 when the references are up to date and MkDocs warned of nothing.
    """
    steps = (
        [str(HERE / "generate.py"), "--check"],
        [
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--config-file",
            str(HERE.parent / "mkdocs.yml"),
            *sys.argv[1:],
        ],
    )
    return max(subprocess.run([sys.executable, *step]).returncode for step in steps)


if __name__ == "__main__":
    sys.exit(main())
