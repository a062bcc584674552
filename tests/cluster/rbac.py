"""What a service account may do, by its roles, and what it did, by the audit log: both as sets of the same form."""
import json
from datetime import datetime
from typing import NamedTuple


class Right(NamedTuple):
    group: str
    resource: str  # with its subresource, if any: `pods/status`
    verb: str
    scope: str  # "cluster", or the namespace of a Role

    def __str__(self):
        return f"{self.verb} {self.resource}{'.' if self.group else ''}{self.group} ({self.scope})"


def granted(kubectl, namespace, account):
    """Rights of all roles that are bound to the account."""
    found = set()
    for kind in ("clusterrolebindings", "rolebindings"):
        for binding in json.loads(kubectl("get", kind, "-A", "-o", "json"))["items"]:
            if not any(s["kind"] == "ServiceAccount" and s["name"] == account and s.get("namespace") == namespace
                       for s in binding.get("subjects") or []):
                continue
            scope = binding["metadata"].get("namespace", "cluster")
            role = binding["roleRef"]
            where = ["-n", scope] if role["kind"] == "Role" else []
            for rule in json.loads(kubectl("get", role["kind"], role["name"], *where, "-o", "json"))["rules"]:
                assert not rule.get("nonResourceURLs"), f"{role['name']}: everybody may read what discovery needs"
                assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"], f"{role['name']}: {rule}"
                found |= {Right(group, resource, verb, scope) for group in rule["apiGroups"]
                          for resource in rule["resources"] for verb in rule["verbs"]}
    return found


def requests(log, namespace, account):
    """The account's requests: audit events at their end, or at the start of a watch's answer."""
    user = f"system:serviceaccount:{namespace}:{account}"
    with open(log) as lines:
        for line in lines:
            event = json.loads(line)
            if event["user"]["username"] == user and "objectRef" in event:
                yield event


def refused(events, restarts):
    """What was forbidden, but not by an API server that had just started: until it is ready it may not have read all
    roles yet, and it forbids what they would allow."""
    def starting(event):
        received = datetime.fromisoformat(event["requestReceivedTimestamp"].replace("Z", "+00:00"))
        return any(begun <= received <= ready for begun, ready in restarts)

    return [event for event in events
            if event.get("annotations", {}).get("authorization.k8s.io/decision") == "forbid" and not starting(event)]


def used(events, rights):
    """Which of the rights allowed these requests, and what none of them covers."""
    found, uncovered = set(), set()
    for event in events:
        what = event["objectRef"]
        resource = "/".join(filter(None, (what["resource"], what.get("subresource"))))
        # Server-side apply of what is not there yet has to be allowed to create it, too.
        made = event["verb"] == "patch" and event.get("responseStatus", {}).get("code") == 201
        for verb in ("patch", "create") if made else (event["verb"],):
            covering = {right for right in rights if (right.group, right.resource, right.verb) == (
                what.get("apiGroup", ""), resource, verb) and right.scope in ("cluster", what.get("namespace"))}
            found |= covering
            if not covering:
                uncovered.add((verb, what.get("apiGroup", ""), resource, what.get("namespace")))
    return found, uncovered
