"""Generate the Grafana dashboards from panels.yaml: `make manifests`"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries, xychart
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models
from grafana_foundation_sdk.models import xychart as xychart_models

FOLDER = Path(__file__).parent
DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
INTERVAL = "15s"  # the scrape interval of podmonitor.yaml, from which Grafana derives $__rate_interval
# last_over_time keeps the old process's count for up to an hour without ranks, and the new process reports a higher
# one: one short annotation per restart, wherever the new process serves its metrics.
RESTART = (
    'changes((max by (run) (last_over_time(deblur_restarts_total{run=~"$run"}[1h])))[$__rate_interval:15s]) > 0',
    {"name": "Restarts", "iconColor": "orange", "enable": True, "titleFormat": "{{run}} restarted"},
)
CHECKPOINT = (
    'max by (run) (deblur_checkpoint_timestamp_seconds{run=~"$run"}) * 1000',
    {
        "name": "Checkpoints",
        "iconColor": "blue",
        "enable": False,  # one a minute
        "titleFormat": "{{run}} committed a checkpoint",
        "useValueForTime": True,
    },
)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel, as in panels.yaml."""

    title: str
    description: str
    unit: str
    queries: Mapping[str, str]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    minimum: float | None = None
    decimals: int | None = None
    log: bool = False
    stacked: bool = False
    thresholds: Sequence[str | float] = ("text",)  # Grafana's own default turns red at 80
    columns: Mapping[str, str] = field(default_factory=dict)


ROWS = {
    row: [Panel(**panel) for panel in panels]
    for row, panels in yaml.safe_load((FOLDER / "panels.yaml").read_text()).items()
}


def training() -> dict[str, Any]:
    """One run, or a few, in detail."""
    board = _dashboard("Deblur training", "deblur-training", "Health and learning progress of a training run.")
    board.with_variable(_variable("run", "label_values(deblur_images_seen, run)", "Run").multi(True))
    board.with_variable(
        _with_all(_variable("rank", 'label_values(deblur_images_total{run=~"$run"}, rank)', "Rank"), ".*")
    )
    rows = ("Overview", "Throughput", "Loss", "Quality", "Data", "Checkpoints", "Faults")
    return _json(board, rows, [RESTART, CHECKPOINT])


def search() -> dict[str, Any]:
    """The trials of a hyper-parameter search side by side; each is a run."""
    board = _dashboard("Deblur search", "deblur-search", "Trials of a hyper-parameter search side by side.")
    pattern = dashboard.TextBoxVariable("search").label("Run name matches").default_value("")
    board.with_variable(pattern.description("A regular expression; only runs whose names match are listed in Trials."))
    names = 'label_values(deblur_images_seen{run=~".*$search.*"}, run)'
    # No all_value: All means the listed runs.
    board.with_variable(_with_all(_variable("run", names, "Trials")))
    return _json(board, ["Trials"], [])


def service() -> dict[str, Any]:
    """The restoring service by namespace: metrics of the replicas and of Ray Serve."""
    board = _dashboard("Deblur service", "deblur-service", "Availability and latency of the restoring service.")
    names = "label_values(deblur_service_running, namespace)"
    # Without Kubernetes the label is missing; All must match that, too.
    board.with_variable(_with_all(_variable("namespace", names, "Namespace"), ".*"))
    return _json(board, ["Service"], [])


def main() -> None:
    for name, content in files().items():
        (FOLDER / name).write_text(content)


def files() -> dict[str, str]:
    """The text of each dashboard by file name."""
    boards = (training(), search(), service())
    return {f"{board['uid']}.json": json.dumps(board, indent=2, sort_keys=True) + "\n" for board in boards}


def _dashboard(title: str, uid: str, description: str) -> dashboard.Dashboard:
    board = dashboard.Dashboard(title).uid(uid).description(description).tags(["deblur"])
    board.time("now-6h", "now").refresh("30s").tooltip(models.DashboardCursorSync.CROSSHAIR)
    others = dashboard.DashboardLink("Deblur").type(models.DashboardLinkType.DASHBOARDS).tags(["deblur"])
    board.link(others.keep_time(True))
    return board.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))


def _variable(name: str, query: str, label: str) -> dashboard.QueryVariable:
    variable = dashboard.QueryVariable(name).label(label).query(query).datasource(DATASOURCE)
    # On change of the time range, so that runs that ended within it are listed, too.
    return variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.NATURAL_ASC)


def _with_all(variable: dashboard.QueryVariable, all_value: str | None = None) -> dashboard.QueryVariable:
    everything = models.VariableOption(selected=True, text=["All"], value=["$__all"])
    variable.multi(True).include_all(True).current(everything)
    return variable.all_value(all_value) if all_value else variable


