"""A release reaches every function: a new digest publishes new versions, and the schema is migrated before them."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from typing import TYPE_CHECKING

import pytest

from tests.template import documents

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from tests.template.documents import Document, Function

VERSION = "AWS::Lambda::Version"
UNALIASED = {"MigrateFunction": "CloudFormation calls the newest code, and nothing else does"}


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release_digest", documents.ROOT / "infra" / "release_digest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release_digest = _load()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Return a small tree that has each source of a release."""
    for source in release_digest.SOURCES:
        path = tmp_path / source
        path = path if path.suffix else path / "part" / "code.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one\n", encoding="utf-8")
    return tmp_path


def test_every_function_behind_an_alias_publishes_by_release(template: Document, deployed: Document) -> None:
    aliases = documents.resources(deployed, "AWS::Lambda::Alias").values()
    aliased = {alias["FunctionName"]["Ref"] for alias in aliases}
    written = documents.resources(template, "AWS::Serverless::Function")
    assert set(written) - aliased == set(UNALIASED)
    assert {alias["Name"] for alias in aliases} == {"live"}
    assert {name: written[name]["AutoPublishCodeSha256"] for name in aliased} == {
        name: {"Ref": "Release"} for name in aliased
    }


def test_new_release_publishes_new_versions_and_the_same_release_none(template: Document, deployed: Document) -> None:
    first = set(documents.resources(deployed, VERSION))
    release = template["Parameters"]["Release"]["AllowedPattern"]
    assert re.fullmatch(release, "ab" * 32)
    again = set(documents.resources(documents.transform(template, Release="ab" * 32), VERSION))
    later = set(documents.resources(documents.transform(template, Release="cd" * 32), VERSION))
    assert len(first) == len(documents.resources(deployed, "AWS::Lambda::Alias"))
    assert first == again
    assert first & later == set()


def test_digest_is_a_release(template: Document) -> None:
    digest = release_digest.release_digest(documents.ROOT)
    assert re.fullmatch(template["Parameters"]["Release"]["AllowedPattern"], digest)


def test_deployment_without_a_release_is_refused(template: Document) -> None:
    (assertion,) = template["Rules"]["ReleaseIsNamed"]["Assertions"]
    default = template["Parameters"]["Release"]["Default"]
    assert documents.Evaluation(template).of(assertion["Assert"]) is False
    assert documents.Evaluation(template, Release="ab" * 32).of(assertion["Assert"]) is True
    assert re.fullmatch(template["Parameters"]["Release"]["AllowedPattern"], default), "builds and local runs have none"


@pytest.mark.parametrize("source", release_digest.SOURCES)
def test_digest_changes_with_each_source(sources: Path, source: str) -> None:
    before = release_digest.release_digest(sources)
    path = sources / source
    path = path if path.suffix else path / "part" / "code.py"
    path.write_text("two\n", encoding="utf-8")
    assert release_digest.release_digest(sources) != before


def test_digest_changes_when_a_file_is_renamed(sources: Path) -> None:
    before = release_digest.release_digest(sources)
    (sources / "layers" / "part" / "code.py").rename(sources / "layers" / "part" / "mode.py")
    assert release_digest.release_digest(sources) != before


def test_digest_ignores_what_tools_leave_behind(sources: Path) -> None:
    before = release_digest.release_digest(sources)
    for name in ("__pycache__/code.cpython-313.pyc", "code.pyc", ".DS_Store", ".cache/x"):
        path = sources / "layers" / "part" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("left\n", encoding="utf-8")
    assert release_digest.release_digest(sources) == before


def test_digest_covers_every_nested_template_and_every_setting_of_a_deployment(template: Document) -> None:
    stacks = documents.resources(template, "AWS::CloudFormation::Stack").values()
    assert {stack["TemplateURL"] for stack in stacks} | {
        "template.yaml",
        "samconfig.toml",
        "functions",
        "layers",
    } == set(release_digest.SOURCES)


def test_parameter_file_names_the_release_as_text(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = sources / "build" / "release.yaml"
    monkeypatch.setattr(release_digest, "ROOT", sources)
    monkeypatch.setattr("sys.argv", ["release_digest.py", "--write", str(target)])
    release_digest.main()
    assert documents.read(target) == {"Release": release_digest.release_digest(sources)}


def test_every_deployed_environment_takes_the_release_from_that_file() -> None:
    settings = tomllib.loads((documents.ROOT / "samconfig.toml").read_text(encoding="utf-8"))
    deployments = [e["deploy"]["parameters"] for e in settings.values() if isinstance(e, dict) and "deploy" in e]
    assert [d["parameter_overrides"][0] for d in deployments] == ["file://.aws-sam/release.yaml"] * 2


def test_layer_publishes_its_functions() -> None:
    layer = documents.read(documents.TEMPLATE)["Resources"]["MarginLayer"]
    assert layer["Properties"]["PublishLambdaVersion"] is True
    assert layer["Metadata"]["BuildMethod"] == "makefile"


def test_every_function_has_the_layer_and_the_release_architecture(functions: list[Function]) -> None:
    for function in functions:
        assert [next(iter(layer)) for layer in function.properties["Layers"]] == ["Ref"], function.name
        assert function.properties["Layers"][0]["Ref"].startswith("MarginLayer"), function.name
        assert function.properties["Architectures"] == [{"Ref": "Architecture"}], function.name
        assert function.properties["Runtime"] == "python3.13", function.name


def test_migration_runs_at_every_release_before_the_other_functions(template: Document, deployed: Document) -> None:
    migration = deployed["Resources"]["Migration"]["Properties"]
    assert migration["Release"] == {"Ref": "Release"}
    assert migration["ServiceToken"] == {"Fn::GetAtt": ["MigrateFunction", "Arn"]}
    waiting = {
        name: resource.get("DependsOn")
        for name, resource in template["Resources"].items()
        if resource["Type"] == "AWS::Serverless::Function"
    }
    assert waiting == {name: None if name == "MigrateFunction" else "Migration" for name in waiting}
