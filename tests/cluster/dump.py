"""What a person would look at after a failure."""
import chart
import deployments


def dump(kubectl):
    """Objects, descriptions, events and logs, as text."""
    parts = []

    def show(title, *command, most=12_000):
        text = kubectl(*command, check=False).strip()
        parts.append(f"--- {title}\n{text[-most:]}")

    kinds = "mdep,pas,wp,statefulsets,deployments,pods"
    show("nodes", "get", "nodes", "-o", "wide")
    for namespace in (deployments.NAMESPACE, chart.NAMESPACE):
        show(namespace, "get", kinds if namespace == deployments.NAMESPACE else "pods,leases", "-n", namespace, "-o", "wide")
        show(f"events in {namespace}", "get", "events", "-n", namespace, "--sort-by", ".lastTimestamp", most=8_000)
    show("mdep and pas", "get", "mdep,pas", "-n", deployments.NAMESPACE, "-o", "yaml")
    show("operator", "logs", "-n", chart.NAMESPACE, "-l", "app.kubernetes.io/component=operator", "--prefix", "--tail", "80")
    for pod in kubectl.list("pods", deployments.NAMESPACE):
        name = pod["metadata"]["name"]
        if not deployments.ready(pod):
            show(f"describe {name}", "describe", "pod", name, "-n", deployments.NAMESPACE, most=5_000)
        show(f"logs of {name}", "logs", name, "-n", deployments.NAMESPACE, "--tail", "25", most=4_000)
        if any(c.get("restartCount") for c in pod["status"].get("containerStatuses") or []):
            show(f"earlier logs of {name}", "logs", name, "-n", deployments.NAMESPACE, "--previous", "--tail", "15", most=3_000)
    return "\n".join(parts)
