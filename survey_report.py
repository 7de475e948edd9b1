"""A survey as Markdown and as one page of HTML, from what survey.json holds."""

from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.figure import Figure
from tabulate import tabulate

from page import png, render
from survey_figures import plot_curve, plot_harm, plot_layers, plot_plan, shown

HEAD = ("layer", "type", "d", "units", "axis 1", "κ")
COLUMNS = (
    ("angle", "angle_deg", "{:.2f}°"),
    ("theory", "theory_deg", "{:.2f}°"),
    ("bound", "bound_deg", "{:.2f}°"),
    ("SQNR", "sqnr_db", "{:.1f} dB"),
    ("predicted r", "predicted_r", "{:.4f}"),
    ("r", "r", "{:.4f}"),
    ("bytes", "bytes", "{:,}"),
    ("accuracy", "accuracy", "{:.2%}"),
    ("batch norm re-estimated", "refitted_accuracy", "{:.2%}"),
    ("lost", "lost", "{:.2%}"),
)
PREDICTORS = {
    "predicted_r": "predicted r",
    "r": "r",
    "angle_deg": "angle (cosine)",
    "sqnr_db": "SQNR",
    "kurtosis": "κ",
}
INPUT_COLUMNS = (
    *(column for column in COLUMNS if column[1] in ("angle_deg", "theory_deg", "sqnr_db", "r")),
    ("accuracy", "accuracy", "{:.2%}"),
)


def bits_of(name: str | None) -> int:
    """Bits per weight of a quantizer's name; 32 for None."""
    if name is None:
        return 32
    kind = name.removesuffix("_per_tensor")
    return {"sign": 1, "ternary": 2}.get(kind) or int(kind.rpartition("_")[2])


def _shown(form, value):
    return "–" if value is None else form.format(value)


def tables(surveyed: dict) -> list[tuple[str, str, Sequence[str], list[tuple]]]:
    """What the report shows, as a list of (title, remark, head, rows)."""
    layers = surveyed["layers"]
    found = [("Layers", "", HEAD, [_about(layer) for layer in layers])]
    if surveyed["plan"]:
        found.append(_plan_table(surveyed["plan"]))
    for name in surveyed["quantizers"]:
        rows = [(layer["name"], layer["quantizers"][name]) for layer in layers]
        found.append((f"Weights: {name}", "", *_table(rows, COLUMNS)))
    for kind in dict.fromkeys(kind for layer in layers for kind in layer["inputs"]):
        rows = [(layer["name"], layer["inputs"].get(kind, {})) for layer in layers]
        remark = "One scale for all inputs of the layer."
        found.append((f"Inputs: {kind}", remark, *_table(rows, INPUT_COLUMNS)))
    if surveyed.get("correlations"):
        remark = "Positive where more harm is predicted and more is lost."
        table = correlation_table(surveyed["correlations"])
        found.append(("Spearman's ρ with the accuracy lost", remark, *table))
    reasons = [(name, "the layer", why) for name, why in surveyed["left_out"].items()]
    reasons += [
        (layer["name"], what, why) for layer in layers for what, why in layer["left_out"].items()
    ]
    if surveyed["accuracy"] is None:
        reasons.append(("all", "accuracy, curve, plan", surveyed["why_no_accuracy"]))
    if reasons:
        found.append(("Left out", "", ("layer", "what", "why"), reasons))
    return found


def _about(layer):
    axis, kurtosis = _shown("{:.0%}", layer["first_axis"]), _shown("{:.2f}", layer["kurtosis"])
    return layer["name"], layer["type"], layer["fan_in"], layer["units"], axis, kurtosis


def _table(rows, columns):
    """Head and rows, without the columns of which no layer has anything."""
    columns = [c for c in columns if any(values.get(c[1]) is not None for _, values in rows)]
    head = ("layer", *(title for title, *_ in columns))
    return head, [
        (name, *(_shown(form, values.get(key)) for _, key, form in columns))
        for name, values in rows
    ]


