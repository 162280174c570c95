#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the quality that `firstlight bench kv MODEL --text FILE --json` or `build/cpu/bench/kv_quality … --json` measured:
divergence by position in the window, and bytes against mean divergence. Needs matplotlib. Example: tools/plot_kv.py kv.json -o kv.svg"""
import argparse
import json
import pathlib
import sys


def draw_positions(axes, report, kinds):
    windows = len(kinds[0]["kld_by_window_and_position"])
    for kind in kinds:
        parts = list(zip(*kind["kld_by_window_and_position"]))
        width = (report["window"] - report["skip"]) / len(parts)
        middles = [report["skip"] + width * (i + 0.5) for i in range(len(parts))]
        axes.plot(middles, [sum(part) / len(part) for part in parts], label=kind["kv"])
    axes.set_yscale("log")
    axes.set_xlabel("position")
    axes.set_ylabel("mean KLD, nats")
    axes.legend(fontsize="x-small", ncols=2)
    axes.set_title(f'By position, {windows} windows of {report["window"]} tokens')


def draw_bytes(axes, report, kinds):
    axes.scatter([kind["bytes"] for kind in kinds], [kind["mean_kld"] for kind in kinds])
    for kind in kinds:
        axes.annotate(kind["kv"], (kind["bytes"], kind["mean_kld"]), xytext=(4, 4), textcoords="offset points", fontsize="x-small")
    axes.set_xscale("log", base=2)
    axes.set_xticks([kind["bytes"] for kind in kinds], [f'{kind["bytes"]:.0f}' for kind in kinds])
    axes.set_xticks([], minor=True)
    axes.set_yscale("log")
    axes.set_xlabel(f'bytes of a key and a value of {report["head_dim"]}')
    axes.set_ylabel("mean KLD, nats")
    axes.set_title(f'Divergence from an f32 cache, {report["positions"]:,} positions')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=pathlib.Path, help="what `bench kv --json` or `kv_quality --json` wrote")
    parser.add_argument("-o", "--out", type=pathlib.Path, required=True, help="picture to write: .svg, .png or .pdf")
    parser.add_argument("--kv", action="append", help="draw this kind or variant (repeatable; default: all)")
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text(encoding="utf-8"))
    report = report.get("quality", report)
    if "kinds" not in report:
        sys.exit(f"{arguments.report}: no quality in it; bench kv measures it where it is given --text")
    kinds = [kind for kind in report["kinds"] if kind["mean_kld"] > 0 and (not arguments.kv or kind["kv"] in arguments.kv)]
    if not kinds:
        sys.exit(f"{arguments.report}: nothing to draw, it has {', '.join(kind['kv'] for kind in report['kinds'])}")
    try:
        import matplotlib
    except ImportError:
        sys.exit("plot_kv.py needs matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Text as text, no date, no random names: an SVG of some KB that is the same for the same report.
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "firstlight", "font.family": "sans-serif"})
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    draw_bytes(axes[0], report, kinds)
    draw_positions(axes[1], report, kinds)
    figure.savefig(arguments.out, metadata={"Date": None} if arguments.out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
