"""Everything that a cluster holds, by name."""

# Says what happened, not what is there; or is a shadow of Services.
PASSING = ("events", "componentstatuses", "endpoints")


def everything(kubectl):
    """Names of all objects of all kinds that can be listed, as `kind namespace/name`."""
    kinds = [kind for kind in kubectl("api-resources", "--verbs", "list", "-o", "name").split()
             if kind.split(".")[0] not in PASSING]
    found = kubectl("get", ",".join(kinds), "-A", "--ignore-not-found", "--no-headers", "-o",
                    "custom-columns=KIND:.kind,NAMESPACE:.metadata.namespace,NAME:.metadata.name")
    # The cluster's own pods come and go.
    return {" ".join(line.split()) for line in found.splitlines() if not line.startswith("Pod ") or " kube-system " not in line}
