#!/usr/bin/env python3
"""The benchmark's figures as a picture: the JSON of a run becomes an SVG.

   plot.py RUN.json >RUN.svg

One group of bars for each work, one pair for each link: stock and ours, on a logarithmic scale because they differ by
more than an order of magnitude. Owns the drawing only; run.sh owns the figures.
"""
import html
import json
import math
import statistics
import sys

BAR, GAP, LEFT, WIDTH = 13, 9, 250, 860
COLOURS = {"stock": "#b8b8b8", "ours": "#2f6f9f"}


def title(work, parameters):
    return {
        "wide": f"{parameters['wide']} small builds",
        "chain": f"chain of {parameters['chain']}",
        "bulk": f"{parameters['mib']} MiB in, {parameters['mib']} MiB out",
        "shared": f"{parameters['shared']} builds, one {parameters['mib']} MiB input",
        "text": f"{parameters.get('mib')} MiB of text in and out",
        "many": f"{parameters.get('many')} builds at once",
    }[work]


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        run = json.load(file)
    cells = {}
    for one in run["measurements"]:
        if one["work"] in ("idle", "fair"):
            continue
        key = one["work"], one["round_trip_ms"], one["mbit"]
        cells.setdefault(key, {}).setdefault(one["side"], []).append(one["seconds"])
    medians = {key: {side: statistics.median(v) for side, v in sides.items()} for key, sides in cells.items()}
    if not medians:
        sys.exit("nothing to draw")
    seconds = [value for sides in medians.values() for value in sides.values()]
    low = 10 ** math.floor(math.log10(min(seconds)))
    high = max(seconds) * 1.1

    def x(value):
        return LEFT + (WIDTH - LEFT - 70) * math.log(value / low) / math.log(high / low)

    rows, y = [], 46
    for work in dict.fromkeys(key[0] for key in medians):
        rows.append(f'<text x="8" y="{y + 12}" font-weight="bold">{html.escape(title(work, run["parameters"]))}</text>')
        y += 20
        for (of, delay, mbit), sides in medians.items():
            if of != work:
                continue
            rows.append(f'<text x="{LEFT - 8}" y="{y + BAR + 4}" text-anchor="end">{delay} ms, {mbit} Mbit/s</text>')
            for side, colour in COLOURS.items():
                if side in sides:
                    end = x(max(sides[side], low * 1.02))
                    rows.append(f'<rect x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="{BAR - 1}" fill="{colour}"/>')
                    rows.append(f'<text x="{end + 4:.1f}" y="{y + 10}" font-size="11">{sides[side]:.2f} s</text>')
                y += BAR
            y += GAP
    ticks, tick = [], low
    while tick <= high:
        ticks.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="40" y2="{y}" stroke="#ddd"/>')
        ticks.append(f'<text x="{x(tick):.1f}" y="36" text-anchor="middle" fill="#666">{tick:g} s</text>')
        tick *= 10
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 26}" font-family="sans-serif" font-size="12">')
    print(f'<rect width="{WIDTH}" height="{y + 26}" fill="white"/>')
    print('<rect x="8" y="8" width="12" height="12" fill="#b8b8b8"/><text x="25" y="18">stock</text>')
    print('<rect x="75" y="8" width="12" height="12" fill="#2f6f9f"/><text x="92" y="18">nix-broker</text>')
    print("\n".join(ticks + rows))
    foot = f'{run["nix"]}, commit {run["commit"]}, {run["date"][:10]}, {run["processors"]} processors for everything; less is better'
    print(f'<text x="8" y="{y + 16}" fill="#666" font-size="11">{html.escape(foot)}</text>\n</svg>')


if __name__ == "__main__":
    main()