def _json(
    board: dashboard.Dashboard, rows: Sequence[str], annotations: list[tuple[str, dict[str, Any]]]
) -> dict[str, Any]:
    number = 0
    for row in rows:
        board.with_row(dashboard.Row(row).id(number := number + 1))
        for panel in ROWS[row]:
            board.with_panel(_panel(panel).id(number := number + 1))
    found = json.loads(json.dumps(board.build(), cls=JSONEncoder))
    # The SDK's annotations lack titleFormat and useValueForTime.
    found["annotations"]["list"] = [{"datasource": DATASOURCE.to_json(), "expr": e, **more} for e, more in annotations]
    return found


def _panel(panel: Panel) -> Any:
    """The SDK's builder for a panel."""
    built = _KINDS[panel.kind](panel).title(panel.title).description(panel.description).unit(panel.unit)
    built.datasource(DATASOURCE).height(panel.height).span(panel.width).interval(INTERVAL)
    built.thresholds(_thresholds(panel.thresholds))
    if panel.minimum is not None:
        built.min(panel.minimum)
    if panel.decimals is not None:
        built.decimals(panel.decimals)
    for ref, (legend, expr) in zip("ABCDEFGH", panel.queries.items(), strict=False):
        built.with_target(_query(panel, expr).legend_format(legend).ref_id(ref))
    return built


def _query(panel: Panel, expr: str) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expr).datasource(DATASOURCE)
    query.instant() if panel.kind in ("now", "table") else query.range()
    return query.format(prometheus_models.PromQueryFormat.TABLE) if panel.columns else query


def _thresholds(steps: Sequence[str | float]) -> dashboard.ThresholdsConfig:
    colours, values = steps[::2], (None, *steps[1::2])
    found = [models.Threshold(value=v, color=str(c)) for v, c in zip(values, colours, strict=True)]  # type: ignore[arg-type]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(found)


def _timeseries(panel: Panel) -> timeseries.Panel:
    built = timeseries.Panel().line_width(1).fill_opacity(60 if panel.stacked else 0)
    built.show_points(common_models.VisibilityMode.AUTO).legend(_legend())
    built.tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
    if panel.stacked:
        built.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    if panel.log:
        logarithmic = common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LOG)
        built.scale_distribution(logarithmic.log(10))
    return built


def _stat(panel: Panel) -> stat.Panel:
    built = stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    built.color_mode(common_models.BigValueColorMode.VALUE).graph_mode(common_models.BigValueGraphMode.NONE)
    return built.no_value("nothing trains" if panel.kind == "now" else "no data yet")


def _table(panel: Panel) -> table.Panel:
    """One row per run, one column per query."""
    first = next(iter(panel.columns))
    built = table.Panel().sort_by([common.TableSortByFieldState().display_name(first).desc(True)])
    link = {"title": "Open ${__value.raw}", "url": "/d/deblur-training?${__url_time_range}&var-run=${__value.raw}"}
    built.override_by_name("run", [models.DynamicConfigValue(id_val="links", value=[link])])
    return _with_columns(built, panel)


def _xychart(panel: Panel) -> xychart.Panel:
    """One curve per run: the second column against the first."""
    built = xychart.Panel().mapping(xychart_models.SeriesMapping.AUTO)
    built.show(xychart_models.XYShowMode.POINTS_AND_LINES).legend(_legend())
    built.tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.SINGLE))
    options = {"fields": ["run"], "keepFields": False, "naming": {"asLabels": True}}
    per_run = models.DataTransformerConfig(id_val="partitionByValues", options=options)
    return _with_columns(built, panel).with_transformation(per_run)


def _with_columns(built: Any, panel: Panel) -> Any:
    """Joins the queries by run (and time) into one table whose columns have names and units."""
    names = {f"Value #{ref}": column for ref, column in zip("ABCDEFGH", panel.columns, strict=False)}
    organized = {"excludeByName": {"Time": True}, "renameByName": names}
    built.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    built.with_transformation(models.DataTransformerConfig(id_val="organize", options=organized))
    for column, unit in panel.columns.items():
        built.override_by_name(column, [models.DynamicConfigValue(id_val="unit", value=unit)])
    return built


def _legend() -> common.VizLegendOptions:
    legend = common.VizLegendOptions().show_legend(True).placement(common_models.LegendPlacement.BOTTOM)
    return legend.display_mode(common_models.LegendDisplayMode.LIST)


_KINDS: dict[str, Callable[[Panel], Any]] = {
    "timeseries": _timeseries,
    "stat": _stat,
    "now": _stat,
    "table": _table,
    "xychart": _xychart,
}


if __name__ == "__main__":
    main()
