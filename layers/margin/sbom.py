"""Writes down what a build holds: its software bill of materials, CycloneDX 1.6 in JSON.

::

    python sbom.py NAME FOLDER REPORT FILE

NAME is that of the build, FOLDER holds the installed packages, REPORT is what ``pip install --report`` said of them,
for the digests of the wheels, and FILE is written. Needs the standard library alone: the layer's Makefile and
infra/local/sam.sh run it with the Python of the functions. The same packages give the same bytes, so there is neither
a time nor a serial number in it.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LICENCE_CHARACTERS_MAX = 100
"""A field that is longer holds the whole text of a licence instead of its name."""


class BuildError(Exception):
    """The folder holds something else than the report says."""


def bill(name: str, folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Return the bill of a folder.

    Parameters
    ----------
    name : str
        What was built.
    folder : Path
        Holds the packages.
    report : dict
        The report of pip about them.

    Raises
    ------
    BuildError
        A package is in one of the two alone, in another version, or from a wheel for another platform.
    """
    wheels = {_pin(entry["metadata"]["name"], entry["metadata"]["version"]): entry for entry in report["install"]}
    found = {_pin(each.name, each.version): each for each in importlib.metadata.distributions(path=[str(folder)])}
    if wheels.keys() != found.keys():
        different = ", ".join(" ".join(pin) for pin in sorted(wheels.keys() ^ found.keys()))
        message = f"{folder} does not hold what the report names: {different}"
        raise BuildError(message)
    components = [_component(pin, found[pin], wheels[pin]["download_info"]) for pin in sorted(found)]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "bom-ref": name, "name": name}},
        "components": components,
        "dependencies": [{"ref": name, "dependsOn": [component["bom-ref"] for component in components]}],
    }


def _pin(name: str, version: str) -> tuple[str, str]:
    return re.sub(r"[-_.]+", "-", name).lower(), version


def _component(
    pin: tuple[str, str], installed: importlib.metadata.Distribution, download: dict[str, Any]
) -> dict[str, Any]:
    name, version = pin
    wheel = unquote(urlsplit(download["url"]).path.rpartition("/")[2])
    if not _tags_of_name(wheel) & _tags_of_installed(installed):
        message = f"{name} {version} was not installed from {wheel}"
        raise BuildError(message)
    purl = f"pkg:pypi/{name}@{version}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": download["archive_info"]["hashes"]["sha256"]}],
        "licenses": _licences(installed.metadata),
        "properties": [{"name": "margin:wheel", "value": wheel}],
    }


def _tags_of_name(wheel: str) -> set[str]:
    """Tags in the name of a wheel: "cp313-cp313-manylinux_2_28_x86_64.manylinux2014_x86_64" are two."""
    parts = [part.split(".") for part in wheel.removesuffix(".whl").split("-")[-3:]]
    return {"-".join(tag) for tag in itertools.product(*parts)}


def _tags_of_installed(installed: importlib.metadata.Distribution) -> set[str]:
    lines = (installed.read_text("WHEEL") or "").splitlines()
    tags = (line.partition(":")[2].strip() for line in lines if line.startswith("Tag:"))
    return set().union(*(_tags_of_name(tag) for tag in tags))


def _licences(metadata: Any) -> list[dict[str, Any]]:
    """Licences as the package names them: the expression, else its classifiers, else the free text."""
    if expression := metadata.get("License-Expression"):
        return [{"expression": expression}]
    classifiers = [each.split(" :: ") for each in metadata.get_all("Classifier", []) if each.startswith("License ::")]
    # "License :: OSI Approved" alone names none.
    names = sorted({each[-1] for each in classifiers} - {"OSI Approved"})
    text = (metadata.get("License") or "").strip()
    if not names and text and len(text) <= LICENCE_CHARACTERS_MAX:
        names = [text]
    return [{"license": {"name": name}} for name in names]


def main(name: str, folder: str, report: str, file: str) -> int:
    """Write the bill of a folder; returns the exit status."""
    try:
        document = bill(name, Path(folder), json.loads(Path(report).read_text(encoding="utf-8")))
    except BuildError as error:
        sys.stderr.write(f"sbom: {error}\n")
        return 1
    Path(file).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
