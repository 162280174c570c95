#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws what `firstlight bench load MODEL --json` measured: whole loads beside their floors, of several reports if there are
several, and of the first the sweep of request sizes and time against bytes. Needs matplotlib. Example:
tools/plot_load.py load.json -o load.svg"""
import argparse
import json
import pathlib
import sys


def draw_loads(axes, reports):
    rows = [(report, row) for report in reports for row in report["loads"]][::-1]
    names = [f'tp {report["tp"]}: {row["what"]}, {row["state"]}' + (f', verify {row["verify"]}' if row["verify"] else "")
             for report, row in rows]
    rows = [row for _, row in rows]
    rates = [row["gb_per_s"] for row in rows]
    least = [rate - row["bytes"] / max(row["seconds"]) / 1e9 for rate, row in zip(rates, rows)]
    most = [row["bytes"] / min(row["seconds"]) / 1e9 - rate for rate, row in zip(rates, rows)]
    bars = axes.barh(names, rates, xerr=[least, most], color=["#bbbbbb" if row["is_floor"] else "#3b75af" for row in rows])
    axes.bar_label(bars, [f'{rate:.1f}' for rate in rates], label_type="center", color="white")
    devices = dict.fromkeys(report["device"] for report in reports)
    axes.set_xlabel("GB/s (median; least to most)")
    axes.set_title(f'Whole loads, {", ".join(devices)}')


def draw_sweep(axes, report):
    series = {}
    for point in report["sweep"]:
        name = f'{point["reader"]}, {point["state"]}, {point["threads"]} thread(s), {point["in_flight"]} in flight'
        series.setdefault(name, []).append((point["piece_bytes"] / 2**20, point["gb_per_s"]))
    for name, points in series.items():
        axes.plot(*zip(*sorted(points)), marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("request, MiB")
    axes.set_ylabel("GB/s")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="x-small")
    axes.set_title("Readers alone")


def draw_lines(axes, report):
    for line in report["time_against_bytes"]:
        gigabytes = [point[0] / 1e9 for point in line["bytes_and_seconds"]]
        label = f'{line["what"]}, {line["state"]}: {line["gb_per_s"]:.2f} GB/s + {1e3 * line["intercept_s"]:.1f} ms'
        (drawn,) = axes.plot(gigabytes, [point[1] for point in line["bytes_and_seconds"]], "o", label=label)
        ends = [0, max(gigabytes)]
        axes.plot(ends, [line["intercept_s"] + x / line["gb_per_s"] for x in ends], color=drawn.get_color())
    axes.set_xlabel("GB")
    axes.set_ylabel("seconds")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    axes.set_title("Time against bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", nargs="+", type=pathlib.Path, help="what `firstlight bench load --json` printed")
    parser.add_argument("-o", "--out", type=pathlib.Path, required=True, help="picture to write: .svg, .png or .pdf")
    arguments = parser.parse_args()
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.reports]
    drawings = []
    if any(report["loads"] for report in reports):
        drawings.append((draw_loads, reports))
    drawings += [(draw, reports[0]) for draw, key in [(draw_sweep, "sweep"), (draw_lines, "time_against_bytes")] if reports[0].get(key)]
    if not drawings:
        sys.exit(f"{arguments.reports[0]}: no measurements in it")
    try:
        import matplotlib
    except ImportError:
        sys.exit("plot_load.py needs matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Text as text, no date, no random names: an SVG of some KB that is the same for the same report.
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "firstlight", "font.family": "sans-serif"})
    heights = [1 + 0.4 * sum(len(report["loads"]) for report in reports) if draw is draw_loads else 5 for draw, _ in drawings]
    figure, axes = plt.subplots(len(drawings), 1, figsize=(10, sum(heights)), squeeze=False, layout="constrained",
                                height_ratios=heights)
    for (draw, measured), place in zip(drawings, axes[:, 0]):
        draw(place, measured)
    figure.savefig(arguments.out, metadata={"Date": None} if arguments.out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