def _plan_table(plan):
    accuracy = plan.get("refitted_accuracy", plan["accuracy"])
    remark = (
        f"At most {plan['lose']:g} points of accuracy are lost: {accuracy:.2%} of "
        f"{plan['float_accuracy']:.2%}, with {plan['bytes']:,} bytes of {plan['float_bytes']:,}. "
        f"One limit on the {plan['by']} harm holds for all layers."
    )
    rows = [(name, chosen or "float32", bits_of(chosen)) for name, chosen in _chosen(plan)]
    return "Plan", remark, ("layer", "quantizer", "bits"), rows


def _chosen(plan):
    return plan["quantizers"].items()


def correlation_table(rows: Sequence[dict]) -> tuple[tuple[str, ...], list[tuple]]:
    """Head and rows of what `survey.rank_correlations` returns."""
    shown = [
        (row["quantizer"], row["loss"], row["layers"], *(_rho(row[key]) for key in PREDICTORS))
        for row in rows
    ]
    return ("quantizer", "batch norm", "layers", *PREDICTORS.values()), shown


def _rho(found):
    if found is None:
        return "–"
    rho, p = found
    return f"{rho:+.2f}" if p is None else f"{rho:+.2f} (p {p:.2g})"


def summary(surveyed: dict) -> list[str]:
    """The report's first lines."""
    cost, order = surveyed["cost"], surveyed["order"]
    lines = [
        f"{surveyed['images']:,} images in {cost['seconds']:.0f} s; the model alone takes "
        f"{cost['forward_seconds']:.1f} s. Peak memory {cost['peak_memory_mb']:,} MB."
    ]
    if surveyed["accuracy"] is not None:
        lines.append(f"Accuracy {surveyed['accuracy']:.2%}.")
    for which, names in order.items():
        lines.append(f"From least to most harm, {which}: {', '.join(names)}.")
    return lines


def markdown(surveyed: dict) -> str:
    """survey.md."""
    lines = [f"# Survey of {surveyed.get('file', surveyed['model'])}", ""]
    for line in summary(surveyed):
        lines += [line, ""]
    for title, remark, head, rows in tables(surveyed):
        lines += [f"## {title}", ""]
        lines += [remark, ""] if remark else []
        lines += [grid(head, rows), ""]
    return "\n".join(lines)


def grid(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A table in Markdown."""
    escaped = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(escaped, head, "github", disable_numparse=True, stralign=None)


# --- HTML -------------------------------------------------------------------------------------


def figures(surveyed: dict) -> dict[str, Callable[[], Figure]]:
    """What draws the figures of a survey: functions without arguments, by title."""
    layers, names = surveyed["layers"], shown(surveyed["quantizers"])
    bars = partial(plot_layers, layers, names)
    angle = "angle between weights and quantized weights, degrees"
    found = {
        "Angles of the weights": partial(
            bars, "angle_deg", angle, theory="theory_deg", marks="Gaussian theory"
        ),
        "Dot products": partial(
            bars,
            "r",
            "1 − r of dot products",
            of=lambda r: 1 - r,
            log=True,
            theory="predicted_r",
            marks="predicted",
        ),
    }
    if surveyed["accuracy"] is None:
        return found
    plan = surveyed["plan"]
    key = "refitted_accuracy" if "refitted_accuracy" in plan else "accuracy"
    bits = {name: bits_of(chosen) for name, chosen in plan["quantizers"].items()}
    return found | {
        "Accuracy": partial(bars, "lost", "accuracy lost, this layer alone quantized"),
        "Predicted and measured harm": partial(plot_harm, [surveyed], names),
        "Accuracy against bytes": partial(plot_curve, surveyed["curve"], plan, key),
        "The plan": partial(plot_plan, layers, {**plan, "bits": bits}),
    }


def html(surveyed: dict) -> str:
    """survey.html: one page that needs no other file."""
    drawn = [(title, "", png(draw())) for title, draw in figures(surveyed).items()]
    rows = [
        (title, remark, "", [dict(zip(head, row, strict=True)) for row in found])
        for title, remark, head, found in tables(surveyed)
    ]
    name = surveyed.get("file", surveyed["model"])
    return render(f"Survey of {name}", summary(surveyed), drawn, rows)
