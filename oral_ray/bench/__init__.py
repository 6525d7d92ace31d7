"""Benchmarks behind `oral-ray bench NAME [option=value ...] [--json FILE]`, one file each, imported when asked for.

A benchmark is a module of this package that defines
    class Options(BenchOptions)             its settings with defaults that fit a 2-core machine; set by option=value
    def run(options: Options) -> Result     rows, and where there are any: peers, floors, fitted exponents
and a line in `registry.BENCH`. `harness` times, fits and prints; `environment` says where it ran. What is compared is
measured in one run, candidates in turn (`harness.compare`), because a noisy machine shifts all of them alike.

What only developers compare is written in the same way and lies in infra/dev/bench.
"""
