"""The bill of materials of a folder of packages: what is in it, and that it agrees with what was installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from margin_local.supply_chain.locks import ROOT

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

SCRIPT = ROOT / "layers" / "margin" / "sbom.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sbom", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sbom = _load()


class Installed:
    """A folder of packages, and what pip reports of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[dict[str, Any]] = []

    def add(self, name: str, version: str, *fields: str, tag: str = "py3-none-any", of: str = "") -> None:
        wheel = f"{name.replace('-', '_')}-{version}-{of or tag}.whl"
        information = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        information.mkdir(parents=True)
        head = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
        (information / "METADATA").write_text("\n".join([*head, *fields]) + "\n", encoding="utf-8")
        (information / "WHEEL").write_text(f"Wheel-Version: 1.0\nTag: {tag}\n", encoding="utf-8")
        digest = f"{len(self.entries):064x}"
        download = {"url": f"https://index.invalid/a/{wheel}", "archive_info": {"hashes": {"sha256": digest}}}
        self.entries.append({"metadata": {"name": name, "version": version}, "download_info": download})

    def bill(self) -> Any:
        return sbom.bill("margin-layer", self.folder, {"install": self.entries})


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    return Installed(tmp_path / "python")


def test_a_component_has_name_version_digest_licence_and_wheel(installed: Installed) -> None:
    many = "cp313-cp313-manylinux2014_x86_64.manylinux_2_17_x86_64"
    installed.add("Some.Lib", "1.2", "License-Expression: MIT", tag="cp313-cp313-manylinux_2_17_x86_64", of=many)
    (component,) = installed.bill()["components"]
    assert component == {
        "type": "library",
        "bom-ref": "pkg:pypi/some-lib@1.2",
        "name": "some-lib",
        "version": "1.2",
        "purl": "pkg:pypi/some-lib@1.2",
        "hashes": [{"alg": "SHA-256", "content": "0" * 64}],
        "licenses": [{"expression": "MIT"}],
        "properties": [{"name": "margin:wheel", "value": f"Some.Lib-1.2-{many}.whl"}],
    }


@pytest.mark.parametrize(
    ("fields", "licences"),
    [
        (["License-Expression: MIT", "License: BSD", "Classifier: License :: X"], [{"expression": "MIT"}]),
        (
            [
                "License: text",
                "Classifier: License :: OSI Approved",
                "Classifier: License :: OSI Approved :: BSD License",
            ],
            [{"license": {"name": "BSD License"}}],
        ),
        (["License: BSD-3"], [{"license": {"name": "BSD-3"}}]),
        (["License: " + "word " * 50], []),
        ([], []),
    ],
)
def test_a_licence_is_the_expression_or_the_classifiers_or_a_short_text(
    installed: Installed, fields: list[str], licences: list[dict[str, Any]]
) -> None:
    installed.add("somelib", "1.2", *fields)
    assert installed.bill()["components"][0]["licenses"] == licences


def test_the_document_is_valid_cyclonedx(installed: Installed) -> None:
    installed.add("one", "1", "License-Expression: MIT")
    installed.add("two", "2", "Classifier: License :: OSI Approved :: BSD License")
    installed.add("three", "3")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(installed.bill())) is None


def test_the_same_packages_give_the_same_bytes_in_any_order(installed: Installed, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        installed.add(name, "1")
    written = []
    for number, entries in enumerate((installed.entries, installed.entries[::-1])):
        report, file = tmp_path / f"report-{number}.json", tmp_path / f"bill-{number}.json"
        report.write_text(json.dumps({"install": entries}), encoding="utf-8")
        command = [
            sys.executable,
            "-I",
            "-S",
            str(SCRIPT),
            "margin-layer",
            str(installed.folder),
            str(report),
            str(file),
        ]
        subprocess.run(command, check=True, timeout=30)
        written.append(file.read_bytes())
    assert written[0] == written[1]
    assert [component["name"] for component in json.loads(written[0])["components"]] == ["one", "three", "two"]


def test_a_package_that_the_report_does_not_name_is_an_error(installed: Installed) -> None:
    installed.add("one", "1")
    installed.add("two", "2")
    del installed.entries[0]
    with pytest.raises(sbom.BuildError, match="one 1"):
        installed.bill()


def test_a_package_of_another_version_than_the_report_says_is_an_error(
    installed: Installed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installed.add("one", "1")
    installed.entries[0]["metadata"]["version"] = "2"
    report, file = tmp_path / "report.json", tmp_path / "bill.json"
    report.write_text(json.dumps({"install": installed.entries}), encoding="utf-8")
    assert sbom.main("margin-layer", str(installed.folder), str(report), str(file)) == 1
    assert "one 1, one 2" in capsys.readouterr().err
    assert not file.exists()


def test_a_wheel_for_another_platform_than_was_installed_is_an_error(installed: Installed) -> None:
    installed.add("one", "1", tag="cp313-cp313-manylinux_2_17_x86_64", of="cp313-cp313-manylinux_2_17_aarch64")
    with pytest.raises(sbom.BuildError, match="was not installed from one-1-cp313-cp313-manylinux_2_17_aarch64"):
        installed.bill()
