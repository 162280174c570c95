#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws what `firstlight bench load MODEL --json` measured: whole loads beside their floors, the sweep of request sizes,
and time against bytes. Needs matplotlib. Example: tools/plot_load.py load.json -o load.svg"""
import argparse
import json
import pathlib
import sys


def draw_loads(axes, report):
    rows = report["loads"][::-1]
    names = [f'{row["what"]}, {row["state"]}' + (f', verify {row["verify"]}' if row["verify"] else "") for row in rows]
    rates = [row["gb_per_s"] for row in rows]
    least = [rate - row["bytes"] / max(row["seconds"]) / 1e9 for rate, row in zip(rates, rows)]
    most = [row["bytes"] / min(row["seconds"]) / 1e9 - rate for rate, row in zip(rates, rows)]
    axes.barh(names, rates, xerr=[least, most], color=["#bbbbbb" if row["is_floor"] else "#3b75af" for row in rows])
    axes.set_xlabel("GB/s (median; least to most)")
    axes.set_title(f'Whole loads, tp {report["tp"]}, {report["threads"]} threads, {report["file_system"]}')


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
    parser.add_argument("report", type=pathlib.Path, help="what `firstlight bench load --json` printed")
    parser.add_argument("-o", "--out", type=pathlib.Path, required=True, help="picture to write: .svg, .png or .pdf")
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text(encoding="utf-8"))
    drawings = [(draw_loads, "loads"), (draw_sweep, "sweep"), (draw_lines, "time_against_bytes")]
    drawings = [draw for draw, key in drawings if report.get(key)]
    if not drawings:
        sys.exit(f"{arguments.report}: no measurements in it")
    try:
        import matplotlib
    except ImportError:
        sys.exit("plot_load.py needs matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(drawings), 1, figsize=(10, 5 * len(drawings)), squeeze=False, layout="constrained")
    for draw, place in zip(drawings, axes[:, 0]):
        draw(place, report)
    figure.savefig(arguments.out)


if __name__ == "__main__":
    main()
