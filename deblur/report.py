"""Draws runs: python -m deblur.report RUN... [--out FOLDER]

Losses, validation PSNR beside the blurred pictures' own, throughput and samples: report.html, one file that needs no
other, and report.png. Several runs are compared on one page. Reports of one run lie in it unless --out says otherwise,
those of several in the working folder.
"""

from dataclasses import dataclass

import tyro

from cluster.errors import InputError, one_line_errors
from deblur.plots.run_report import write_report


@dataclass(frozen=True, kw_only=True)
class Settings:
    runs: tyro.conf.Positional[tuple[str, ...]]
    """Runs: folders or s3:// URLs."""
    out: str | None = None
    """Folder or s3:// URL for report.html and report.png."""


def main() -> None:
    with one_line_errors():
        settings = tyro.cli(Settings, description=__doc__, prog="python -m deblur.report")
        if not settings.runs:
            raise InputError("no run was named; for instance: python -m deblur.report runs/demo")
        print("\n".join(write_report(settings.runs, settings.out)))


if __name__ == "__main__":
    main()
