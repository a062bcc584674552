"""Are clients served well, how much of it is there, and what is near its limit."""
from grafana import DECODE, PREFILL, ROUTER, Panel, also, choice, dashboard, of_models, quantiles, rate, share

# Bounds of telemetry/src/buckets.rs: there the share that keeps an objective is exact.
FIRST_TOKEN = ["0.2", "0.3", "0.5", "1", "1.5", "2", "3", "5", "10", "30"]
BETWEEN_TOKENS = ["0.01", "0.015", "0.02", "0.025", "0.03", "0.05", "0.1", "0.2"]


def within(metric, objective):
    # Prometheus 3 writes whole numbers with a fraction.
    kept = rate(f"millrace_{metric}_bucket", also(ROUTER, f'le=~"${objective}([.]0)?"'))
    return share(kept, rate(f"millrace_{metric}_count", ROUTER))


def filling(state):
    limit = also(ROUTER, f'state="{state}"')
    return f"max (millrace_num_requests_{state}{ROUTER} / ignoring (state) millrace_router_admission_limit{limit})"


# Errors that are the deployment's, not the client's.
FAILED = rate("millrace_request_failures_total", also(ROUTER, 'reason=~"overloaded|unavailable|deadline|internal"'))
ENDED = rate("millrace_request_success_total", ROUTER)

OVERVIEW = dashboard(
    "overview", "overview", "What clients get, how much of it, and what is near its limit.",
    [*of_models(), choice("ttft", "Objective: first token (s)", FIRST_TOKEN, "2"),
     choice("itl", "Objective: between tokens (s)", BETWEEN_TOKENS, "0.1")],
    {
        "Objectives": [
            Panel("First tokens in time", "Share of first tokens within the objective chosen above.", "percentunit",
                  [(within("time_to_first_token_seconds", "ttft"), "within $ttft s")], most=1),
            Panel("Gaps between tokens in time", "Share of gaps between two tokens within the objective chosen above.",
                  "percentunit", [(within("inter_token_latency_seconds", "itl"), "within $itl s")], most=1),
            Panel("Requests answered", "Share of requests that did not fail for a reason of the deployment's: overload, no "
                  "worker, a deadline that passed, an error inside. Requests that no one could have served are left out.",
                  "percentunit", [(share(ENDED, f"({ENDED} + {FAILED})"), "answered")], most=1),
            Panel("Time to first token", "From a request's arrival at a router.", "s",
                  quantiles("millrace_time_to_first_token_seconds", ROUTER)),
            Panel("Time between tokens", "Tokens that come together share the time evenly.", "s",
                  quantiles("millrace_inter_token_latency_seconds", ROUTER)),
            Panel("Time of whole requests", "From arrival to the last token; failed and aborted ones left out.", "s",
                  quantiles("millrace_e2e_request_latency_seconds", ROUTER)),
        ],
        "Traffic": [
            Panel("Sequences", "That asked for a turn, and that ended by themselves.", "reqps",
                  [(rate("millrace_router_arrivals_total", ROUTER, "model_name"), "{{model_name}} arrived"),
                   (rate("millrace_request_success_total", ROUTER, "finished_reason"), "ended: {{finished_reason}}")]),
            Panel("Errors that clients saw", "By reason; invalid and unknown_model are the client's.", "reqps",
                  [(rate("millrace_request_failures_total", ROUTER, "reason"), "{{reason}}")]),
            Panel("Tokens", "Of prompts, of those the ones found in a prefix cache, and generated.", "short",
                  [(rate("millrace_prompt_tokens_total", ROUTER), "prompt"),
                   (rate("millrace_prompt_tokens_cached_total", ROUTER), "prompt, cached"),
                   (rate("millrace_generation_tokens_total", ROUTER), "generated")]),
            Panel("Length of prompts", "Tokens a request.", "short", quantiles("millrace_request_prompt_tokens", ROUTER)),
            Panel("Length of answers", "Tokens a sequence.", "short", quantiles("millrace_request_generation_tokens", ROUTER)),
            Panel("Failures that clients did not see", "Attempts that a router made again at another worker.", "reqps",
                  [(rate("millrace_router_replays_total", ROUTER, "reason"), "{{reason}}"),
                   (rate("millrace_router_prefill_retries_total", ROUTER), "prefill worker failed")]),
        ],
        "Saturation": [
            Panel("Sequences at routers", "With the workers, and waiting for a turn.", "short",
                  [(f"sum by (model_name) (millrace_num_requests_running{ROUTER})", "{{model_name}} with workers"),
                   (f"sum by (model_name) (millrace_num_requests_waiting{ROUTER})", "{{model_name}} waiting")]),
            Panel("Of what routers admit", "The fullest router, in shares of its limits. What comes when as many wait as may is "
                  "refused.", "percentunit", [(filling(state), state) for state in ("running", "waiting")], most=1),
            Panel("Workers that take requests", "The fewest that any router sees.", "short",
                  [("min by (model_name, role) (millrace_router_workers_available"
                    '{namespace=~"$namespace", model_name=~"$model"})', "{{model_name}} {{role}}")]),
            Panel("KV cache in use: decode", "The fullest worker and the mean.", "percentunit",
                  [(f"max (millrace_kv_cache_usage_perc{DECODE})", "highest"),
                   (f"avg (millrace_kv_cache_usage_perc{DECODE})", "mean")], most=1),
            Panel("KV cache in use: prefill", "The fullest worker and the mean.", "percentunit",
                  [(f"max (millrace_kv_cache_usage_perc{PREFILL})", "highest"),
                   (f"avg (millrace_kv_cache_usage_perc{PREFILL})", "mean")], most=1),
            Panel("Refused", "Requests that routers refused because too much was waiting.", "reqps",
                  [(rate("millrace_router_admission_rejections_total", ROUTER, "reason"), "{{reason}}")]),
            Panel("Builds", "Processes by the commit that they were built from.", "short",
                  [('count by (version, revision) (millrace_build_info{namespace=~"$namespace"})', "{{version}} {{revision}}")],
                  kind="table"),
        ],
    })
