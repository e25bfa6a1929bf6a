"""The manifests for Kubernetes: every field is one of KubeRay's and Kubernetes's, and what they start is there."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pydantic
import pytest
import typer.main
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from catdog.cli.main import app
from catdog.serving.config import ServeConfig

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "kubernetes"
MANIFESTS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))}


def closed(required: list[str], **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


TEXT, COUNT, YES_OR_NO = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
PARAMETERS = {"type": "object", "additionalProperties": TEXT}
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"}}
NAMED = closed(["name"], name=TEXT)


def some(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


# The fields that these manifests use, of Kubernetes's API (v1, networking.k8s.io/v1) and of KubeRay 1.5's definitions
# (ray.io/v1). A field that is not here is misspelt, or must be looked up and added.
LABELS = closed([], labels=PARAMETERS)
CONTAINER = closed(
    ["name", "image"],
    name=TEXT,
    image=TEXT,
    envFrom=some(closed([], secretRef=NAMED)),
    ports=some(closed(["containerPort"], containerPort=COUNT, name=TEXT)),
    resources=closed([], requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=some(closed(["name", "mountPath"], name=TEXT, mountPath=TEXT)),
)
MEMORY = closed([], medium={"enum": ["", "Memory"]}, sizeLimit=TEXT)
VOLUME = closed(["name"], name=TEXT, emptyDir=MEMORY)
POD = closed(["spec"], metadata=LABELS, spec=closed(["containers"], containers=some(CONTAINER), volumes=some(VOLUME)))
CLUSTER = closed(
    ["headGroupSpec"],
    rayVersion=TEXT,
    authOptions=closed([], mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling=YES_OR_NO,
    headGroupSpec=closed(["template"], rayStartParams=PARAMETERS, template=POD),
    workerGroupSpecs=some(
        closed(
            ["groupName", "maxReplicas", "minReplicas", "template"],
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=PARAMETERS,
            template=POD,
        )
    ),
)
SELECTOR = closed([], matchLabels=PARAMETERS)
PEER = closed([], podSelector=SELECTOR, namespaceSelector=SELECTOR)
SPECS = {
    "NetworkPolicy": closed(
        ["podSelector"],
        podSelector=SELECTOR,
        policyTypes=some({"enum": ["Ingress", "Egress"]}),
        ingress=some(closed([], **{"from": some(PEER), "ports": some(closed([], port=COUNT, protocol=TEXT))})),
    ),
    "RayJob": closed(
        [],
        entrypoint=TEXT,
        shutdownAfterJobFinishes=YES_OR_NO,
        ttlSecondsAfterFinished=COUNT,
        backoffLimit=COUNT,
        activeDeadlineSeconds=COUNT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        runtimeEnvYAML=TEXT,
        rayClusterSpec=CLUSTER,
    ),
    "RayService": closed([], serveConfigV2=TEXT, rayClusterConfig=CLUSTER),
}


@pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS)
def test_every_field_is_one_of_the_schema(manifest: dict[str, Any]) -> None:
    group = "networking.k8s.io/v1" if manifest["kind"] == "NetworkPolicy" else "ray.io/v1"
    schema = closed(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": group},
        kind=TEXT,
        metadata=NAMED,
        spec=SPECS[manifest["kind"]],
    )
    jsonschema.validate(manifest, schema)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_scripts_and_options_are_there(path: Path) -> None:
    for script in re.findall(r"jobs/\w+\.py", path.read_text()):
        assert (ROOT / script).exists()
    for line in re.findall(r"jobs/(\w+)\.py ([^|;']*)", path.read_text().replace("\n", " ")):
        command = typer.main.get_command(app).commands[line[0]]  # type: ignore[attr-defined]
        command.make_context("catdog", shlex.split(line[1])).close()


def test_the_page_is_built_from_the_arguments(untrained: str) -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(MANIFESTS["rayservice"]["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    build = getattr(importlib.import_module(module), name)
    assert ServeConfig.model_validate(application.args).model == ["s3://my-bucket/runs/first"]
    assert isinstance(build(application.args | {"model": [untrained]}), serve.Application)
    with pytest.raises(pydantic.ValidationError, match="modle"):
        build({"modle": [untrained]})
