"""Pages of KV cache on their way from prefill to decode workers. Times are those of the transfer layer alone: what a
router sees of it is on the dashboard of the request path."""
from grafana import DECODE, PREFILL, Panel, dashboard, of_models, quantiles, rate, share


def mean_of_page(stage, selected):
    chosen = selected[:-1] + f', stage="{stage}"}}'
    by = "transport"
    return share(rate("millrace_transfer_seconds_total", chosen, by), rate("millrace_transfer_pages_total", selected, by))


TRANSFER = dashboard(
    "transfer", "transfer", "Pages of KV cache on their way from prefill to decode workers.", of_models(),
    {
        "Sent by prefill workers": [
            Panel("Bytes sent", "Acknowledged, by the way they took.", "Bps",
                  [(rate("millrace_transfer_bytes_total", PREFILL, "transport"), "{{transport}}")]),
            Panel("Time of a page", "Means, at its sender: waiting to be sent, and from its first byte to its acknowledgement. "
                  "Pages overlap.", "s",
                  [(mean_of_page("queue", PREFILL), "{{transport}} waiting"), (mean_of_page("wire", PREFILL), "{{transport}} on the wire")]),
            Panel("What transfer adds", "From a first token to the last page's acknowledgement.", "s",
                  quantiles("millrace_transfer_exposed_seconds", PREFILL)),
            Panel("Pages being sent", "At this moment.", "short",
                  [(f"sum by (transport) (millrace_transfer_pages_in_flight{PREFILL})", "{{transport}}")]),
            Panel("Connections", "That prefill workers have open, and that decode workers have.", "short",
                  [(f"sum by (transport) (millrace_transfer_connections{PREFILL})", "prefill: {{transport}}"),
                   (f"sum by (transport) (millrace_transfer_connections{DECODE})", "decode: {{transport}}")]),
            Panel("Writes that failed: prefill", "By why.", "ops",
                  [(rate("millrace_transfer_failures_total", PREFILL, "kind"), "{{kind}}")]),
        ],
        "Received by decode workers": [
            Panel("Bytes received", "Landed, by the way they took.", "Bps",
                  [(rate("millrace_transfer_bytes_total", DECODE, "transport"), "{{transport}}")]),
            Panel("Pages received", "A second.", "ops",
                  [(rate("millrace_transfer_pages_total", DECODE, "transport"), "{{transport}}")]),
            Panel("Writes that failed: decode", "By why.", "ops",
                  [(rate("millrace_transfer_failures_total", DECODE, "kind"), "{{kind}}")]),
            Panel("Leases", "By what became of them. A revoked one is a prefill that failed or a client that left; a dropped "
                  "one is a bug.", "ops",
                  [(rate("millrace_leases_total", DECODE, "state"), "{{state}}")]),
            Panel("Leases now", "And the sequences at prefill workers that they are for.", "short",
                  [(f"sum (millrace_leases_active{DECODE})", "leases"),
                   (f"sum (millrace_num_requests_remote_prefill{DECODE})", "sequences")]),
            Panel("Pages under a lease", "That nobody but the prefill worker may touch.", "short",
                  [(f'sum (millrace_kv_pages{DECODE[:-1]}, state="leased"}})', "pages")]),
        ],
    })
