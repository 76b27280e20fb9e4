"""Command line of a benchmark: parses flags, prints the figures, and with --json one line of JSON last.

Uses argparse, so that a bare GPU image with torch alone can run it.
"""

import argparse
import json
import sys
import types
from collections.abc import Callable
from dataclasses import asdict, field, fields
from typing import Any, TypeVar, get_args, get_type_hints

from benchmarks.machine import machine
from cluster.errors import one_line_errors

_S = TypeVar("_S")


def option(default: Any, explanation: str) -> Any:
    """A settings field that becomes a flag of the same name: str, int, float, bool, or one of them or None."""
    return field(default=default, metadata={"help": explanation})


def run(theme: str, description: str, settings_type: type[_S], measure: Callable[[_S], dict[str, Any]]) -> None:
    """Entry point of `python -m benchmarks.THEME`."""
    with one_line_errors():
        settings = parse(theme, description, settings_type, sys.argv[1:])
        figures = measure(settings)
    for name, value in figures.items():
        print(f"{name:<40} {value}")
    if settings.json:
        print(json.dumps({"benchmark": theme, "machine": machine(), "settings": asdict(settings)} | figures))


def parse(theme: str, description: str, settings_type: type[_S], arguments: list[str]) -> _S:
    """Parses flags into settings."""
    parser = argparse.ArgumentParser(f"python -m benchmarks.{theme}", None, description, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    hints = get_type_hints(settings_type)
    for flag in fields(settings_type):
        name, explanation = f"--{flag.name.replace('_', '-')}", f"{flag.metadata['help']} (default: {flag.default})"
        kind = hints[flag.name]
        if kind is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=flag.default, help=explanation)
        else:
            plain = get_args(kind)[0] if isinstance(kind, types.UnionType) else kind
            parser.add_argument(name, type=plain, default=flag.default, help=explanation)
    return settings_type(**vars(parser.parse_args(arguments)))
