"""Where the time to first token goes. Each part is measured by the process in which it passes."""
from grafana import DECODE, PREFILL, ROUTER, Panel, also, dashboard, of_models, quantiles, rate, share

FIRST_TOKENS = rate("millrace_time_to_first_token_seconds_count", ROUTER)
LOCAL, REMOTE = also(DECODE, 'prefill="local"'), also(DECODE, 'prefill="remote"')
# Title, metric, whose.
PARTS = [
    ("router: queue", "millrace_request_queue_time_seconds", ROUTER),
    ("decode: queue", "millrace_request_queue_time_seconds", DECODE),
    ("decode: prefilled there", "millrace_request_prefill_time_seconds", LOCAL),
    ("prefill: queue", "millrace_request_queue_time_seconds", PREFILL),
    ("prefill: computing", "millrace_request_prefill_time_seconds", PREFILL),
    ("prefill: pages still on their way", "millrace_transfer_exposed_seconds", PREFILL),
]


def part(metric, selected):
    """Seconds of it in a mean first token: parts that few requests have count as little as they are."""
    return share(rate(f"{metric}_sum", selected), FIRST_TOKENS)


# Where a deployment has no worker of a role there is nothing to subtract.
KNOWN = " + ".join(f"({rate(f'{metric}_sum', selected)} or vector(0))" for _, metric, selected in PARTS)
REST = f"({rate('millrace_time_to_first_token_seconds_sum', ROUTER)} - ({KNOWN})) / ({FIRST_TOKENS} > 0)"

REQUEST_PATH = dashboard(
    "request-path", "request path", "Where the time to first token goes, by the clock of the process where it passes.",
    of_models(),
    {
        "Time to first token": [
            Panel("A mean first token, by where its time went", "Parts add up to the mean time to first token. The rest is "
                  "text to tokens and back, calls between processes, and attempts that failed. Several sequences of one "
                  "request are one first token.", "s",
                  [*((part(metric, selected), title) for title, metric, selected in PARTS), (REST, "rest")],
                  width=16, stack=True),
            Panel("Time to first token", "As clients see it.", "s", quantiles("millrace_time_to_first_token_seconds", ROUTER)),
        ],
        "Waiting": [
            Panel("Router: queue", "From asking for a turn to getting it.", "s",
                  quantiles("millrace_request_queue_time_seconds", ROUTER)),
            Panel("Decode worker: queue", "From a request's arrival to its first rows being computed, or to its pages being "
                  "reserved for a prefill worker.", "s", quantiles("millrace_request_queue_time_seconds", DECODE)),
            Panel("Prefill worker: queue", "From a prefill request's arrival to its first rows being computed.", "s",
                  quantiles("millrace_request_queue_time_seconds", PREFILL)),
        ],
        "Prefill": [
            Panel("Prefill worker: computing", "From the first rows to the first token.", "s",
                  quantiles("millrace_request_prefill_time_seconds", PREFILL)),
            Panel("Prefill worker: pages still on their way", "From the first token to the last page's acknowledgement: what "
                  "transfer adds. The rest of it hides behind computing.", "s",
                  quantiles("millrace_transfer_exposed_seconds", PREFILL)),
            Panel("Decode worker: asked elsewhere, and computed here", "Remote is the whole call: the prefill worker's queue, its "
                  "computing, what transfer adds, and the network.", "s",
                  [*((query, f"remote {legend}") for query, legend in
                     quantiles("millrace_request_prefill_time_seconds", REMOTE, 0.5, 0.99)),
                   *((query, f"local {legend}") for query, legend in
                     quantiles("millrace_request_prefill_time_seconds", LOCAL, 0.5, 0.99))]),
            Panel("Prompts by who prefills", "Local ones by reason.", "reqps",
                  [(rate("millrace_remote_prefills_total", DECODE), "remote"),
                   (rate("millrace_local_prefills_total", DECODE, "reason"), "local: {{reason}}")]),
            Panel("Prefills that failed", "At decode workers; the router then makes the request again.", "reqps",
                  [(rate("millrace_remote_prefill_failures_total", DECODE, "reason"), "{{reason}}")]),
            Panel("Prompt tokens found in a cache", "What routers expected when they chose workers, and what was found.", "percentunit",
                  [(share(rate("millrace_router_pairing_overlap_tokens_total", selector), whole), legend)
                   for whole in [rate("millrace_router_pairing_tokens_total", ROUTER)]
                   for selector, legend in [
                       ('{namespace=~"$namespace", model_name=~"$model", role="prefill"}', "expected at prefill workers"),
                       ('{namespace=~"$namespace", model_name=~"$model", role="decode"}', "expected at decode workers")]]
                  + [(share(rate("millrace_prefix_cache_hits_total", PREFILL),
                            rate("millrace_prefix_cache_queries_total", PREFILL)), "found by prefill workers"),
                     (share(rate("millrace_prefix_cache_hits_total", DECODE),
                            rate("millrace_prefix_cache_queries_total", DECODE)), "found by decode workers")], most=1),
        ],
        "After the first token": [
            Panel("First step", "From a request's first token to its next, at its decode worker.", "s",
                  quantiles("millrace_request_first_step_time_seconds", DECODE)),
            Panel("Steps of decode workers", "Schedule, run, postprocess.", "s", quantiles("millrace_engine_step_seconds", DECODE)),
            Panel("Time between tokens", "As clients see it.", "s", quantiles("millrace_inter_token_latency_seconds", ROUTER)),
        ],
    })
