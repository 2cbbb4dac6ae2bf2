#!/usr/bin/env python3
"""How long Nix's event loop waits for a verdict: asks one broker-hook about many derivations, as Nix does.

   verdicts.py FILE COMMAND...        FILE names derivations, a line each, that nobody has asked about yet;
                                      COMMAND starts a broker-hook whose standard streams are ours

Asks as if they were for a system that no pool has: the answer comes from the same memory as an accept, and leaves no build
behind. By turns it asks a second hook, which declines without a broker (the store is not this machine's): what that takes is
this machine's, for two processes that wake each other up. Prints the median, the 99th percentile and the longest of each, in
milliseconds.
Owns the asking; run.sh says when.
"""
import struct
import subprocess
import sys
import time

SETTINGS = {"builders": "@/etc/nix/machines", "system": "x86_64-linux", "max-jobs": "0"}


def number(value):
    return struct.pack("<Q", value)


def text(value):
    data = value.encode()
    return number(len(data)) + data + bytes(-len(data) % 8)


def start(command, settings):
    hook = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    hook.stdin.write(b"".join(number(1) + text(name) + text(value) for name, value in settings.items()) + number(0))
    return hook


def ask(hook, drv):
    """Milliseconds from the question to the reply."""
    request = text("try") + number(0) + text("riscv64-netbsd") + text(drv) + number(0)
    began = time.perf_counter()
    hook.stdin.write(request)
    hook.stdin.flush()
    while True:
        line = hook.stderr.readline()
        if line.startswith(b"# "):
            return (time.perf_counter() - began) * 1000
        if not line:
            sys.exit("verdicts: the hook ended")


def main():
    hooks = [start(sys.argv[2:], settings) for settings in (SETTINGS, SETTINGS | {"store": "/elsewhere"})]
    times = [[], []]
    for drv in open(sys.argv[1]).read().split():
        for hook, taken in zip(hooks, times):
            taken.append(ask(hook, drv))
            # Nix asks when a build becomes possible, not in one breath.
            time.sleep(0.005)
    for hook in hooks:
        hook.stdin.close()
        hook.wait()
    for taken in map(sorted, times):
        print(f"{taken[len(taken) // 2]:.2f} {taken[int(len(taken) * 0.99)]:.2f} {taken[-1]:.2f}", end=" ")
    print()


if __name__ == "__main__":
    main()
