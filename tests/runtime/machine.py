"""What functions run on here: Lambda's runtime client and emulator as plain processes, without containers."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-lambda"
ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}
NO_PYTHON = 3
INSTALL_TIMEOUT_S = 600


class UnfitMachineError(Exception):
    """Functions cannot be run on this machine; the text says why."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """The programs that functions run on."""

    python: Path
    emulator: Path
    architecture: str


def prepare() -> Machine:
    """Install what is missing.

    Raises
    ------
    UnfitMachineError
        The emulator does not run here, or there is no Python of the functions' runtime.
    """
    architecture = ARCHITECTURES.get(platform.machine().lower())
    if sys.platform != "linux" or architecture is None:
        message = f"Lambda's runtime emulator does not run on {sys.platform} {platform.machine()}"
        raise UnfitMachineError(message)
    script = ["sh", str(ROOT / "infra" / "local" / "lambda.sh")]
    made = subprocess.run(script, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    if made.returncode == NO_PYTHON:
        raise UnfitMachineError(made.stderr.strip())
    if made.returncode:
        message = f"infra/local/lambda.sh failed: {made.stderr.strip()}"
        raise RuntimeError(message)
    return Machine(
        python=ENVIRONMENT / "bin" / "python3.13",
        emulator=ENVIRONMENT / "emulator" / "samcli" / "local" / "rapid" / f"aws-lambda-rie-{architecture}",
        architecture=architecture,
    )
