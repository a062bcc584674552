"""What PoolAutoscalers measure, want and do. Their namespace is target_namespace; namespace is the operator's own."""
from grafana import Panel, dashboard, variable

NAME = "millrace_autoscaler"
CHOSEN = 'target_namespace=~"$namespace", autoscaler=~"$autoscaler"'


def of(metric, matchers=""):
    return f"{NAME}_{metric}{{{CHOSEN}{matchers and ', ' + matchers}}}"


def latency(title, description, name):
    return Panel(title, description, "s", [
        (f"max by (autoscaler, kind) ({of('seconds', f'latency={chr(34)}{name}{chr(34)}')})", "{{autoscaler}} {{kind}}")])


AUTOSCALER = dashboard(
    "autoscaler", "autoscaler", "What PoolAutoscalers measure, want and do.",
    [variable("namespace", "Namespace", f"label_values({NAME}_replicas, target_namespace)"),
     variable("autoscaler", "Autoscaler", f'label_values({NAME}_replicas{{target_namespace=~"$namespace"}}, autoscaler)')],
    {
        "Replicas": [
            Panel(f"{role.capitalize()}: groups", "Ready, asked for before, and wanted now.", "short",
                  [(f"max by (autoscaler, state) ({of('replicas', f'role={chr(34)}{role}{chr(34)}')})", "{{autoscaler}} {{state}}")],
                  width=12) for role in ("prefill", "decode")],
        "Latencies at the objective's percentile": [
            latency("Time to first token", "Measured at routers, objective, and predicted with the groups wanted.", "ttft"),
            latency("Time between tokens", "Measured at routers, objective, and predicted with the groups wanted.", "itl"),
            latency("Router: queue", "Measured at routers, objective, and predicted with the groups wanted.", "queue"),
        ],
        "Decisions": [
            Panel("Looks", "By why there are to be as many groups as there are to be.", "ops",
                  [(f"sum by (role, reason) (rate({of('decisions_total')}[$__rate_interval]))", "{{role}}: {{reason}}")]),
            Panel("Frozen", "Too little is known to decide.", "short",
                  [(f"max by (autoscaler) ({of('frozen')})", "{{autoscaler}}")], most=1),
            Panel("Limited", "Bounds, budget or schedule decide instead of demand.", "short",
                  [(f"max by (autoscaler) ({of('limited')})", "{{autoscaler}}")], most=1),
        ],
    })
