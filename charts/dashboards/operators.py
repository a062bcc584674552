"""The operator: whether it leads, hears routers, and keeps up."""
from grafana import Panel, dashboard, quantiles, rate, selector, variable

OPERATOR = selector('namespace=~"$namespace"')
NAME = "millrace_operator"

DASHBOARD = dashboard(
    "operator", "operator", "Whether the operator leads, hears routers, and keeps up.",
    [variable("namespace", "Namespace of the operator", f"label_values({NAME}_leader, namespace)")],
    {
        "Operator": [
            Panel("Leads", "One of the replicas does.", "short", [(f"{NAME}_leader{OPERATOR}", "{{pod}}")], most=1),
            Panel("Routers heard", "That tell of their workers.", "short", [(f"sum ({NAME}_fleet_streams{OPERATOR})", "routers")]),
            Panel("Looks that wait", "Objects whose look is due.", "short",
                  [(f"sum by (controller) ({NAME}_queue_depth{OPERATOR})", "{{controller}}")]),
            Panel("Looks", "By how they ended.", "ops",
                  [(rate(f"{NAME}_reconciles_total", OPERATOR, "controller, result"), "{{controller}}: {{result}}")]),
            Panel("Time of a look", "Of any controller.", "s", quantiles(f"{NAME}_reconcile_seconds", OPERATOR)),
            Panel("Requests to the API server", "By status.", "reqps",
                  [(rate(f"{NAME}_api_requests_total", OPERATOR, "verb, code"), "{{verb}} {{code}}")]),
            Panel("Children compared", "By what came of it: unchanged ones cost no request.", "ops",
                  [(rate(f"{NAME}_applies_total", OPERATOR, "result"), "{{result}}")]),
        ],
    })
