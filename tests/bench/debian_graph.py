#!/usr/bin/env python3
"""Debian's build dependencies as a graph for `broker simulate`.

  debian_graph.py SOURCES OUT PACKAGE...

SOURCES is a Sources index of apt, as text. Writes OUT.json, in the form of `nix derivation show -r`, with everything that
is needed to build these packages, and OUT.times with how long each takes.

Of alternatives the first that is a package counts. Debian builds on what was built before, so its graph has cycles: among
packages that need each other only a dependency on one that more packages need is kept. Times are a model, not a measurement: 12 thread-seconds, and 60 for each MB of
compressed source (4 where only architecture-independent packages come of it), times a log-normal factor with a sigma of
0.6 that depends on the name alone. Sources below 1 MB build on one thread, below 20 MB on 4, others on 16 and require
`big-parallel`; 10 s of each build are on one thread, and no build takes more than 4 h.
"""
import hashlib
import json
import math
import random
import re
import sys

NIX32 = "0123456789abcdfghijklmnpqrsvwxyz"


def paragraphs(path):
    fields, last = {}, None
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line == "\n":
                if fields:
                    yield fields
                fields, last = {}, None
            elif line[0] in " \t":
                fields[last] += "\n" + line.strip()
            else:
                last, _, value = line.partition(":")
                fields[last] = value.strip()
    if fields:
        yield fields


def dependencies(fields):
    """The names of each dependency that holds on amd64 for a plain build, alternatives in order."""
    text = ",".join(fields.get(key, "") for key in ("Build-Depends", "Build-Depends-Arch", "Build-Depends-Indep"))
    for clause in text.replace("\n", " ").split(","):
        names = []
        for option in clause.split("|"):
            match = re.match(r"\s*([a-z0-9][a-z0-9+.-]+)", option)
            architectures = re.search(r"\[([^]]*)\]", option)
            words = architectures.group(1).split() if architectures else []
            excluded = any(word in ("!amd64", "!linux-any", "!any-amd64") for word in words)
            others = words and not words[0].startswith("!")
            holds = not others or any(word in ("amd64", "linux-any", "any-amd64", "any") for word in words)
            # <!nocheck> and <!cross> hold in a plain build, <stage1> and its like do not.
            profiles = re.findall(r"<([^>]*)>", option)
            plain = not profiles or any(all(term.startswith("!") for term in one.split()) for one in profiles)
            if match and holds and not excluded and plain:
                names.append(match.group(1))
        if names:
            yield names


def drv(name):
    digest = hashlib.sha256(name.encode()).digest()
    return "".join(NIX32[byte % 32] for byte in digest) + f"-{name}.drv"


def work(name, fields):
    """Seconds on as many threads as it has, and the threads."""
    sizes = [int(line.split()[1]) for line in fields.get("Files", "").split("\n") if len(line.split()) == 3]
    megabytes = sum(sizes) / 1e6
    per_megabyte = 4 if fields.get("Architecture", "") == "all" else 60
    factor = math.exp(random.Random(name).gauss(0, 0.6))
    thread_seconds = (12 + per_megabyte * megabytes) * factor
    threads = 1 if megabytes < 1 or per_megabyte == 4 else 4 if megabytes < 20 else 16
    return min(10 + thread_seconds / threads, 4 * 3600), threads


def reachable(needs, roots):
    seen, waiting = set(roots), list(roots)
    while waiting:
        for needed in needs[waiting.pop()]:
            if needed not in seen:
                seen.add(needed)
                waiting.append(needed)
    return sorted(seen)


def strong_groups(needs):
    """For each node the name of its strongly connected component, without recursion (Kosaraju)."""
    done, seen = [], set()
    for root in needs:
        stack = [] if root in seen else [(root, iter(needs[root]))]
        seen.add(root)
        while stack:
            name, rest = stack[-1]
            below = next(rest, None)
            if below is None:
                done.append(name)
                stack.pop()
            elif below not in seen:
                seen.add(below)
                stack.append((below, iter(needs[below])))
    needed_by = {name: [] for name in needs}
    for name, list_ in needs.items():
        for needed in list_:
            needed_by[needed].append(name)
    group = {}
    for root in reversed(done):
        waiting = [root]
        while waiting:
            name = waiting.pop()
            if name not in group:
                group[name] = root
                waiting.extend(other for other in needed_by[name] if other not in group)
    return group


def main():
    sources_path, out, wanted = sys.argv[1], sys.argv[2], sys.argv[3:]
    sources, made_by = {}, {}
    for fields in paragraphs(sources_path):
        name = fields["Package"]
        sources[name] = fields
        for binary in re.split(r"[,\s]+", fields.get("Binary", "")):
            made_by.setdefault(binary, name)
    needs = {}
    for name, fields in sources.items():
        chosen = (next((made_by[option] for option in names if option in made_by), None) for names in dependencies(fields))
        needs[name] = sorted({source for source in chosen if source not in (None, name)})

    for root in wanted:
        if root not in sources:
            sys.exit(f"debian_graph: there is no source package `{root}` in {sources_path}")
    order = reachable(needs, wanted)
    users = {name: 0 for name in order}
    for name in order:
        for needed in needs[name]:
            users[needed] += 1
    group = strong_groups({name: needs[name] for name in order})
    before = sum(len(needs[name]) for name in order)
    for name in order:
        rank = (users[name], name)
        needs[name] = [
            needed for needed in needs[name] if group[needed] != group[name] or (users[needed], needed) > rank
        ]
    dropped = before - sum(len(needs[name]) for name in order)

    derivations = {}
    with open(out + ".times", "w") as times:
        for name in order:
            seconds, threads = work(name, sources[name])
            features = "big-parallel" if threads == 16 else ""
            derivations[drv(name)] = {
                "name": name,
                "system": "x86_64-linux",
                "env": {"requiredSystemFeatures": features} if features else {},
                "inputs": {"drvs": {drv(needed): {"outputs": ["out"]} for needed in needs[name]}, "srcs": []},
                "outputs": {"out": {"path": "none"}},
            }
            times.write(f"{name} {seconds:.0f} {threads}\n")
    with open(out + ".json", "w") as graph:
        json.dump({"version": 4, "derivations": derivations}, graph)
    edges = sum(len(needs[name]) for name in order)
    print(f"{len(order)} source packages, {edges} dependencies; {dropped} more are dropped because of cycles")


if __name__ == "__main__":
    main()
