"""Each worker, prefill apart from decode: how busy, how full, how fast."""
from grafana import DECODE, OF_MODEL, PREFILL, Panel, also, dashboard, of_models, quantiles, rate, selector, share, variable

POD = 'pod=~"$pod"'


def own(selected):
    return also(selected, POD)


def engine(role, selected):
    """What both roles have, of one of them."""
    selected = own(selected)
    return [
        Panel(f"{role}: sequences", "In steps, and waiting for pages or a turn; how many may run.", "short",
              [(f"millrace_num_requests_running{selected}", "{{pod}} running"),
               (f"millrace_num_requests_waiting{selected}", "{{pod}} waiting"),
               (f"min (millrace_max_num_seqs{selected})", "limit")]),
        Panel(f"{role}: tokens to be computed", "Of prompts that run and wait.", "short",
              [(f"millrace_waiting_tokens{selected}", "{{pod}}")]),
        Panel(f"{role}: KV cache in use", "Pages that are neither free nor evictable.", "percentunit",
              [(f"millrace_kv_cache_usage_perc{selected}", "{{pod}}")], most=1),
        Panel(f"{role}: KV pages", "Over the workers chosen.", "short",
              [(f"sum by (state) (millrace_kv_pages{selected})", "{{state}}")], stack=True),
        Panel(f"{role}: steps", "Time of a step: schedule, run, postprocess.", "s",
              quantiles("millrace_engine_step_seconds", selected)),
        Panel(f"{role}: tokens a step", "Computed in one step, drafts included.", "short",
              quantiles("millrace_engine_step_tokens", selected)),
        Panel(f"{role}: prefix cache", "Share of the tokens looked up that were found.", "percentunit",
              [(share(rate("millrace_prefix_cache_hits_total", selected, "pod"),
                      rate("millrace_prefix_cache_queries_total", selected, "pod")), "{{pod}}")], most=1),
        Panel(f"{role}: preemptions", "Sequences that gave their pages back to be computed again later.", "reqps",
              [(rate("millrace_num_preemptions_total", selected, "pod"), "{{pod}}")]),
    ]


ANY = selector('namespace=~"$namespace"', POD)
WORKERS = dashboard(
    "workers", "workers", "Each worker: how busy, how full, how fast. Prefill and decode apart.",
    [*of_models(), variable("pod", "Worker", 'label_values(millrace_kv_pages{namespace=~"$namespace", model_name=~"$model"}, pod)')],
    {
        "Decode": [
            *engine("Decode", DECODE),
            Panel("Decode: tokens generated", "A second.", "short",
                  [(rate("millrace_generation_tokens_total", own(DECODE), "pod"), "{{pod}}")]),
            Panel("Decode: sequences at prefill workers", "Whose pages a prefill worker fills at this moment.", "short",
                  [(f"millrace_num_requests_remote_prefill{own(DECODE)}", "{{pod}}")]),
            Panel("Decode: drafts that were right", "Share of MTP's drafts.", "percentunit",
                  [(share(rate("millrace_spec_decode_num_accepted_tokens_total", own(DECODE)),
                          rate("millrace_spec_decode_num_drafts_total", own(DECODE))), "accepted")], most=1),
        ],
        "Prefill": [
            *engine("Prefill", PREFILL),
            Panel("Prefill: tokens computed", "Of prompts, a second; cached ones are not among them.", "short",
                  [(rate("millrace_prompt_tokens_total", own(PREFILL), "pod"), "{{pod}}")]),
        ],
        "Processes": [
            Panel("Routers that have admitted it", "Fewer than there are routers: it gets no requests from the others.", "short",
                  [(f"millrace_attached_routers{selector(*OF_MODEL, POD)}", "{{role}} {{pod}}")]),
            Panel("Processor", "Cores in use.", "short",
                  [(f"rate(process_cpu_seconds_total{ANY}[$__rate_interval])", "{{pod}}")]),
            Panel("Memory", "Resident.", "bytes", [(f"process_resident_memory_bytes{ANY}", "{{pod}}")]),
            Panel("File descriptors", "Of those that the process may have open.", "percentunit",
                  [(f"process_open_fds{ANY} / process_max_fds{ANY}", "{{pod}}")], most=1),
            Panel("Age", "Since the process was started: a fall is a restart.", "s",
                  [(f"time() - process_start_time_seconds{ANY}", "{{pod}}")]),
            Panel("Shape of the cache", "Tokens a page and pages.", "short",
                  [(f"millrace_cache_config_info{selector(*OF_MODEL, POD)}",
                    "{{role}} {{pod}}: {{num_gpu_blocks}} of {{block_size}}")], kind="table"),
        ],
    })
