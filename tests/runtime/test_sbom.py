"""The bills of materials in a build name what the locks demand for the platform of the functions, and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from margin_local.supply_chain.locks import ROOT, pin_of, requirements

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runtime.artefact import Artefact
    from tests.runtime.machine import Machine

pytestmark = pytest.mark.runtime

LOCKS = {"layer": ROOT / "layers/margin/requirements.txt", "migrate": ROOT / "functions/migrate/requirements.txt"}
WORDS = {"x86_64": "x86_64", "arm64": "aarch64"}


def bill_of(artefact: Artefact, part: str) -> Path:
    folder = {"layer": artefact.layer, "migrate": artefact.folder("MigrateFunction")}[part]
    return folder / f"margin-{part}.cdx.json"


def target(machine: Machine) -> dict[str, str]:
    """What the markers in a lock are about, for Python 3.13 on Lambda."""
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": WORDS[machine.architecture],
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": "3.13.0",
        "python_version": "3.13",
        "sys_platform": "linux",
    }


@pytest.mark.parametrize("part", LOCKS)
def test_components_are_those_of_the_lock_with_one_of_its_digests(
    machine: Machine, artefact: Artefact, part: str
) -> None:
    environment = target(machine)
    locked = {
        pin_of(requirement): digests
        for requirement, digests in requirements(LOCKS[part]).items()
        if requirement.marker is None or requirement.marker.evaluate(environment)
    }
    bill: dict[str, Any] = json.loads(bill_of(artefact, part).read_text(encoding="utf-8"))
    found = {(component["name"], component["version"]): component for component in bill["components"]}
    assert found.keys() == locked.keys()
    for pin, component in found.items():
        (digest,) = component["hashes"]
        assert f"sha256:{digest['content']}" in locked[pin], pin
        assert component["licenses"], pin
        (wheel,) = (entry["value"] for entry in component["properties"])
        assert wheel.endswith("-none-any.whl") or WORDS[machine.architecture] in wheel, pin


@pytest.mark.parametrize("part", LOCKS)
def test_bill_is_valid_and_names_neither_a_time_nor_where_packages_came_from(artefact: Artefact, part: str) -> None:
    text = bill_of(artefact, part).read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert "timestamp" not in text
    assert "serialNumber" not in text
    assert text.count("://") == 1, "the address of the schema"


def test_layer_keeps_no_report_of_the_build(artefact: Artefact) -> None:
    assert list(artefact.layer.glob("*.json")) == [bill_of(artefact, "layer")]
