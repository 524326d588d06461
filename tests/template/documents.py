"""The templates as they are written, and as CloudFormation gets them: after SAM's own transform."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable

Document = dict[str, Any]

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "template.yaml"
NESTED = tuple(ROOT / "infra" / f"{name}.yaml" for name in ("cognito", "data", "network", "observability"))

BUCKET = "s3://artefacts/"
FUNCTION = "AWS::Lambda::Function"
NO_VALUE = object()


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


class Evaluation:
    """A template's functions and conditions with given parameters; the others have their defaults.

    What only a deployment knows is named: a resource by its logical id, an attribute as ``Resource.Attribute``.
    """

    def __init__(self, document: Document, **parameters: str) -> None:
        self._conditions = document.get("Conditions", {})
        given = {name: parameter.get("Default", name) for name, parameter in document.get("Parameters", {}).items()}
        self._parameters = {**given, **parameters}

    def of(self, value: Any) -> Any:
        """Return ``value`` without functions; a property or an item that is AWS::NoValue is left out."""
        if isinstance(value, dict):
            if len(value) == 1 and (name := next(iter(value))) in self._FUNCTIONS:
                return self._FUNCTIONS[name](self, value[name])
            return {key: inner for key, raw in value.items() if (inner := self.of(raw)) is not NO_VALUE}
        if isinstance(value, list):
            return [inner for raw in value if (inner := self.of(raw)) is not NO_VALUE]
        return value

    def _ref(self, name: str) -> Any:
        return NO_VALUE if name == "AWS::NoValue" else self._parameters.get(name, name)

    def _condition(self, name: str) -> bool:
        return self.of(self._conditions[name])

    def _if(self, parts: list[Any]) -> Any:
        return self.of(parts[1] if self._condition(parts[0]) else parts[2])

    def _attribute(self, parts: list[str] | str) -> str:
        return parts if isinstance(parts, str) else ".".join(parts)

    def _substitute(self, parts: list[Any] | str) -> str:
        text, extra = parts if isinstance(parts, list) else (parts, {})
        names = {**self._parameters, **{name: self.of(value) for name, value in extra.items()}}
        return re.sub(r"\$\{([^}!]+)\}", lambda found: str(names.get(found[1], found[1])), text)

    def _equals(self, parts: list[Any]) -> bool:
        left, right = (str(self.of(part)) for part in parts)
        return left == right

    _FUNCTIONS: ClassVar[dict[str, Callable[[Evaluation, Any], Any]]] = {
        "Ref": _ref,
        "Condition": _condition,
        "Fn::If": _if,
        "Fn::GetAtt": _attribute,
        "Fn::Sub": _substitute,
        "Fn::Equals": _equals,
        "Fn::Not": lambda self, parts: not self.of(parts[0]),
        "Fn::And": lambda self, parts: all(self.of(part) for part in parts),
        "Fn::Or": lambda self, parts: any(self.of(part) for part in parts),
        "Fn::Join": lambda self, parts: parts[0].join(_items(self.of(parts[1]))),
        "Fn::Split": lambda self, parts: self.of(parts[1]).split(parts[0]),
        "Fn::Select": lambda self, parts: _items(self.of(parts[1]))[int(parts[0])],
    }


def _items(value: list[str] | str) -> list[str]:
    """A list parameter is given as a text with commas."""
    return value.split(",") if isinstance(value, str) else value
