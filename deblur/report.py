"""Write a report of runs: python -m deblur.report RUN... [--out FOLDER]

Plots losses, validation PSNR against the blurred input, throughput and samples into report.html, which is
self-contained, and report.png. Several runs are compared on one page. By default the report of one run goes into the
run, that of several into the working directory.
"""

from dataclasses import dataclass

import tyro

from cluster.errors import InputError, one_line_errors


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
            raise InputError("no run given; example: python -m deblur.report runs/demo")
        from deblur.plots.run_report import write_report  # after the flags: matplotlib and torch take seconds

        print("\n".join(write_report(settings.runs, settings.out)))


if __name__ == "__main__":
    main()
