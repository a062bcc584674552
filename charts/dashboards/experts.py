"""Groups of ranks that share a model's experts: how evenly, under which epoch, and what a step waits for."""
from grafana import OF_MODEL, ROUTER, Panel, also, choice, dashboard, of_models, quantiles, rate, selector, variable

GROUP = also(ROUTER, 'group=~"$group"')
# Groups of either role look the same from their ranks.
RANKS = selector(*OF_MODEL, 'role="$role"')
# A worker on its own counts too, and has nobody to be even with.
LOAD = f"({rate('millrace_expert_products_total', RANKS, 'namespace, pod')} and on (namespace, pod) millrace_group_member{RANKS})"


def slowest(wait):
    """How many ranks name each. Ranks are numbers of series, not labels, which would be as many as ranks have peers."""
    return f'count_values("peer", millrace_group_slowest_peer{also(RANKS, f"wait={chr(34)}{wait}{chr(34)}")} >= 0)'


EXPERTS = dashboard(
    "experts", "experts", "Groups of ranks that share a model's experts.",
    [*of_models("millrace_experts_leader"),
     variable("group", "Group", 'label_values(millrace_experts_epoch{namespace=~"$namespace", model_name=~"$model"}, group)'),
     choice("role", "Ranks", ["decode", "prefill"], "decode")],
    {
        "Balance": [
            Panel("Load of ranks", "Rows times experts that each rank computes, over the mean of its namespace; 1 is even.", "short",
                  [(f"{LOAD} / on (namespace) group_left () (avg by (namespace) ({LOAD}) > 0)", "{{pod}}")],
                  kind="heatmap", width=12),
            Panel("Balancedness of layers", "Mean over highest of what ranks computed in the router's last window; 1 is even.",
                  "percentunit", [(f"avg by (layer) (millrace_experts_balancedness{GROUP})", "{{layer}}")],
                  kind="heatmap", width=12),
            Panel("Balancedness", "Over all layers. The highest rank is what a step takes.", "percentunit",
                  [(f"avg by (group) (millrace_experts_balancedness_overall{GROUP})", "{{group}}")], most=1),
            Panel("Hottest experts", "The largest shares of a layer's choices that single experts have.", "percentunit",
                  [(f"max by (group, place) (millrace_experts_hottest_share{GROUP})", "{{group}} #{{place}}")], most=1),
            Panel("Replicas", "Experts, over all layers, with so many live replicas.", "short",
                  [(f"max by (group, replicas) (millrace_experts_replicas{GROUP})", "{{group}}: {{replicas}}")], stack=True),
            Panel("Load of layers", "Rows times experts a second, over all ranks.", "short",
                  [(rate("millrace_expert_products_total", RANKS, "layer"), "{{layer}}")], kind="heatmap", width=12),
            Panel("Choices of layers", "Experts that gates chose for ranks' own rows, a second.", "short",
                  [(rate("millrace_expert_choices_total", RANKS, "layer"), "{{layer}}")], kind="heatmap", width=12),
        ],
        "Epochs": [
            Panel("Epoch", "Committed, as routers have it, and computed under by ranks: they part for a moment at a change.", "short",
                  [(f"max by (group) (millrace_experts_epoch{GROUP})", "{{group}}"),
                   (f"min (millrace_group_epoch{RANKS})", "lowest of a rank"),
                   (f"max (millrace_group_epoch{RANKS})", "highest of a rank")]),
            Panel("Ranks in the epoch", "As routers have it.", "short",
                  [(f"max by (group) (millrace_experts_members{GROUP})", "{{group}}"),
                   (f"sum (millrace_group_member{RANKS})", "ranks that say so")]),
            Panel("State", "Of each group, as the routers see it: how many say so.", "short",
                  [(f"sum by (group, state) (millrace_experts_state{GROUP})", "{{group}} {{state}}")], stack=True),
            Panel("Epochs committed", "By what they were for.", "short",
                  [(f"sum by (reason) (increase(millrace_experts_commits_total{ROUTER}[$__rate_interval]))", "{{reason}}")]),
            Panel("Plans", "Published, and given up by why.", "short",
                  [(f"sum by (reason) (increase(millrace_experts_plans_total{ROUTER}[$__rate_interval]))", "for {{reason}}"),
                   (f"sum by (reason) (increase(millrace_experts_withdrawals_total{ROUTER}[$__rate_interval]))",
                    "given up: {{reason}}")]),
            Panel("Who decides", "Routers that lead, and routers that reach the store.", "short",
                  [(f"sum (millrace_experts_leader{ROUTER})", "lead"),
                   (f"sum (millrace_experts_store_up{ROUTER})", "reach the store"),
                   (f"count (millrace_experts_store_up{ROUTER})", "routers")]),
            Panel("Adopted and left out", "Epochs that ranks adopted, and that left ranks out.", "short",
                  [(f"sum (increase(millrace_group_adoptions_total{RANKS}[$__rate_interval]))", "adopted"),
                   (f"sum (increase(millrace_group_evictions_total{RANKS}[$__rate_interval]))", "left out")]),
        ],
        "Staging": [
            Panel("Experts moved", "That ranks loaded because an epoch moved them.", "short",
                  [(f"sum (increase(millrace_experts_moved_total{ROUTER}[$__rate_interval]))", "moved")]),
            Panel("Weights staged", "By where they came from.", "Bps",
                  [(rate("millrace_group_staged_bytes_total", RANKS, "source"), "{{source}}")]),
            Panel("Staging", "From an order to all of its weights in memory.", "s",
                  quantiles("millrace_group_staging_seconds", RANKS, 0.5, 0.99)),
            Panel("Staging that failed", "Experts that a source did not give, by why.", "short",
                  [(f"sum by (reason) (increase(millrace_group_staging_failures_total{RANKS}[$__rate_interval]))", "{{reason}}")]),
        ],
        "Steps": [
            Panel("Steps", "Complete, and dropped because a rank was lost.", "ops",
                  [(rate("millrace_group_steps_total", RANKS, "result"), "{{result}}")]),
            Panel("Waits before steps", "Seconds a second that each rank waits for the others' words. A slow rank waits least.",
                  "percentunit", [(rate("millrace_group_start_wait_seconds_total", RANKS, "pod"), "{{pod}}")]),
            Panel("Ranks that begin late", "How many ranks wait longest for this one's word before a step. A slow rank is named by "
                  "all others; without one, names are by chance.", "short", [(slowest("start"), "rank {{peer}}")], stack=True),
            Panel("Waits for rows", "Seconds a second that each rank waits for the others' rows. A slow rank waits least.",
                  "percentunit", [(rate("millrace_group_exchange_wait_seconds_total", RANKS, "pod"), "{{pod}}")]),
            Panel("Ranks whose rows come late", "How many ranks wait longest for this one's rows after those of the ranks before it.",
                  "short", [(slowest("exchange"), "rank {{peer}}")], stack=True),
            Panel("Rows exchanged", "Over the mesh; rows that devices hand each other are not among them.", "Bps",
                  [(rate("millrace_group_exchange_bytes_total", RANKS, "direction"), "{{direction}}")]),
            Panel("Links", "Of each rank with others.", "short",
                  [(f"millrace_group_links{RANKS}", "{{pod}}")]),
            Panel("Links that broke", "With ranks that ended or could not be reached.", "short",
                  [(f"sum by (pod) (increase(millrace_group_link_losses_total{RANKS}[$__rate_interval]))", "{{pod}}")]),
        ],
    })
