"""The templates as they are written, and as CloudFormation gets them: after SAM's own transform."""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

Document = dict[str, Any]

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "template.yaml"
NESTED = tuple(ROOT / "infra" / f"{name}.yaml" for name in ("data", "network", "observability"))

BUCKET = "s3://artefacts/"
FUNCTION = "AWS::Lambda::Function"


def read(path: Path) -> Document:
    """Read a template with its short forms (!Ref, !Sub) written out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The translator's dependency warns about newer Pythons when it is imported.
        from samtranslator.yaml_helper import yaml_parse  # noqa: PLC0415

    return yaml_parse(path.read_text(encoding="utf-8"))


def transform(template: Document, **parameters: str) -> Document:
    """Do what CloudFormation does with a SAM template; the code of each function is named by its folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from samtranslator.translator.transform import transform as translate  # noqa: PLC0415

    packaged = copy.deepcopy(template)
    for resource in packaged["Resources"].values():
        for name in {"CodeUri", "ContentUri"} & set(resource["Properties"]):
            resource["Properties"][name] = BUCKET + resource["Properties"][name]
    return translate(packaged, parameters, _NoManagedPolicies())


class _NoManagedPolicies:
    """Stands for the list of AWS's managed policies, which the translator would ask IAM for; the template uses none."""

    def load(self) -> dict[str, str]:
        return {}


def resources(document: Document, *types: str) -> dict[str, Document]:
    """Return the properties of all resources of these types, by logical id."""
    return {
        name: resource.get("Properties", {})
        for name, resource in document["Resources"].items()
        if resource["Type"] in types
    }


def mentions(value: Any, name: str) -> bool:
    """Tell whether a value refers to the resource or parameter ``name``, however it is written."""
    text = json.dumps(value)
    return any(form in text for form in (f'"Ref": "{name}"', f'"Fn::GetAtt": ["{name}"', f"${{{name}}}", f"${{{name}."))


@dataclasses.dataclass(frozen=True)
class Function:
    """One function of the transformed template."""

    name: str
    folder: str
    properties: Document
    routes: frozenset[tuple[str, str]]

    @property
    def variables(self) -> Document:
        """Its environment."""
        return self.properties["Environment"]["Variables"]


def functions(template: Document, deployed: Document) -> list[Function]:
    """List the functions, with the routes that are written for them."""
    found = []
    for name, properties in resources(deployed, FUNCTION).items():
        events = template["Resources"][name]["Properties"].get("Events", {}).values()
        routes = {(e["Properties"]["Method"], e["Properties"]["Path"]) for e in events if e["Type"] == "HttpApi"}
        folder = properties["Code"]["S3Key"].removeprefix("functions/")
        found.append(Function(name, folder, properties, frozenset(routes)))
    return found
