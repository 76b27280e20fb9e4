"""Definitions of custom resources as schemas that refuse what an API server would drop without a word."""

from pathlib import Path
from typing import Any

import yaml

CRDS = Path(__file__).parent / "crds"


def schema_of(definition: str) -> dict[str, Any]:
    """The schema of the one version of a definition in crds/, refusing fields that it does not name."""
    (version,) = yaml.safe_load((CRDS / f"{definition}.yaml").read_text())["spec"]["versions"]
    return _closed(version["schema"]["openAPIV3Schema"])


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed
