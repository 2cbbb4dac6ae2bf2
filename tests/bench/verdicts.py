#!/usr/bin/env python3
"""How long Nix's event loop waits for a verdict: asks one broker-hook about many derivations, as Nix does.

   verdicts.py COUNT COMMAND...       COMMAND starts a broker-hook whose standard streams are ours

Asks for a system that no pool has: the answer comes from the same memory as an accept, and leaves no build behind.
Prints the median, the 99th percentile and the longest, in milliseconds. Owns the asking; run.sh says when.
"""
import struct
import subprocess
import sys
import time


def number(value):
    return struct.pack("<Q", value)


def text(value):
    data = value.encode()
    return number(len(data)) + data + bytes(-len(data) % 8)


def main():
    count = int(sys.argv[1])
    hook = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    settings = {"builders": "@/etc/nix/machines", "system": "x86_64-linux", "max-jobs": "0"}
    hook.stdin.write(b"".join(number(1) + text(name) + text(value) for name, value in settings.items()) + number(0))
    times = []
    for i in range(count):
        drv = f"/nix/store/{'0' * 24}{i:08d}-probe.drv"
        request = text("try") + number(0) + text("riscv64-netbsd") + text(drv) + number(0)
        began = time.perf_counter()
        hook.stdin.write(request)
        hook.stdin.flush()
        while True:
            line = hook.stderr.readline()
            if line.startswith(b"# "):
                break
            if not line:
                sys.exit("verdicts: the hook ended")
        times.append((time.perf_counter() - began) * 1000)
        # Nix asks when a build becomes possible, not in one breath.
        time.sleep(0.005)
    hook.stdin.close()
    hook.wait()
    times.sort()
    print(f"{times[len(times) // 2]:.2f} {times[int(len(times) * 0.99)]:.2f} {times[-1]:.2f}")


if __name__ == "__main__":
    main()
