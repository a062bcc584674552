"""JSON schemas for kubeconform, made of what Kubernetes itself says its API is.

Kubernetes' own come from the OpenAPI document in its Go module, ours from the chart's definitions. Both are made
strict: a field that the schema does not know is an error, as it is for `kubectl --validate=strict`.
"""
import copy
import json
import os
import subprocess
from pathlib import Path

import yaml

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "millrace-tools"
# Part of the folder's name: raised when what is written below changes.
FORM = 1

TYPES_WITHOUT_A_SHAPE = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"type": ["integer", "string"]},
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": ["number", "string"]},
}


def module(name, version):
    """The folder of a Go module."""
    found = subprocess.run(["go", "mod", "download", "-json", f"{name}@{version}"], check=True, stdout=subprocess.PIPE, cwd="/")
    return Path(json.loads(found.stdout)["Dir"])


def kubernetes(version):
    """The folder with the schemas of a Kubernetes version, one file a kind."""
    folder = CACHE / f"kubernetes-schemas-{version}-{FORM}"
    if (folder / "complete").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    document = json.loads((module("k8s.io/kubernetes", version) / "api/openapi-spec/swagger.json").read_text())
    definitions = {name: strict(TYPES_WITHOUT_A_SHAPE.get(name, shape))
                   for name, shape in document["definitions"].items()}
    for name, shape in definitions.items():
        for kind in document["definitions"][name].get("x-kubernetes-group-version-kind", []):
            # Options and events of watches are of every group.
            if "metadata" in shape.get("properties", {}):
                write(folder, kind, shape | {"definitions": reachable(definitions, shape)})
    (folder / "complete").touch()
    return folder


def custom(folder, *files):
    """Schemas of custom resources, from files with their definitions."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        for definition in yaml.load_all(file.read_text(), yaml.CSafeLoader):
            spec = definition["spec"]
            for version in spec["versions"]:
                kind = {"group": spec["group"], "version": version["name"], "kind": spec["names"]["kind"]}
                shape = strict(version["schema"]["openAPIV3Schema"])
                shape["properties"] |= {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
                write(folder, kind, shape)
    return folder


def write(folder, kind, shape):
    """The file that `{{.ResourceKind}}-{{.Group}}-{{.ResourceAPIVersion}}` finds: v1's group is v1 to kubeconform."""
    name = f"{kind['kind'].lower()}-{kind['group'] or kind['version']}-{kind['version']}.json"
    (folder / name).write_text(json.dumps(shape))


def reachable(definitions, shape):
    """Those that `shape` refers to, and those that they refer to."""
    found, left = {}, [shape]
    while left:
        for name in references(left.pop()):
            if name not in found:
                found[name] = definitions[name]
                left.append(definitions[name])
    return found


def references(shape):
    if isinstance(shape, dict):
        if isinstance(shape.get("$ref"), str):
            yield shape["$ref"].removeprefix("#/definitions/")
        for value in shape.values():
            yield from references(value)
    elif isinstance(shape, list):
        for value in shape:
            yield from references(value)


def strict(shape):
    """A copy in which unknown fields are errors and Kubernetes' own keywords are JSON schema's."""
    shape = copy.deepcopy(shape)

    def walk(at):
        if at.pop("x-kubernetes-int-or-string", False):
            at.pop("anyOf", None)
            at["type"] = ["integer", "string"]
        if at.pop("nullable", False) and "type" in at:
            at["type"] = [*([at["type"]] if isinstance(at["type"], str) else at["type"]), "null"]
        if "properties" in at and not at.get("x-kubernetes-preserve-unknown-fields"):
            at.setdefault("additionalProperties", False)
        for word in [word for word in at if word.startswith("x-kubernetes-") or word == "description"]:
            del at[word]
        for child in [*at.get("properties", {}).values(), at.get("items"), at.get("additionalProperties")]:
            if isinstance(child, dict):
                walk(child)
        for child in [*at.get("allOf", []), *at.get("anyOf", []), *at.get("oneOf", [])]:
            walk(child)

    walk(shape)
    return shape


def conform(manifests, *locations, skip=()):
    """kubeconform over text or files: what is wrong, as lines; and how many objects it looked at."""
    command = ["kubeconform", "-strict", "-output", "json", "-verbose", "-n", "2"]
    for location in locations:
        command += ["-schema-location", f"{location}/{{{{.ResourceKind}}}}-{{{{.Group}}}}-{{{{.ResourceAPIVersion}}}}.json"]
    if skip:
        command += ["-skip", ",".join(skip)]
    text = manifests if isinstance(manifests, str) else None
    done = subprocess.run(command + ([] if text is not None else [str(file) for file in manifests]),
                          input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout, done.stderr
    results = json.loads(done.stdout)["resources"]
    wrong = [f"{r.get('kind')} {r.get('name')}: {r['status']}: {r.get('msg')} {[e.get('path') for e in r.get('validationErrors') or []]}"
             for r in results if r["status"] not in ("statusValid", "statusSkipped", "statusEmpty")]
    return wrong, sum(r["status"] == "statusValid" for r in results)
