"""Names by which commands know models. Torch-free, as everything that flags are parsed with."""

from typing import Literal

EMBEDDED = "embedded"  # the model inside the package, the default of --model; its card is docs/embedded-model.md
Network = Literal["maxim", "nafnet", "deblurgan"]
"""Networks whose published weights can be imported."""
